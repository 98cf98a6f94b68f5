"""Recordings scored by a trained model.

Importing this loads TensorFlow.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, CheckpointError, InputError, naming, shown
from birdtune.models import classifier as classifiers
from birdtune.models import registry
from birdtune.models.classifier import Classifier
from birdtune.models.labels_file import are_named, how_to_name
from birdtune.pipeline import precision
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_exported
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count
from birdtune.serving.predict import LONG, ExportedModel, Outcome, open_model, predict_files
from birdtune.serving.rows import PublishedChoice, Scorer
from birdtune.training import devices

# What rows of predictions are about, beside "both".
OWN, PUBLISHED = "own", "published"


def predict(
    config: Config,
    source: Path | None,
    files: Sequence[Path],
    out: Path,
    features: Path | None,
    journal: Journal,
    interrupts: Interrupts,
    window_s: float | None = None,
    classes: str = OWN,
    published_threshold: float | None = None,
) -> int:
    """Score files with the exported model in `source`, or the newest one of the output folder.

    Args:
        window_s: as `predict_files`.
        classes: "own", or "published" or "both" of a model that keeps published classes.
        published_threshold: from which score on a published class is decided for; None: as the model says.
        source: a version folder of an exported model; or weights that were published with a classifier of their
            own, as YAMNet's with its 521 classes.
    """
    devices.prepare_devices()
    place = source or newest_exported(config)
    with naming("--model" if source is not None else None):
        model = scorer_in(place)
    journal.say(f"predict: {shown(place)}, {count(len(model.classes), 'class')}")
    precision.settle(config, model, journal)
    exported = model if isinstance(model, ExportedModel) else None
    if exported is None and not are_named(model.classes):
        journal.warn(how_to_name(place, len(model.classes)))
    clip_s = None if exported is None else exported.calibration_clip_s
    outcome = predict_files(
        files,
        model,
        out,
        calibration=None if exported is None else exported.calibration,
        thresholds=None if exported is None else exported.thresholds,
        ood_score=None if exported is None else exported.ood_score,
        windows_out=features,
        segment_s=window_s,
        calibration_clip_s=clip_s,
        published=published_choice(model, place, classes, published_threshold, of_windows=window_s is not None),
        genera=() if exported is None else exported.genera,
        sound=config.audio,
        batch_size=devices.windows_at_once(config.evaluate.batch_size, model.front_end),
        longest_s=config.audio.max_hours * 3600,
        check=interrupts.check,
        called=config.as_given,
    )
    code = report(outcome, config.as_given(out), journal)
    if outcome.long and clip_s is not None:
        journal.say(_long(outcome.long, clip_s))
    return code


def published_choice(
    model: Scorer, place: Path, classes: str, threshold: float | None, *, of_windows: bool
) -> PublishedChoice | None:
    """The published classes that are asked for. Raises InputError: the model has none.

    Args:
        classes, threshold: as `predict`.
        of_windows: whether the threshold is that of windows, or of whole recordings.
    """
    if classes == OWN:
        return None
    kept = model.published if isinstance(model, ExportedModel) else None
    if kept is None:
        raise InputError(
            f"--classes {classes}: {shown(place)} keeps no published classes. Give --classes {OWN}, or a model made "
            "with --model.keep-classes."
        )
    own = kept.window_threshold if of_windows else kept.threshold
    return PublishedChoice(kept, alone=classes == PUBLISHED, threshold=threshold or own)


def _long(n: int, calibration_clip_s: float) -> str:
    """What to do about files that are too long for one row."""
    who, rows = ("1 file is", "its row is") if n == 1 else (f"{n:,} files are", "their rows are")
    # Half of the median: a song of that length, wherever it begins, then fills a window from end to end. Windows with
    # two songs are rejected as unknown: of 48 clips among others, 45 were found so, and 37 by windows of their length.
    window_s = max(1.0, float(f"{calibration_clip_s / 2:.2g}"))
    return (
        f"{who} more than {LONG:g} times longer than the recordings that the model was calibrated on (median "
        f"{calibration_clip_s:.3g} s), and {rows} about all of it. `--window {window_s:g}` scores each window."
    )


def report(outcome: Outcome, out: str, journal: Journal) -> int:
    """Report the files: those used, the silent and those not used are as many as were given."""
    for problem in outcome.problems:
        kind = "used in part" if problem.in_part else "used" if problem.is_used else "not used"
        if outcome.silent and problem.problem == "silent":
            kind = "silent"
        journal.say(f"  {kind}: {problem.name}: {problem.problem}, {problem.detail}")
    journal.say(
        f"{shown(out)}: {outcome.windows:,} windows of {outcome.files:,} files"
        + (f" ({outcome.in_part:,} of them in part)" if outcome.in_part else "")
        + (f", {outcome.silent:,} silent" if outcome.silent else "")
        + f", {outcome.unused:,} not used"
    )
    if not outcome.files + outcome.silent:
        raise InputError("None of the files could be used; the reasons stand above.")
    return EXIT_DONE


def scorer_in(place: Path) -> Scorer:
    """An exported model, or published weights with a classifier of their own. Raises CheckpointError."""
    backbone = registry.recognised(place) if place.is_file() else None
    if backbone is None or backbone.published is None:
        return opened(place)
    weights = registry.read_weights(backbone, place)
    return _Compiled(classifiers.published(backbone, weights, backbone.published.read_classes(place)))


class _Compiled:
    """A classifier whose scores a compiled graph computes: operation by operation, BirdNET takes twice as long."""

    def __init__(self, classifier: Classifier) -> None:
        self.classes, self.front_end, self.attend = classifier.classes, classifier.front_end, classifier.attend
        self.pooling, self.in_sequence = classifier.pooling, classifier.in_sequence
        self.scores = compiled(classifier.scores, classifier.front_end)


def compiled(function: Callable[[Any], Any], front_end: FrontEnd) -> Callable[[Any], Any]:
    """A function of windows [n, window_rows, ...] float32, compiled once for any n."""
    windows = tf.TensorSpec((None, *front_end.window_shape), tf.float32)
    compute: Callable[[Any], Any] = tf.function(function, [windows], autograph=False)
    return compute


def opened(place: Path) -> ExportedModel:
    """An exported model that takes sound. Raises CheckpointError."""
    model = open_model(place)
    if not model.front_end.has_sound:
        raise CheckpointError(
            f"{shown(place)}: takes embeddings, and no sound. Call its signature `embeddings`, or export it with the "
            "backbone that made them: `run` with --model.checkpoint."
        )
    return model
