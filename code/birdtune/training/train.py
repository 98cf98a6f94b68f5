"""Training, as a stage: what the loop is fed with and judged by.

    Run + Dataset + FrameStore ─▶ checkpoints/<v>, logs/<v>/history.json;  weights + Windows ─▶ Scores

Importing this loads TensorFlow.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from birdtune.config import Config
from birdtune.data import augment, sampling, split
from birdtune.data.augment import Augmenter
from birdtune.data.batches import Batches, Source, Targets, Windows
from birdtune.data.clips import ClipBatches
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.sampling import Sampler
from birdtune.data.scan import Recording
from birdtune.errors import CheckpointError, DivergedError
from birdtune.evaluation import class_alignment, diagnostics, metrics
from birdtune.evaluation.diagnostics import STRONG, Doubt
from birdtune.evaluation.scores import Scores, pool_mean
from birdtune.models import classifier as classifiers
from birdtune.models import network, registry
from birdtune.models.classifier import Classifier
from birdtune.models.growth import grown
from birdtune.models.losses import class_weights, constant_loss
from birdtune.runtime.events import Interrupts
from birdtune.runtime.files import write_json
from birdtune.runtime.runs import HISTORY_NAME, Run
from birdtune.training import devices, health
from birdtune.training.base_model import SPLIT_NAME, Ancestor, read_weights
from birdtune.training.checkpoints import Checkpoints, State
from birdtune.training.inputs import Feed, Frozen, in_memory
from birdtune.training.loop import Loop
from birdtune.training.scoring import Attention, Scorer, make_scorer, noting, score_windows
from birdtune.training.step import StepSettings, Trainer


class Learning:
    """From frames to trained weights, and what all stages of a run need.

    Attributes:
        checkpoints: of the run.
    """

    def __init__(
        self, run: Run, dataset: Dataset, store: FrameStore, interrupts: Interrupts, ancestor: Ancestor | None = None
    ) -> None:
        self.run, self.dataset, self.store, self.interrupts = run, dataset, store, interrupts
        self.ancestor = ancestor  # the model that the run begins from
        self.config, self.journal = run.config, run.journal
        self.journal.say(f"  {devices.prepare_devices()}")
        self.run.record["hardware"] = devices.describe().rows()
        self.checkpoints = Checkpoints(run.checkpoints, self.config.train.keep_checkpoints)
        self._backbone = registry.BACKBONES[self.config.model.backbone]
        self._told: set[str] = set()
        # [training windows] share of its label that each keeps; None: all of it. Set before training (stages.py).
        self.kept: npt.NDArray[np.float32] | None = None

    # ---- train ----------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end or to an interruption; leaves checkpoints/<v> and logs/<v>/history.json.

        Raises:
            DivergedError: the loss, the gradients, the weights or the scores are not finite any more.
        """
        if lost := self.checkpoints.lost():
            self.journal.warn(f"{lost} The best epoch's weights are lost; training begins anew.")
            self.checkpoints.clear()
        self.run.record.update(verdict=None, warnings=[])  # those of an earlier start of this run
        precision = self._precision()
        part = self.dataset.part("train")
        windows = self.windows(part, self.config.train.hop_frames)
        classifier = build_classifier(self.config, self.dataset.classes, precision)
        # Also where checkpoints stand: if none of them is whole, training begins anew, and from these.
        load_first_weights(classifier, self.config, self.ancestor)
        first = health.sampled(classifiers.trained_weights(classifier))
        step = self._step(windows, precision)
        trained = self._before_training(part, windows, step)
        state = self._loop(classifier, windows, step, trained).run()
        best = self.checkpoints.best()
        trained |= {
            "best_epoch": state.best["epoch"] if state.best is not None else None,
            "epochs": state.history,
            "moved": health.distances(first, health.sampled(best)),
        }
        write_json(self.run.logs / HISTORY_NAME, trained)
        # What a later version that begins from this one must not be compared with it on.
        split.write(self.run.logs / SPLIT_NAME, self.dataset.recordings, self.dataset.places)
        self.run.record["weights_sha256"] = classifiers.weights_sha256(best)
        found = diagnostics.of_training(trained)
        self.run.record["warnings"] = [doubt.row() for doubt in found]
        self.warn(found)

    def _step(self, windows: Windows, precision: str) -> StepSettings:
        return StepSettings(
            dropout=self.config.model.dropout,
            class_weights=class_weights(self._seen(windows), self.config.train.class_weight_alpha),
            precision=precision,
            untaught=self._untaught(),
            n_kept=len(self.ancestor.classes) if self.ancestor is not None else 0,
        )

    def _untaught(self) -> tuple[int, ...]:
        """Columns of an earlier model that nothing is learnt of now."""
        return class_alignment.untaught(self.dataset, len(self.ancestor.classes)) if self.ancestor is not None else ()

    def _examples(self, windows: Windows) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return windows.examples(by_recording=self.config.model.head == "attention")

    def _sampler(self, windows: Windows) -> Sampler | None:
        return sampling.sampler(self._examples(windows)[0], len(self.dataset.classes), self.config.train)

    def _weights(self, windows: Windows) -> npt.NDArray[np.float32] | None:
        """How much each example counts, by its recording; None: all alike. [examples]"""
        if not self.dataset.weights:
            return None
        part = self.dataset.part("train")
        weights = np.array([self.dataset.weights.get(recording.name, 1.0) for recording in part], np.float32)
        return np.asarray(weights[self._examples(windows)[1]], np.float32)

    def _seen(self, windows: Windows) -> npt.NDArray[np.float64]:
        """Examples of each class in an epoch, each by its recording's weight. [C]"""
        label = self._examples(windows)[0]
        return sampling.seen(label, self._weights(windows), len(self.dataset.classes), self.config.train)

    def _before_training(self, part: list[Recording], windows: Windows, step: StepSettings) -> dict[str, Any]:
        """What history.json says of the time before the first epoch; what is wrong already is told."""
        contents = [recording.content for recording in part]
        taught = np.setdiff1d(np.arange(len(self.dataset.classes)), step.untaught)
        trained = {
            "best_epoch": None,
            "epochs": [],
            "constant_loss": constant_loss(
                (self._seen(windows) if self.kept is None else self._targeted(windows))[taught],
                step.class_weights[taught],
                self.config.model.output,
                label_smoothing=self.config.train.label_smoothing,
                mixup=self.config.augment.mixup,
                focal_gamma=self.config.train.focal_gamma,
            ),
            "warmup_epochs": self.config.train.warmup_epochs,
            "freeze_next": self._backbone.next_freeze_point(self.config.model.freeze),
            "inputs": health.class_inputs(
                self.store, self.dataset.classes, contents, self.dataset.labels(part)
            ),
        }
        self.warn(diagnostics.of_training(trained))
        return trained

    def _loop(
        self, classifier: Classifier, windows: Windows, step: StepSettings, trained: dict[str, Any]
    ) -> Loop:
        settings = self.config.train
        feed, validate = self._feeds(classifier, windows, step.precision)
        how: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "jitter_frames": settings.jitter_frames,
            "sampler": self._sampler(windows),
            "weights": self._weights(windows),
        }
        if classifier.attention is not None:
            batches: Batches | ClipBatches = ClipBatches(windows, feed.source, **how)
        else:
            batches = Batches(feed.source, **how, augment=self._augmenter(windows), targets=self._targets())
        self.journal.say(
            f"  {len(windows):,} patches, {len(batches):,} batches an epoch, "
            f"{sum(int(np.prod(v.shape)) for v in classifier.trainable_variables):,} weights to train"
        )

        said: set[str] = set()

        def look(state: State) -> None:
            found = diagnostics.while_training({**trained, "epochs": state.history})
            # Once each, though the numbers change; and after the last epoch all is told at once.
            self.warn(doubt for doubt in found if doubt.code not in said and not state.finished)
            said.update(doubt.code for doubt in found)

        return Loop(
            Trainer(classifier, settings, step, feed),
            batches,
            settings,
            self.checkpoints,
            validate=validate,
            journal=self.journal,
            interrupts=self.interrupts,
            tensorboard=self.run.logs / "tensorboard",
            after_epoch=look,
        )

    def _targeted(self, windows: Windows) -> npt.NDArray[np.float64]:
        """As `_seen`, of what patches are trained to be. [C]"""
        seen, n_classes = self._seen(windows), len(self.dataset.classes)
        found = np.bincount(windows.label, minlength=n_classes)
        share = np.bincount(windows.label, self.kept, n_classes) / np.maximum(found, 1)
        rest = (seen * (1 - share)).sum() / n_classes if self.config.model.output == "softmax" else 0.0
        return np.asarray(seen * share + rest, np.float64)

    def _targets(self) -> Targets | None:
        if self.kept is None:
            return None
        return Targets(self.kept, len(self.dataset.classes), self.config.model.output)

    def _augmenter(self, windows: Windows) -> Augmenter | None:
        """What is done to training batches, if anything is on."""
        settings, classes = self.config.augment, self.dataset.classes
        if not augment.active(settings):
            return None
        backgrounds = augment.background_columns(classes, self.dataset.background)
        return Augmenter(
            settings,
            self.store.spec,
            windows,
            seed=self.config.train.seed,
            n_classes=len(classes),
            kind=self.config.model.output,
            backgrounds=backgrounds,
        )

    def warn(self, found: Iterable[Doubt]) -> None:
        """Say each doubt once."""
        for doubt in found:
            if doubt.text not in self._told:
                self._told.add(doubt.text)
                word = "warning" if doubt.severity == STRONG else "note"
                self.journal.warn(str(doubt), word=word, code=doubt.code, severity=doubt.severity)

    def has_weights(self) -> bool:
        """Whether the weights that this run's record speaks of are still there, and whole."""
        try:
            found = classifiers.weights_sha256(self.checkpoints.best())
        except CheckpointError:
            return False
        return found == str(self.run.record["weights_sha256"])

    def _precision(self) -> str:
        """A run that goes on keeps the precision it began with, whatever machine it goes on on."""
        begun = self.run.record.get("precision")
        precision, why = (
            (begun, "as the run began")
            if begun
            else devices.choose_precision(
                self.config.train.precision, gains_on_cpu=self._backbone.bfloat16_gain > 1
            )
        )
        self.run.record["precision"] = precision
        self.run.save()
        self.journal.say(f"  precision {precision}: {why}")
        return str(precision)

    def _feeds(self, classifier: Classifier, windows: Windows, precision: str) -> tuple[Feed, Any]:
        """What training is fed with, and how an epoch is judged; what frozen layers make of both is computed now."""
        settings = self.config.train
        frozen = Frozen(
            classifier,
            precision=precision,
            cache=self.store.folder,
            most_bytes=settings.cache_gb * 1e9,
            # Those kept, the best and the next.
            reserved_bytes=_checkpoint_bytes(classifier) * (settings.keep_checkpoints + 2),
            journal=self.journal,
            interrupts=self.interrupts,
            kept=self.run.record.get("frozen_kept"),
        )
        changes = [f"--augment.{name.replace('_', '-')}" for name in augment.active(self.config.augment)]
        jitter = ["--train.jitter-frames"] if settings.jitter_frames else []
        if remark := windows.jitter_remark(settings.jitter_frames):
            self.journal.warn(remark)
        feed = frozen.feed(windows, what="training", moves=" and ".join([*jitter, *changes][:2]))
        if not changes:  # which is done in this process's memory, to frames
            feed = in_memory(feed)
        validate = self._validation(classifier, frozen)
        frozen.drop_unused()
        self.run.record["frozen_kept"] = frozen.kept
        self.run.save()
        return feed, validate

    def _validation(self, classifier: Classifier, frozen: Frozen) -> Any:
        part = self.dataset.part("val")
        if not part:
            self.journal.warn(
                "There are no validation recordings: the epoch with the lowest training loss is kept."
            )
            return dict
        windows = self.windows(part)
        feed = frozen.feed(windows, what="validation")
        scorer = make_scorer(classifier, feed.embed)

        def validate() -> Mapping[str, float | None]:
            scores, live = self.score(classifier, scorer, windows, part, source=feed.source)
            figures = {**_quick_look(scores), "live_embeddings": live}
            return {f"val_{name}": value for name, value in figures.items()}

        return validate

    def windows(self, part: list[Recording], hop_frames: int | None = None) -> Windows:
        contents = [recording.content for recording in part]
        hop_frames = hop_frames or self.store.spec.patch_hop
        return Windows(self.store, contents, self.dataset.labels(part), hop_frames)

    def score(
        self,
        classifier: Classifier,
        scorer: Scorer,
        windows: Windows,
        part: list[Recording],
        advance: Any = lambda n: None,
        source: Source | None = None,
    ) -> tuple[Scores, int | None]:
        """Scores of some recordings, and how many units of the embedding depend on what is heard.

        Args:
            scorer: of the classifier.
            source: what the scorer is given of the windows, if not their frames.

        Raises:
            DivergedError: the weights are so large that scores are NaN or infinite.
        """
        live = health.LiveUnits()
        attention = Attention(classifier)
        watched = noting(noting(scorer, live.note), attention.note)
        found = score_windows(
            watched, source or windows, self.config.evaluate.batch_size, self.interrupts, advance
        )
        if broken := int((~np.isfinite(found)).any(axis=1).sum()):
            raise DivergedError(
                f"The scores of {broken:,} of {len(found):,} patches are NaN or infinite: training has made the "
                "weights too large. Lower --train.learning-rate (try a tenth), or try --train.precision float32."
            )
        scores = Scores(
            classes=classifier.classes,
            recordings=tuple(recording.name for recording in part),
            groups=tuple(self.dataset.places[recording.name].group for recording in part),
            labels=np.array(self.dataset.labels(part), np.int64),
            patch_scores=found,
            patch_recording=windows.recording.astype(np.int64),
            patch_start_s=windows.start_s,
            patch_weight=attention.shares(windows.recording),
        )
        return scores, live.count()


def _checkpoint_bytes(classifier: Classifier) -> int:
    """All weights in float32, and the optimizer's two moments of those that are trained."""
    count: int = sum(math.prod(variable.shape) for variable in classifier.variables)
    trained: int = sum(math.prod(variable.shape) for variable in classifier.trainable_variables)
    return 4 * count + 8 * trained


def _quick_look(scores: Scores) -> dict[str, float | None]:
    """The three figures that choose the best epoch, without intervals."""
    pooled = pool_mean(scores)  # [N, C]
    present = np.unique(scores.labels)
    precisions = [average_precision_score(scores.labels == column, pooled[:, column]) for column in present]
    return {
        "loss": metrics.log_loss(pooled, scores.labels),
        "accuracy": float((pooled.argmax(axis=1) == scores.labels).mean()),
        "macro_ap": float(np.mean(precisions)),
    }


def build_classifier(
    config: Config, classes: tuple[str, ...], precision: str, seed: int | None = -1
) -> Classifier:
    """The network of these settings, with fresh weights drawn from `train.seed` (None: zeros)."""
    built = classifiers.build(
        backbone=config.model.backbone,
        head=config.model.head,
        scores=config.model.output,
        hidden_units=config.model.head_units,
        embedding_activation=config.model.embedding_activation,
        freeze=config.model.freeze,
        classes=classes,
        precision=precision,
        seed=config.train.seed if seed == -1 else seed,
    )
    return replace(built, limit_hz=config.audio.band_limit)


def load_first_weights(classifier: Classifier, config: Config, ancestor: Ancestor | None = None) -> None:
    """Put the checkpoint's weights into the backbone, if there is one; or all weights of the model to begin from.

    Raises:
        CheckpointError: it cannot be read, or is of another network.
    """
    if ancestor is not None:
        first = grown(read_weights(ancestor), classifiers.weights(classifier))
        classifiers.load_weights(classifier, first, source=ancestor.title)
        return
    path = registry.checkpoint_path(config)
    if path is not None:
        variables = registry.read_weights(registry.BACKBONES[config.model.backbone], path)
        network.load_backbone(classifier.backbone, variables, source=str(path))
