"""Where labels have times: how well detections at the model's thresholds meet the annotated events.

    scores of windows, labels with times, Thresholds ─▶ compare ─▶ annotated and detected events of each recording
    these ─▶ measure ─▶ F1 by events and by segments

Detections are those that `predict --format` makes without settings, but for rejection as unknown, which needs their
embeddings; windows follow one another as those that are evaluated do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtune.data.dataset import Dataset
from birdtune.data.labels import IGNORED, Label, class_names_of
from birdtune.data.scan import Recording
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.detections import Rule, detect
from birdtune.evaluation.event_metrics import (
    LEAST_OVERLAP,
    SEGMENT_S,
    Event,
    by_overlap,
    event_counts,
    segment_counts,
    summary,
)
from birdtune.evaluation.scores import Scores


@dataclass(frozen=True)
class Compared:
    """Annotated and detected events of a recording; columns count the classes of `compare`.

    Attributes:
        number: of the recording.
        uncounted: detections where something was marked that is not to be learnt: neither right nor false.
    """

    number: int
    name: str
    duration_s: float
    annotated: list[Event]
    detected: list[Event]
    uncounted: list[Event]


def marked_classes(dataset: Dataset, part: Sequence[Recording]) -> list[str]:
    """Classes that are annotated wherever they occur in some recordings; none where that is not known."""
    labels = dataset.targets(part)
    if not labels.have_times or not labels.rule.negative:  # beside the labels, nobody knows what is there
        return []
    return [name for name, is_marked in zip(dataset.classes, labels.marked, strict=True) if is_marked]


def compare(
    scores: Scores, recordings: Sequence[Recording], thresholds: Thresholds, background: Sequence[str],
    *, marked: Sequence[str], window_s: float, smooth_windows: int,
) -> tuple[list[str], list[Compared]]:  # fmt: skip
    """Annotated and detected events of some recordings.

    Recordings that have a class without times are left out, as nobody knows where in them it is, and so are those of
    which parts were reviewed and no more, as nobody knows what is beside these. Those of background count, with all
    detections in them false.

    Args:
        scores: of the recordings, in their order.
        background: names of the classes that are never a decision.
        marked: names of the classes that are annotated wherever they occur.
        smooth_windows: as of `Rule`.

    Returns:
        the classes that are marked and can be a decision, and the recordings that are not left out.
    """
    columns = [c for c, name in enumerate(scores.classes) if name in marked and thresholds.asked[c]]
    place = {scores.classes[c]: k for k, c in enumerate(columns)}
    rule = Rule.of(thresholds, smooth_windows=smooth_windows).only(columns)
    number_of = {c: k for k, c in enumerate(columns)}
    found = []
    for number, recording in enumerate(recordings):
        if not says_when(recording.labels, background):
            continue
        own, duration_s = scores.window_recording == number, recording.facts.duration_s
        start_s = scores.window_start_s[own].astype(np.float64)
        given = detect(start_s, scores.window_scores[own], rule, window_s=window_s, end_s=duration_s)
        annotated = [
            Event(place[label.class_name], label.start_s, min(label.end_s, duration_s)) for label in recording.labels
            if label.has_times and label.weight and label.class_name in place and label.start_s < duration_s
        ]
        unknown = [label for label in recording.labels if label.class_name == IGNORED or not label.weight]
        detected: list[Event] = []
        uncounted: list[Event] = []
        for one in given:
            event = Event(number_of[one.column], one.start_s, one.end_s)
            (uncounted if _is_unknown(event, annotated, unknown, place) else detected).append(event)
        found.append(Compared(number, recording.name, duration_s, annotated, detected, uncounted))
    return list(place), found


def measure(
    classes: Sequence[str], compared: Sequence[Compared], groups: Sequence[str], *, n_bootstrap: int, seed: int
) -> dict[str, Any] | None:
    """F1 of the detections in some recordings.

    Args:
        classes, compared: of `compare`.
        groups: the source recording of each recording that `compare` was given.

    Returns:
        `events`, `segments`: as `event_metrics.summary`; `recordings`, `recordings_left_out`, `least_overlap`,
        `segment_s`; None where no event is annotated.
    """
    if not any(one.annotated for one in compared):
        return None
    n, fits = len(classes), by_overlap()
    by_events = [event_counts(one.annotated, one.detected, n, fits) for one in compared]
    by_segments = [segment_counts(one.annotated, one.detected, n, one.duration_s) for one in compared]
    own = [groups[one.number] for one in compared]
    return {
        "events": summary(by_events, own, classes, n_bootstrap=n_bootstrap, seed=seed),
        "segments": summary(by_segments, own, classes, n_bootstrap=n_bootstrap, seed=seed),
        "recordings": len(compared), "recordings_left_out": len(groups) - len(compared),
        "least_overlap": LEAST_OVERLAP, "segment_s": SEGMENT_S,
    }  # fmt: skip


def says_when(labels: Sequence[Label], background: Sequence[str]) -> bool:
    """Whether it is known when each class that can be a decision is in a recording.

    A reviewed part says nothing of the rest: neither where there are no other labels, nor of a class of the folder.
    """
    others = [label for label in labels if not label.is_reviewed]
    with_times = {label.class_name for label in others if label.has_times}
    return (bool(others) or not labels) and set(class_names_of(others)) <= with_times.union(background)


def _is_unknown(one: Event, annotated: Sequence[Event], unknown: Sequence[Label], place: dict[str, int]) -> bool:
    """Whether a detection is where nobody knows, and of no annotated event."""

    def overlaps(start_s: float, end_s: float) -> bool:
        return start_s < one.end_s and one.start_s < end_s

    if any(event.column == one.column and overlaps(event.start_s, event.end_s) for event in annotated):
        return False
    return any(
        overlaps(label.start_s, label.end_s)
        and (label.class_name == IGNORED or place.get(label.class_name) == one.column)
        for label in unknown
    )
