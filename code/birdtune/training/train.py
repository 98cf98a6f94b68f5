"""The stage `train`: windows of the training recordings → the weights of the best epoch.

    Job ─▶ train ─▶ checkpoints/<v>, logs/<v>/history.json
    Job ─▶ refit ─▶ checkpoints/<v>/refit: the same on training and validation recordings, for as many epochs
    Job ─▶ again ─▶ checkpoints/<v>/member-2, …: with other validation recordings (`ensemble`)

Importing this loads TensorFlow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data import augment, sampling, split
from birdtune.data.augment import Augmenter
from birdtune.data.batches import Augment, Batches, Windows
from birdtune.data.clips import ClipBatches
from birdtune.data.copies import CopyOf, FromCopies
from birdtune.data.sampling import Examples
from birdtune.data.targets import WindowTargets
from birdtune.evaluation import diagnostics
from birdtune.evaluation.part import quick_look
from birdtune.evaluation.window_answers import majority, with_class
from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.models.losses import class_weights, constant_loss
from birdtune.runtime.files import read_json, write_json
from birdtune.runtime.runs import HISTORY_NAME
from birdtune.runtime.text import count, number
from birdtune.settings import TrainSettings
from birdtune.training import devices, health
from birdtune.training.checkpoints import State
from birdtune.training.first_weights import build_classifier, load_first_weights, with_head_rate
from birdtune.training.inputs import Feed, Frozen, in_memory
from birdtune.training.job import Job
from birdtune.training.loop import Loop, Validation
from birdtune.training.scoring import make_scorer
from birdtune.training.served_model import SPLIT_NAME
from birdtune.training.step import StepSettings, Trainer
from birdtune.training.trained import score

Floats = npt.NDArray[np.float64]
Shares = npt.NDArray[np.float32]
# What the best epoch is chosen by.
WINDOWS, RECORDINGS = "windows", "recordings"


def train(
    job: Job, *, label_shares: Shares | None = None, after_epoch: Callable[[State], None] = lambda state: None
) -> State:
    """Train to the end or to an interruption; leaves checkpoints/<v> and logs/<v>/history.json.

    Args:
        label_shares: share of its recording's labels that each training window keeps, as `WindowTargets.kept`.
        after_epoch: called once an epoch is saved and logged; may raise to end the training.

    Raises:
        DivergedError: the loss, the gradients, the weights or the scores are not finite any more.
        ProcessLostError: of several processes one ended.
    """
    if not job.world.is_chief:
        return again(job, label_shares)
    config, record = job.config, job.run.record
    if lost := job.checkpoints.lost():
        job.journal.warn(f"{lost} The best epoch's weights are lost; training begins anew.")
        job.checkpoints.clear()
    record.update(verdict=None, warnings=[], refit=None, ensemble=None)  # those of an earlier start of this run
    precision = _precision(job)
    windows = job.windows(job.dataset.part("train"), config.train.hop_s)
    examples = _examples(job, windows, label_shares)
    classifier = _with_first_weights(job, precision)
    first = health.sampled(classifiers.trained_weights(classifier))
    step = _step(job, examples, precision)
    history = _history(job, examples, step)
    job.warn(diagnostics.of_training(history))
    state = _loop(job, classifier, windows, examples, step, history, after_epoch).run()
    best = job.checkpoints.best()
    history |= {
        "best_epoch": state.best["epoch"] if state.best is not None else None,
        "epochs": state.history,
        "moved": health.distances(first, health.sampled(best)),
    }
    write_json(job.run.logs / HISTORY_NAME, history)
    # A later model must not be compared with this one on what this one learnt from.
    split.write(job.run.logs / SPLIT_NAME, job.dataset.recordings, job.dataset.places)
    found = diagnostics.of_training(history)
    record["weights_sha256"] = classifiers.weights_sha256(best)
    record["warnings"] = [each.row() for each in found]
    job.warn(found)
    return state


def again(job: Job, label_shares: Shares | None = None, epochs: int | None = None) -> State:
    """Another training of the run from its first weights, which leaves checkpoints alone; or, in a process that is not
    the chief's, its part of each batch of the chief's training.

    Args:
        epochs: for which the learning rate falls; None: as the settings say.

    Raises:
        DivergedError: as `train`.
    """
    if job.world.is_chief and (lost := job.checkpoints.lost()):
        job.journal.warn(f"{lost} This training, {job.later}, begins anew.")
        job.checkpoints.clear()
    precision = _precision(job)
    windows = job.windows(job.dataset.part("train"), job.config.train.hop_s)
    examples = _examples(job, windows, label_shares)
    classifier, step = _with_first_weights(job, precision), _step(job, examples, precision)
    return _loop(job, classifier, windows, examples, step, {}, lambda state: None, epochs).run()


def refit(job: Job, *, label_shares: Shares | None = None) -> None:
    """Train once more, from the same first weights, on all recordings but those of test.

    For as many epochs as led to the best one, but the learning rate falls to zero within them: there is nothing left to
    choose by, and an epoch at a high rate that was not chosen is a matter of luck (docs/tuning.md).

    Args:
        job: the run's second training, as `Job.served`; the first one is done.
        label_shares: as `train`, of the windows of all these recordings.

    Raises:
        DivergedError: as `train`.
    """
    trained = dict(read_json(job.run.logs / HISTORY_NAME)) if job.world.is_chief else {}
    epochs, part = job.world.broadcast(int(trained.get("best_epoch", 0))), job.dataset.part("train")
    if not job.world.is_chief:
        again(job, label_shares, epochs)
        return
    sizes = f"{count(len(part), 'recording')}, {count(epochs, 'epoch')}"
    what = f"once more on training and validation: {sizes}" if epochs else "nothing to train once more: epoch 0 is best"
    job.journal.say(f"  {what}")
    state = again(job, label_shares, epochs)
    row = {"epochs": epochs, "recordings": len(part)}
    write_json(job.run.logs / HISTORY_NAME, {**trained, "refit": {**row, "history": state.history}})
    job.run.record.update(refit=row, weights_sha256=classifiers.weights_sha256(job.checkpoints.best()))


def _with_first_weights(job: Job, precision: str) -> Classifier:
    """The network as training begins.

    Also where checkpoints stand: if none of them is whole, training begins anew, and from these weights.
    """
    classifier = build_classifier(job.config, job.dataset.classes, precision)
    if job.world.is_chief:
        load_first_weights(classifier, job.config, job.base, job.head_start)
    job.world.share(classifier.variables)
    return classifier


def _loss_terms(job: Job, examples: Examples, weights: Shares) -> float:
    """How many classes an example's loss sums up (see `example_losses`): with softmax it is one comparison of all."""
    if job.config.model.output == "softmax":
        return 1.0
    sums = sampling.totals(examples, job.config.train, weights)
    return float(np.delete(sums.known, job.untaught).sum() / sums.examples)


def _step(job: Job, examples: Examples, precision: str) -> StepSettings:
    weights = class_weights(_per_class(job, examples), job.config.train.class_weight_alpha)
    return StepSettings(
        dropout=job.config.model.dropout,
        class_weights=weights,
        precision=precision,
        loss_terms=_loss_terms(job, examples, weights),
        untaught=job.untaught,
        n_kept=len(job.base.classes) if job.base is not None else 0,
    )


# ---- what is learnt from -------------------------------------------------------------------------


def _examples(job: Job, windows: Windows, label_shares: Shares | None) -> Examples:
    """What the loss averages over: windows, or recordings with a head that learns from these."""
    part, weights = job.dataset.part("train"), None
    if job.dataset.weights:
        weights = np.array([job.dataset.weights.get(recording.name, 1.0) for recording in part], np.float32)
    targets = WindowTargets(job.dataset.targets(part), windows, job.config.model.output, label_shares)
    return Examples(targets, weights, by_recording=job.config.model.by_recording)


def _per_class(job: Job, examples: Examples) -> Floats:
    """Examples of each class in an epoch, by weight; each with all of its label. [C]"""
    whole = replace(examples, targets=replace(examples.targets, kept=None))
    return sampling.totals(whole, job.config.train).positive


def _history(job: Job, examples: Examples, step: StepSettings) -> dict[str, Any]:
    """What history.json holds before the first epoch."""
    config, part = job.config, job.dataset.part("train")
    taught = np.setdiff1d(np.arange(len(job.dataset.classes)), step.untaught)
    contents = [recording.content for recording in part]
    positive = job.dataset.targets(part).positive()
    sums = sampling.totals(examples, config.train, step.class_weights)
    return {
        "best_epoch": None,
        "best_epoch_by": _best_epoch_by(job),
        "epochs": [],
        "constant_loss": constant_loss(
            sums.positive[taught],
            config.model.output,
            label_smoothing=config.train.label_smoothing,
            known=sums.known[taught],
            examples=sums.examples,
            mixup=1.0 - (1.0 - config.augment.mixup) * (1.0 - config.augment.cutmix),
            focal_gamma=config.train.focal_gamma,
        ) / step.loss_terms,
        "warmup_epochs": config.train.warmup_epochs,
        "freeze_next": job.backbone.next_freeze_point(config.model.freeze_point),
        "inputs": health.class_inputs(job.store, job.dataset.classes, contents, positive),
    }


def _precision(job: Job) -> str:
    """A run that goes on keeps the precision it began with, whatever machine it goes on on; all processes have it."""
    precision, why = job.run.record.get("precision"), "as the run began"
    if not precision and job.world.is_chief:
        wanted, gains = job.config.train.precision, job.backbone.bfloat16_gain > 1
        precision, why = devices.choose_precision(wanted, gains_on_cpu=gains)
    precision = job.world.broadcast(precision)
    job.run.record["precision"] = precision
    job.run.save()
    job.journal.say(f"  precision {precision}: {why}")
    return str(precision)


# ---- the loop ------------------------------------------------------------------------------------


def _loop(
    job: Job,
    classifier: Classifier,
    windows: Windows,
    examples: Examples,
    step: StepSettings,
    history: Mapping[str, Any],
    after_epoch: Callable[[State], None],
    epochs: int | None = None,
) -> Loop:
    settings = with_head_rate(job.config.train, job.head_start)
    if epochs is not None:
        settings = settings.model_copy(update={"epochs": epochs})
    augmenter = _augmenter(job, windows, examples.targets)
    feed, validate = _feeds(job, classifier, windows, augmenter)
    batches = _batches(job, classifier, windows, examples, feed, augmenter)
    n_weights = sum(math.prod(variable.shape) for variable in classifier.trainable_variables)
    job.journal.say(
        f"  {len(windows):,} windows, {len(batches):,} batches an epoch, {n_weights:,} weights to train"
    )
    reported: set[str] = set()

    def report(state: State) -> None:
        # Of a later training, the first has said it already.
        found = [] if job.later else diagnostics.while_training({**history, "epochs": state.history})
        # Once each, though the numbers change; after the last epoch `train` reports all of them.
        job.warn(each for each in found if each.code not in reported and not state.finished)
        reported.update(each.code for each in found)
        after_epoch(state)

    part = job.world.part
    return Loop(
        Trainer(classifier, settings, step, feed, part=part, examples=batches.batch_size, places=batches.places),
        batches,
        settings,
        job.checkpoints,
        validate=validate,
        journal=job.journal,
        interrupts=job.interrupts,
        # TensorBoard shows a folder inside as a run of its own.
        tensorboard=job.run.logs / "tensorboard" / job.later,
        after_epoch=report,
        keep_last=job.refit,
        title=job.later,
        untrained=_untrained(job, settings.epochs),
        of_windows=_best_epoch_by(job) == WINDOWS,
        world=job.world,
    )


def _untrained(job: Job, epochs: int) -> str:
    """What the head begins from, where validation may choose that, or has chosen it for the second training; else "".

    Not a base model: validation has chosen it before, or it has learnt from these recordings (`train.refit`). Whether
    what was learnt since is better, the gate decides by test.
    """
    start = job.head_start
    if start is None or start.base is not None or not start.columns:
        return ""
    is_choice = not epochs if job.refit else bool(job.dataset.part("val"))
    return f"{start.backbone}'s own classifier" if is_choice else ""


def _batches(
    job: Job, classifier: Classifier, windows: Windows, examples: Examples, feed: Feed, augmenter: Augmenter | None
) -> Batches | ClipBatches:
    settings = job.config.train
    how: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "jitter_rows": job.store.spec.rows(settings.jitter_s),
        "sampler": sampling.sampler(examples, settings),
        "weights": examples.weights,
        "part": job.world.part,
    }
    augmented: Augment | None = augmenter
    if augmenter is not None and feed.n_copies:
        augmented = FromCopies(augmenter, windows, feed.source, feed.n_copies)
    if classifier.by_recording:
        how["context"] = classifier.pooling.context
        return ClipBatches(feed.source, examples.targets, **how, augment=augmented)
    return Batches(feed.source, examples.targets, **how, augment=augmented)


def _augmenter(job: Job, windows: Windows, targets: WindowTargets) -> Augmenter | None:
    """Augmentation of training batches, if any is on."""
    settings, classes = job.config.augment, job.dataset.classes
    if not augment.active(settings):
        return None
    return Augmenter(
        settings,
        job.store.spec,
        windows,
        targets,
        seed=job.config.train.seed,
        kind=job.config.model.output,
        backgrounds=augment.background_columns(classes, job.dataset.background),
    )


def _feeds(
    job: Job, classifier: Classifier, windows: Windows, augmenter: Augmenter | None
) -> tuple[Feed, Validation]:
    """What training reads, and validation after an epoch; the outputs of frozen layers are computed here, once."""
    settings = job.config.train
    frozen = Frozen(
        classifier,
        store=job.store,
        most_bytes=settings.cache_gb * 1e9,
        reserved_bytes=_reserved_bytes(classifier, settings),
        journal=job.journal,
        interrupts=job.interrupts,
        kept=job.run.record.get("frozen_kept"),
    )
    changes = [f"--augment.{name.replace('_', '-')}" for name in augment.active(job.config.augment)]
    copies: list[CopyOf] = []
    if augmenter is not None and job.makes_copies:
        copies, changes = [CopyOf(augmenter, windows, 1 + k) for k in range(job.config.augment.copies)], []
    jitter = ["--train.jitter-s"] if settings.jitter_s else []
    if (remark := windows.jitter_remark(settings.jitter_s)) and not job.later:
        job.journal.warn(remark)
    what = "training and validation" if job.refit else "training"
    moves = " and ".join([*jitter, *changes][:2])
    if job.world.is_chief:
        frozen.choose(windows, what=what, moves=moves, times=1 + len(copies))
    frozen.kept = job.world.broadcast(frozen.kept)
    feed = job.world.in_turn(lambda: frozen.with_copies(windows, copies, what=what, moves=moves))
    if not changes:  # which are made in this process's memory, of frames
        feed = in_memory(feed)
    if not job.world.is_chief:
        return feed, dict
    validate = _validation(job, classifier, frozen)
    frozen.drop_unused()
    job.run.record["frozen_kept"] = frozen.kept
    job.run.save()
    return feed, validate


def _validation(job: Job, classifier: Classifier, frozen: Frozen) -> Validation:
    part = job.dataset.part("val")
    if job.refit:
        return dict
    if not part:
        job.journal.warn("There are no validation recordings: the epoch with the lowest training loss is kept.")
        return dict
    windows, of_windows = job.windows(part, job.config.evaluate.hop_s), _best_epoch_by(job) == WINDOWS
    if of_windows:
        job.journal.say(f"  labels have times: the best epoch is chosen by {_of_windows(job, classifier, windows)}")
    feed = frozen.feed(windows, what="validation")
    scorer = make_scorer(classifier, feed.embed)

    def validate() -> Mapping[str, float | None]:
        scores, live = score(job, classifier, scorer, windows, part, source=feed.source)
        figures = {**quick_look(scores, classifier.kind, of_windows=of_windows), "live_embeddings": live}
        return {f"val_{name}": value for name, value in figures.items()}

    return validate


def _of_windows(job: Job, classifier: Classifier, windows: Windows) -> str:
    """What the best epoch is chosen by where that is the validation windows, in words."""
    targets, known = WindowTargets(job.dataset.targets(job.dataset.part("val")), windows).all()
    which = ""
    if classifier.kind == "softmax":
        known, which = known & with_class(targets, known), " with a class"
    answer, share = majority(targets, known, classifier.classes)
    return (
        f"the mean of accuracy and average precision of the validation windows{which}; majority baseline of accuracy "
        f"{number(share)} ({answer})"
    )


def _best_epoch_by(job: Job) -> str:
    """What the best epoch is chosen by: what is learnt, so windows where they have labels of their own.

    A head that learns recordings is chosen by them, whatever times their labels have.
    """
    part = job.dataset.part("val")
    is_of_windows = not job.config.model.by_recording and job.dataset.targets(part).have_times
    return WINDOWS if is_of_windows else RECORDINGS


def _reserved_bytes(classifier: Classifier, settings: TrainSettings) -> int:
    """What checkpoints will take: all weights in float32, and the optimizer's two moments of those that are trained."""
    weights: int = 4 * sum(math.prod(variable.shape) for variable in classifier.variables)
    trained: int = sum(math.prod(variable.shape) for variable in classifier.trainable_variables)
    # Those kept, the best and the next.
    of_checkpoints = (weights + 8 * trained) * (settings.keep_checkpoints + 2)
    return of_checkpoints + (settings.epochs * weights if settings.keep_weights == "every-epoch" else 0)
