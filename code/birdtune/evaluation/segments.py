"""Scores of windows → scores of segments of a second, by which models whose windows differ are compared.

    Scores of recordings, their labels with times ─▶ by_segments ─▶ Scores with a segment in place of each recording

A segment has the scores of the window around whose centre it lies, as detections have them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from birdtune.data.targets import Targets
from birdtune.evaluation.event_metrics import SEGMENT_S
from birdtune.evaluation.scores import Scores

_ROUNDING = 1e-9


def by_segments(scores: Scores, targets: Targets, duration_s: Sequence[float], window_s: float) -> Scores:
    """The same sound, with segments in place of recordings, and what each holds in place of what the recording does.

    Args:
        targets: of the recordings, in their order, with a column for each class of the scores.
        duration_s: [N] of each recording; what is left of it behind the last whole segment is one, too.
        window_s: length of a window.
    """
    counts = np.maximum(1, np.ceil(np.asarray(duration_s, np.float64) / SEGMENT_S - _ROUNDING)).astype(np.int64)
    recording = np.repeat(np.arange(len(counts)), counts)
    start_s = (np.arange(recording.size) - np.repeat(np.cumsum(counts) - counts, counts)) * SEGMENT_S
    end_s = np.minimum(start_s + SEGMENT_S, np.asarray(duration_s, np.float64)[recording])
    centres = scores.window_start_s.astype(np.float64) + window_s / 2
    nearest = np.concatenate([
        _nearest(np.flatnonzero(scores.window_recording == number), centres, (start_s + end_s)[recording == number] / 2)
        for number in range(len(counts))
    ])  # fmt: skip
    found, known = targets.of(recording, start_s, end_s)
    return Scores(
        classes=scores.classes,
        recordings=tuple(
            f"{scores.recordings[number]}, {at:g} s" for number, at in zip(recording, start_s, strict=True)
        ),
        groups=tuple(scores.groups[number] for number in recording),
        targets=found,
        window_scores=scores.window_scores[nearest],
        window_recording=np.arange(recording.size),
        window_start_s=start_s.astype(np.float32),
        mask=known > 0,
    )


def _nearest(
    own: npt.NDArray[np.int64], centres: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Of some windows, in the order of their time, the one nearest to each of some times. [n]"""
    between = (centres[own][1:] + centres[own][:-1]) / 2
    return own[np.searchsorted(between, wanted)]
