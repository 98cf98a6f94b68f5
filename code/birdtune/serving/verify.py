"""An exported model, from its files alone: opened to be used, or run in a fresh process to be verified.

    folder ─▶ open_model ─▶ ExportedModel, a classifier without Keras and without a checkpoint
    folder, inputs ─▶ answers (in a fresh_process) ─▶ what its signatures put out
    its scores in float32 and in bfloat16 ─▶ InBfloat16: whether `predict` may compute in bfloat16

In that process no Keras, no variable and no graph of the training side is there, so that it computes what a server will
compute. Nothing here imports training code, nor TensorFlow before a model is loaded.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import BirdtuneError, CheckpointError, ExportError, RetryableError, shown
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import LEAST, Thresholds
from birdtune.evaluation.genera import Genera
from birdtune.models import registry
from birdtune.models.graph_safety import require_numbers_only
from birdtune.models.head_kinds import Pooling
from birdtune.runtime import bfloat16
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.parsing import finite
from birdtune.runtime.tensorflow_import import load_tensorflow
from birdtune.runtime.workers import Crashed, Isolated
from birdtune.serving import backbone_file

Arrays = dict[str, npt.NDArray[Any]]

# Of `model.json`: raised when a reader of an older one would misunderstand it.
FORMAT = 4
# Beside labels.csv: the published classes that the model serves as well.
PUBLISHED_LABELS = "published_labels.csv"

# Scores in bfloat16 that differ by no more are used.
ALIKE = 0.01

# A few hundred megabytes of activations at VGGish's full size, however many windows there are.
_BATCH = 64


@dataclass(frozen=True)
class PublishedClasses:
    """The classes of the backbone's published classifier that a model serves beside its own."""

    labels: tuple[str, ...]  # [M]
    windows: Callable[[Any], Any]  # embeddings of windows [N, K] → their scores [N, M]
    calibration: Calibration  # already in the scores; its part for clips is applied to their mean
    # From which score on one of them is decided for, of a recording and of a part of it as short as a window.
    threshold: float = LEAST
    window_threshold: float = LEAST


@dataclass(frozen=True)
class InBfloat16:
    """How a model's scores of validation windows change where products are of bfloat16; in model.json."""

    windows: int
    largest_difference: float  # of a score, which lies in 0…1
    other_decisions: int  # windows for which another class is decided

    @classmethod
    def between(cls, exact: Any, narrow: Any, thresholds: Thresholds) -> "InBfloat16":
        """Scores [N, C] in float32 and bfloat16."""
        others = thresholds.decide(exact) != thresholds.decide(narrow)
        differences = np.nan_to_num(np.abs(narrow - exact), nan=1.0)  # scores cannot differ by more
        return cls(len(exact), float(differences.max(initial=0.0)), int(others.sum()))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "InBfloat16":
        """As it stands in model.json. Raises LookupError, TypeError or ValueError if it does not."""
        return cls(int(row["windows"]), finite(row["largest_difference"]), int(row["other_decisions"]))

    @property
    def agrees(self) -> bool:
        """Whether scores in bfloat16 will do: alike to a hundredth, with the same decisions."""
        return self.largest_difference <= ALIKE and not self.other_decisions


@dataclass(frozen=True)
class ExportedModel:
    """A model that `export` wrote; it scores and embeds as a `models.classifier.Classifier` does."""

    classes: tuple[str, ...]  # position = column of the scores
    facts: dict[str, Any]  # model.json
    front_end: FrontEnd  # what its windows are made with
    windows: Callable[[Any], dict[str, Any]]
    attend: Callable[[Any], Any]  # embeddings [N, K] → weight of each window [N], as a `Classifier`'s
    # Mean embeddings of recordings, silence left out [N, K] → OOD scores [N]; None: the model has no OOD statistics.
    ood_score: Callable[[Any], Any] | None
    calibration: Calibration  # already in the scores; its part for clips is applied to their mean
    thresholds: Thresholds | None
    detection_thresholds: Thresholds | None = None  # of windows, chosen on events; None: those above
    published: PublishedClasses | None = None
    genera: tuple[Genera, ...] = ()  # and then families, that a recording can be decided for where no class passes
    # Embeddings of windows [N, K], and which recording each is of [N] → their scores [N, C]; None: no head over time.
    sequence: Callable[[Any, Any], Any] | None = None
    in_bfloat16: InBfloat16 | None = None  # as its export measured it; None: it did not

    @property
    def pooling(self) -> Pooling:
        """How its scores of windows come to be those of recordings."""
        weights = len(self.classes) if self.facts.get("clip_pooling") == "sed-attention" else 1
        return Pooling(int(self.facts.get("context_windows", 0)), weights, int(self.facts.get("embedding_size", 0)))

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        """As a `Classifier`'s. [N, K], [N] → [N, C]"""
        assert self.sequence is not None, "only of a head over time"
        return self.sequence(embeddings, recording)

    @property
    def calibration_clip_s(self) -> float | None:
        """Median seconds of the recordings that calibration, thresholds and OOD limit rest on; None: not known."""
        seconds = self.facts.get("calibration_clip_s")
        return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < math.inf else None

    def scores(self, windows: Any) -> tuple[Any, Any]:
        """Windows [N, window_rows, ...] → scores [N, C] and embeddings [N, K], both float32."""
        found = self.windows(windows)
        return found["scores"], found["embeddings"]

    def embed(self, windows: Any) -> Any:
        """Windows [N, window_rows, ...] → embeddings [N, K] float32."""
        return self.windows(windows)["embeddings"]


def open_model(folder: Path) -> ExportedModel:
    """Load the version folder of an exported model, if its graph does nothing but compute.

    Raises:
        CheckpointError: there is none, it is damaged, another birdtune wrote it, or it could do more than compute.
        SettingsError: its backbone is an ONNX file, and the extra `onnx` is not installed.
    """
    facts = read_json(folder / "model.json")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{shown(folder)}: is not a model that this birdtune exported (model.json is missing or of "
            "another format). Expected a version folder, e.g. output/model/birdtune/1."
        )
    import tensorflow as tf  # takes seconds, which a folder that is no model should not cost

    try:
        classes, front_end = tuple(facts["classes"]), registry.read_front_end(facts["front_end"])
        calibration = Calibration.of(facts["calibration"])
        thresholds, of_detections = (
            Thresholds.of(row) if (row := facts.get(name)) else None for name in ("thresholds", "detection_thresholds")
        )
        genera = tuple(Genera.of(row, classes) for name in ("genera", "families") if (row := facts.get(name)))
        in_bfloat16 = None if (row := facts.get("bfloat16")) is None else InBfloat16.of(row)
        kept = facts.get("published")
        labels = tuple(row["class"] for row in read_csv(folder / PUBLISHED_LABELS)) if kept else ()
        of_published = Calibration.of(kept["calibration"]) if kept else None
        counts_from = [finite(kept["threshold"][of]["score"]) for of in ("recording", "window")] if kept else []
        require_numbers_only(folder)
        loaded: Any = tf.saved_model.load(str(folder))
        embed = backbone_file.opened(folder, facts)
    except (OSError, ValueError, LookupError, TypeError, tf.errors.OpError) as fault:
        reason = shown(" ".join(str(fault).split())[:300])
        raise CheckpointError(
            f"{shown(folder)}: cannot be loaded ({type(fault).__name__}: {reason}). Export the model again."
        ) from fault
    if front_end is None:
        raise CheckpointError(
            f"{shown(folder)}: model.json describes features that this birdtune does not make. Use the birdtune that "
            "exported it, or export the model again."
        )
    ood = (lambda pooled: loaded.ood_score(tf.constant(pooled, tf.float32))) if hasattr(loaded, "ood_score") else None
    # Through `loaded`: the function alone would not keep its variables alive.
    return ExportedModel(
        classes,
        facts,
        front_end,
        lambda windows: loaded.windows(tf.constant(windows if embed is None else embed(windows)[:, None], tf.float32)),
        lambda embeddings: loaded.attention(tf.constant(embeddings, tf.float32)),
        ood,
        calibration,
        thresholds,
        of_detections,
        None if of_published is None else PublishedClasses(
            labels, lambda embeddings: loaded.published(tf.constant(embeddings, tf.float32)), of_published,
            *counts_from,
        ),
        genera,
        (
            (lambda embeddings, recording: loaded.sequence(
                tf.constant(embeddings, tf.float32), tf.constant(recording, tf.int32)
            )["scores"])
            if hasattr(loaded, "sequence") else None
        ),
        in_bfloat16,
    )  # fmt: skip


@contextlib.contextmanager
def fresh_process() -> Iterator[Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Arrays]]:
    """A process of its own that loads a model and runs its signatures; TensorFlow, already while a model is written.

    Yields:
        a function that does what `answers` does. It raises ExportError where that failed, RetryableError where the
        process was killed.

    Raises:
        RetryableError: no process can be started.
    """
    with Isolated(_apart, _without_gpu) as process:
        process.start()

        def fresh_answers(folder: Path, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Arrays:
            try:
                return dict(process.items((folder.absolute(), dict(inputs), dict(facts))))
            except Crashed as fault:
                raise RetryableError(
                    f"{shown(folder)}: the process that verifies the model was killed, most likely for want "
                    "of memory; it needs 1 GB more than the model's files. Run again to continue with the export."
                ) from fault

        yield fresh_answers


def _without_gpu() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the process that trains may hold all memory of the GPU
    load_tensorflow()


def _apart(task: tuple[Path, Arrays, dict[str, Any]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    folder, inputs, facts = task
    try:
        yield from answers(folder, inputs, facts).items()
    except BirdtuneError:
        raise
    except Exception as fault:  # whatever TensorFlow makes of it, and of which not every kind can be pickled
        reason = shown(" ".join(str(fault).split())[:1000])
        raise ExportError(
            f"{shown(folder)}: the exported model cannot be loaded and run in a fresh process "
            f"({type(fault).__name__}: {reason}); nothing was put in place."
        ) from None


def answers(folder: Path, inputs: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> Arrays:
    """What the model in `folder` puts out: `outputs` [n, C] and `embeddings` [n, K] of windows, and of waveforms the
    outputs of `sound` and `embed` under names like `sound.scores`; or of the embeddings those of `embeddings`, where it
    takes no sound. `float32` and `bfloat16` [v, C] of `validation`.

    Args:
        inputs: `windows` [n, window_rows, ...], and for `sound` and `embed` `waveforms` [m, samples] and `lengths` [m];
            `validation` [v, window_rows, ...], to be scored in float32 and in bfloat16.
        facts: what model.json will say.
    """
    load_tensorflow()
    import tensorflow as tf

    require_numbers_only(folder)  # what is refused later must not be exported
    model: Any = tf.saved_model.load(str(folder))
    embed, windows = backbone_file.opened(folder, facts), inputs["windows"]
    windows = windows if embed is None else embed(windows)[:, None]

    def of_parts(compute: Callable[[Any], Any], windows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        starts = range(0, len(windows), _BATCH)
        return np.concatenate([compute(tf.constant(windows[start : start + _BATCH])) for start in starts])

    found = {
        "outputs": of_parts(lambda part: model.signatures["serving_default"](inputs=part)["outputs"], windows),
        "embeddings": of_parts(lambda part: model.windows(part)["embeddings"], windows),
    }
    if (validation := inputs.get("validation")) is not None:
        found["float32"] = of_parts(lambda part: model.windows(part)["scores"], validation)
        with bfloat16.used():
            found["bfloat16"] = of_parts(lambda part: model.windows(part)["scores"], validation)
    if "sequence" in model.signatures:
        of_one = tf.zeros(len(found["embeddings"]), tf.int32)
        scores = model.signatures["sequence"](embeddings=tf.constant(found["embeddings"]), recording=of_one)["scores"]
        found["sequence.scores"] = scores.numpy()
    if "embeddings" in model.signatures:
        of_embeddings = model.signatures["embeddings"](embeddings=tf.constant(found["embeddings"]))
        return {**found, "embeddings.scores": of_embeddings["scores"].numpy()}
    for signature in ("sound", "embed"):
        outputs = model.signatures[signature](
            waveforms=tf.constant(inputs["waveforms"]), lengths=tf.constant(inputs["lengths"])
        )
        found |= {f"{signature}.{name}": value.numpy() for name, value in outputs.items()}
    return found
