"""Where labels have times: how well detections at the model's thresholds meet the annotated events.

    scores of windows, labels with times, Thresholds ─▶ measure ─▶ F1 by events and by segments

Detections are those that `predict --format` makes without settings, but for rejection as unknown, which needs their
embeddings; windows follow one another as those that are evaluated do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def measure(
    scores: Scores, recordings: Sequence[Recording], thresholds: Thresholds, background: Sequence[str],
    *, marked: Sequence[str], window_s: float, n_bootstrap: int, seed: int,
) -> dict[str, Any] | None:  # fmt: skip
    """F1 of the detections in some recordings.

    Recordings that have a class without times are left out, as nobody knows where in them it is; those of background
    count, with all detections in them false. Left out is also a detection where something was marked that is not to be
    learnt.

    Args:
        scores: of the recordings, in their order.
        background: names of the classes that are never a decision.
        marked: names of the classes that are annotated wherever they occur.

    Returns:
        `events`, `segments`: as `event_metrics.summary`, of the classes that are marked and can be a decision;
        `recordings`, `recordings_left_out`, `least_overlap`, `segment_s`; None where no event is annotated.
    """
    columns = [c for c, name in enumerate(scores.classes) if name in marked and thresholds.asked[c]]
    place = {scores.classes[c]: k for k, c in enumerate(columns)}
    rule = Rule.of(thresholds).only(columns)
    number_of = {c: k for k, c in enumerate(columns)}
    counts, groups = [], []
    for number, recording in enumerate(recordings):
        if not _says_when(recording.labels, background):
            continue
        own, duration_s = scores.window_recording == number, recording.facts.duration_s
        start_s = scores.window_start_s[own].astype(np.float64)
        found = detect(start_s, scores.window_scores[own], rule, window_s=window_s, end_s=duration_s)
        annotated = [
            Event(place[label.class_name], label.start_s, min(label.end_s, duration_s)) for label in recording.labels
            if label.has_times and label.weight and label.class_name in place and label.start_s < duration_s
        ]
        detected = [Event(number_of[one.column], one.start_s, one.end_s) for one in found]
        unknown = [label for label in recording.labels if label.class_name == IGNORED or not label.weight]
        detected = [one for one in detected if not _is_unknown(one, annotated, unknown, place)]
        n = len(columns)
        counts.append((
            event_counts(annotated, detected, n, by_overlap()), segment_counts(annotated, detected, n, duration_s),
        ))  # fmt: skip
        groups.append(scores.groups[number])
    if not any((each.right + each.missed).any() for each, _ in counts):
        return None
    by_events, by_segments = zip(*counts, strict=True)
    classes = list(place)
    return {
        "events": summary(by_events, groups, classes, n_bootstrap=n_bootstrap, seed=seed),
        "segments": summary(by_segments, groups, classes, n_bootstrap=n_bootstrap, seed=seed),
        "recordings": len(counts), "recordings_left_out": len(recordings) - len(counts),
        "least_overlap": LEAST_OVERLAP, "segment_s": SEGMENT_S,
    }  # fmt: skip


def _says_when(labels: Sequence[Label], background: Sequence[str]) -> bool:
    """Whether all classes of a recording that can be a decision have times."""
    with_times = {label.class_name for label in labels if label.has_times}
    return set(class_names_of(labels)) <= with_times.union(background)


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
