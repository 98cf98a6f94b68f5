"""The published classes that a run keeps: measured in the stage `evaluate`, put into the model in the stage `export`.

    Job, Scores of the model ─▶ measure ─▶ `published` of metrics.json ─▶ served ─▶ what the export takes

Importing this loads TensorFlow.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data.scan import Recording
from birdtune.evaluation import published_scores
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.published_scores import Threshold
from birdtune.evaluation.scores import Scores
from birdtune.models import published, registry
from birdtune.models.classifier import Classifier
from birdtune.models.published import Layer, Served
from birdtune.reporting import published_section
from birdtune.runtime.files import read_json
from birdtune.runtime.runs import HISTORY_NAME
from birdtune.runtime.text import plain
from birdtune.training.job import Job
from birdtune.training.scoring import make_scorer, noting, score_windows
from birdtune.training.trained import feed_of


def measure(job: Job, classifier: Classifier, scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """Calibrate the published classes by those that are classes of the data, and compare them with the head.

    Args:
        classifier: its backbone makes the embeddings.
        scores: "val" and "test" → as they are served.

    Returns:
        `published` of metrics.json: as `Kept.row`, `calibration`, `threshold`, `test` as `published_scores.compare`,
        and `others` as `published_scores.of_others` (both None without test recordings); None: no published class is
        kept.

    Raises:
        Interrupted, RetryableError: the stage begins anew.
    """
    kept = published.keep(job.config, job.dataset.classes)
    if kept is None:
        return None
    columns, owned = _members(job, kept.matched)
    label_of = {column: kept.label_of[name] for name, column in kept.matched.items()}
    parts: dict[str, Scores] = {}
    if columns:
        layer = published.read_layer(job.config, columns)
        for name, own in scores.items():
            logits = _logits(job, classifier, layer, job.dataset.part(name), name)
            parts[name] = published_scores.of_matched(own, logits, [label_of[column] for column in columns], owned)
    found = published_scores.fit(parts.get("val"))
    compared = None
    if "test" in parts:
        compared = published_scores.compare(
            parts["test"], scores["test"], owned, found, n_bootstrap=job.config.evaluate.bootstrap,
            seed=job.config.train.seed,
        )  # fmt: skip
    served = published.served(job.config, kept, found)
    highest = {name: _highest(job, classifier, served, own, name) for name, own in scores.items()}
    thresholds = {"recording": Threshold(), "window": Threshold()}
    if "val" in scores:
        of_recordings, of_windows = highest["val"]
        groups = scores["val"].groups
        window_groups = [groups[number] for number in scores["val"].window_recording]
        thresholds["recording"] = published_scores.choose_threshold(of_recordings, groups)
        thresholds["window"] = published_scores.choose_threshold(of_windows, window_groups, windows=True)
    others = None
    if "test" in scores:
        parts_of = zip(thresholds.items(), highest["test"], strict=True)
        others = {name: published_scores.of_others(each, threshold) for (name, threshold), each in parts_of}
    row = {
        **kept.row(), "calibration": found.row(), "test": compared, "others": others,
        "threshold": {name: threshold.row() for name, threshold in thresholds.items()},
    }  # fmt: skip
    for sentence in published_section.sentences(row):
        job.journal.say(f"  {plain(sentence)}")
    return row


def beside(job: Job, classifier: Classifier, test: Scores | None) -> dict[str, Any] | None:
    """The published classifier alone, beside the head that began from it: what the recordings have added.

    Args:
        classifier: its backbone makes the embeddings.
        test: scores of the test recordings as they are served.

    Returns:
        `published_alone` of metrics.json: `backbone`, `same_weights` (whether they differ only in how scores are made
        of their weights), and as `published_scores.compare` without the calibration; None:
        the head did not begin so for two classes or more, the backbone was trained, there is no test recording, or
        labels have times, and whole recordings, which are compared here, may hold every class.
    """
    start = job.head_start
    if start is None or test is None or test.window_targets is not None or not classifier.is_frozen:
        return None
    columns, owned = _members(job, start.columns)
    if len(columns) < published_scores.FEWEST_CLASSES:
        return None
    path = registry.sound_checkpoint(job.config)
    assert path is not None, "the head began from it"
    layer = Layer(*start.weights(registry.read_weights(classifier.backbone, path), columns))
    part = job.dataset.part("test")
    logits = _logits(job, classifier, layer, part, "test")
    matched = published_scores.of_matched(test, logits, [str(column) for column in columns], owned)
    found = published_scores.compare(
        matched, test, owned, Calibration("sigmoid"), n_bootstrap=job.config.evaluate.bootstrap,
        seed=job.config.train.seed,
    )  # fmt: skip
    if found is None:
        return None
    history = read_json(job.run.logs / HISTORY_NAME)
    epochs = [history["best_epoch"], *(row["best_epoch"] for row in history.get("ensemble", []))]
    is_same = job.config.model.output == "softmax" and all(epoch == 0 for epoch in epochs)
    del found["calibration"]
    row = {"backbone": start.backbone, "same_weights": is_same, **found}
    job.journal.say(f"  {plain(published_section.alone(row))}")
    return row


def _members(job: Job, matched: Mapping[str, int]) -> tuple[list[int], list[list[int]]]:
    """Published columns that match, ascending, and the columns of the data's classes that each is."""
    members = defaultdict(list)
    for name, column in matched.items():
        members[column].append(job.dataset.classes.index(name))
    columns = sorted(members)
    return columns, [members[column] for column in columns]


def _logits(
    job: Job, classifier: Classifier, layer: Layer, part: list[Recording], what: str
) -> npt.NDArray[np.float32]:
    """Published logits of all windows of some recordings. [P, m]"""
    parts: list[npt.NDArray[np.float32]] = []
    n_windows = _embed(job, classifier, part, what, lambda embeddings: parts.append(layer.logits(embeddings)))
    return np.concatenate(parts)[:n_windows]  # the last batch is filled up


def _embed(
    job: Job,
    classifier: Classifier,
    part: list[Recording],
    what: str,
    note: Callable[[npt.NDArray[np.float32]], None],
) -> int:
    """Show the embeddings of all windows of some recordings to `note`, a batch at a time; how many there are."""
    windows = job.windows(part, job.config.evaluate.hop_s)
    feed = feed_of(job, classifier, windows, what=what)
    scorer = noting(make_scorer(classifier, feed.embed), note)
    score_windows(scorer, feed.source, job.config.evaluate.batch_size, job.interrupts)
    return len(windows)


def _highest(
    job: Job, classifier: Classifier, served: Served, scores: Scores, part: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The highest of the published scores of each recording of a part, and of each window as a recording. [N], [P]

    `scores` of the part say how windows count.

    Recording by recording: [windows, thousands of classes] would not fit into memory.
    """
    recording, weight = scores.window_recording, scores.window_weight
    if weight is None or weight.ndim > 1:  # attention to the model's own classes says nothing of these
        weight = (1.0 / np.bincount(recording))[recording].astype(np.float32)
    highest = np.zeros(len(scores.recordings), np.float32)
    of_windows = np.zeros(recording.size, np.float32)
    means = np.zeros(len(served.labels), np.float32)  # so far, of the recording that is under way
    done = 0

    def note(embeddings: npt.NDArray[np.float32]) -> None:
        nonlocal means, done
        numbers = recording[done : done + len(embeddings)]
        own = served.windows(embeddings[: numbers.size])
        of_windows[done : done + numbers.size] = served.calibration.clips(own).max(axis=1)
        weighted = weight[done : done + numbers.size, None] * own
        for number in np.unique(numbers):
            means = means + weighted[numbers == number].sum(axis=0)
            last = done + int(np.flatnonzero(numbers == number)[-1])
            if last + 1 == recording.size or recording[last + 1] != number:
                highest[number] = served.calibration.clips(means[None])[0].max()
                means = np.zeros_like(means)
        done += numbers.size

    _embed(job, classifier, job.dataset.part(part), part, note)
    return highest, of_windows


def served(job: Job) -> tuple[Served, dict[str, Any]] | None:
    """What the model serves of the published classes, and what model.json says of it; None: nothing."""
    kept = published.keep(job.config, job.dataset.classes)
    if kept is None:
        return None
    row = read_json(job.run.reports / "metrics.json")["published"]
    calibration = Calibration.of(row["calibration"])
    return published.served(job.config, kept, calibration), {**kept.row(), "threshold": row["threshold"]}
