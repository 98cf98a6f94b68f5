"""The section on recordings whose labels have times: what was annotated over what was detected, to see and to hear.

    annotated and detected events, scores of windows, Thresholds ─▶ section ─▶ a few recordings, worst and median

Of a recording longer than a minute, the minute with most errors is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtune.audio.logmel import display, log_mel
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.event_metrics import Counts, Event, by_overlap, event_counts, matches
from birdtune.evaluation.recording_events import Compared
from birdtune.evaluation.scores import Floats, Scores
from birdtune.reporting import listening
from birdtune.reporting.event_figure import (
    ANNOTATED,
    DETECTED,
    FALSE,
    MISSED,
    RIGHT,
    UNCOUNTED,
    Bar,
    ClassRow,
    draw,
    hatch,
)
from birdtune.reporting.listening import Clip
from birdtune.runtime.text import count, some

MOST_S = 60.0
WORST = MEDIAN = 3  # recordings
MOST_CLASSES = 8  # of a picture
_LEAD_S = 2.0  # before the first error of a stretch


@dataclass(frozen=True, eq=False)
class RecordingEvents:
    """Events of the test recordings, by `recording_events.compare`.

    Attributes:
        classes: names of the columns of the events.
        thresholds: of all classes of the scores.
        window_s: seconds of a window.
    """

    classes: Sequence[str]
    compared: Sequence[Compared]
    thresholds: Thresholds
    window_s: float


def section(
    found: RecordingEvents, scores: Scores, listen: Callable[[str, float, float], Clip | None]
) -> dict[str, Any] | None:
    """What the template shows; None where nothing was annotated.

    Args:
        scores: of the recordings that were compared, and others.
        listen: (recording, start in s, length in s) → that clip, or None where it cannot be read.
    """
    n, fits = len(found.classes), by_overlap()
    counted = [(one, event_counts(one.annotated, one.detected, n, fits)) for one in found.compared]
    ranked = sorted((pair for pair in counted if _total(pair[1])), key=lambda pair: _rank(pair[1]))
    if not any(one.annotated for one, _ in ranked):
        return None
    middle = max(WORST, (len(ranked) - MEDIAN) // 2)
    chosen = [(pair, "one of the worst") for pair in ranked[:WORST]]
    chosen += [(pair, "near the median") for pair in ranked[middle : middle + MEDIAN]]
    if len(chosen) == len(ranked):  # none was chosen before others
        chosen = [(pair, "") for pair in ranked]
    return {
        "hatch": hatch(), "recordings": len(ranked), "longest_s": MOST_S,
        "has_uncounted": any(one.uncounted for (one, _), _ in chosen),
        "strips": [_strip(found, *pair, why, scores, listen) for pair, why in chosen],
    }  # fmt: skip


def _total(counts: Counts) -> int:
    return int((counts.right + counts.missed + counts.false).sum())


def _f1(counts: Counts) -> float:
    return float(2 * counts.right.sum() / (2 * counts.right + counts.missed + counts.false).sum())


def _rank(counts: Counts) -> tuple[float, int]:
    """The worst first: by F1, of equals the one with more errors."""
    return _f1(counts), -int((counts.missed + counts.false).sum())


def _strip(
    found: RecordingEvents, one: Compared, counts: Counts, why: str, scores: Scores,
    listen: Callable[[str, float, float], Clip | None],
) -> dict[str, Any]:  # fmt: skip
    bars = _bars(one)
    start_s = _stretch([bar for _, bar in bars if bar.is_what in (MISSED, FALSE)], one.duration_s)
    span_s = (start_s, min(one.duration_s, start_s + MOST_S))
    by_class: dict[int, list[Bar]] = {}
    for column, bar in bars:
        if bar.start_s < span_s[1] and bar.end_s > span_s[0]:
            by_class.setdefault(column, []).append(bar)
    order = sorted(by_class, key=lambda column: (-_errors(by_class[column]), column))
    edges, own = _steps(found, scores, one.number)
    of_scores = {name: c for c, name in enumerate(scores.classes)}
    rows = []
    for column in sorted(order[:MOST_CLASSES]):
        c = of_scores[found.classes[column]]
        threshold = float(found.thresholds.values[c])
        rows.append(ClassRow(found.classes[column], by_class[column], edges, own[:, c], threshold))
    clip = listen(one.name, span_s[0], span_s[1] - span_s[0])
    spec = display(clip.rate_hz if clip else 48_000)
    frames = log_mel(clip.waveform, spec) if clip else np.zeros((0, spec.n_mels), np.float32)
    picture = draw(frames, spec, rows, span_s)
    others = [found.classes[column] for column in order[MOST_CLASSES:]]
    return {
        "recording": one.name, "why": why, "f1": _f1(counts), "right": int(counts.right.sum()),
        "annotated": len(one.annotated), "missed": int(counts.missed.sum()), "false": int(counts.false.sum()),
        "span_s": span_s, "is_whole": span_s == (0.0, one.duration_s), "duration_s": one.duration_s,
        "others": f"{count(len(others), 'class')} with fewer errors: {some(others)}" if others else "",
        "picture": picture.svg, "box": picture.box, "seconds": span_s[1] - span_s[0],
        "sound": listening.sound(clip.waveform, clip.rate_hz, small=True) if clip else None,
    }  # fmt: skip


def _bars(one: Compared) -> list[tuple[int, Bar]]:
    """All events of a recording by column, and what is said of each."""
    matched = matches(one.annotated, one.detected, by_overlap()).tolist()  # [D]

    def said(events: Sequence[Event], kind: str, words: Sequence[str]) -> list[tuple[int, Bar]]:
        return [(event.column, Bar(kind, what, *event[1:])) for event, what in zip(events, words, strict=True)]

    hit = set(matched)
    return [
        *said(one.annotated, ANNOTATED, [RIGHT if k in hit else MISSED for k in range(len(one.annotated))]),
        *said(one.detected, DETECTED, [FALSE if k < 0 else RIGHT for k in matched]),
        *said(one.uncounted, DETECTED, [UNCOUNTED] * len(one.uncounted)),
    ]


def _errors(bars: Sequence[Bar]) -> int:
    return sum(bar.is_what in (MISSED, FALSE) for bar in bars)


def _stretch(errors: Sequence[Bar], duration_s: float) -> float:
    """Where the minute with most errors begins; 0 where the recording is no longer."""
    latest = max(0.0, duration_s - MOST_S)
    middles = np.array([(bar.start_s + bar.end_s) / 2 for bar in errors])
    starts = sorted(min(max(0.0, bar.start_s - _LEAD_S), latest) for bar in errors) if latest else []
    inside = [int(((middles >= start) & (middles < start + MOST_S)).sum()) for start in starts]
    return starts[int(np.argmax(inside))] if starts else 0.0


def _steps(found: RecordingEvents, scores: Scores, number: int) -> tuple[Floats, Floats]:
    """From when on each window's scores count, and the scores. [n], [n, C]

    A window speaks for the time around its centre, half-way to its neighbours', as in detections.
    """
    own = scores.window_recording == number
    centres = scores.window_start_s[own].astype(np.float64) + found.window_s / 2
    return np.append(0.0, (centres[1:] + centres[:-1]) / 2), scores.window_scores[own].astype(np.float64)
