"""Scores of windows → detections: a class, from when to when, with a score.

    window scores [n, C], part by part ─▶ Detector ─▶ Detection(column, start_s, end_s, score, peak_s)

A window's score is first smoothed: the mean of its log odds and its neighbours', which hold part of the same sound; the
farther away, the less they weigh.
Each window speaks for the time around its centre, half-way to its neighbours' centres; the first and the last also for
what is before and behind. So a call that several overlapping windows hold gets about its own length, and not that of
all of them together.

A detection begins where the smoothed score reaches `off` and ends where it falls below, if it reaches `on` in between
(two thresholds, as Canny 1986 has them for edges): a call that fades for a moment stays one. Detections of a class with
less than a gap between them are merged, and those that are still too short are left out.

Memory does not grow with the recording: of what has passed, only detections that may still go on are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from birdtune.evaluation.bootstrap import Floats
from birdtune.evaluation.decision import Thresholds

# Where a detection ends, as a share of the score that it takes to be one, unless another is asked for.
OFF_SHARE = 0.75
# A score nearer to 0 or 1 weighs no more in a mean of log odds.
_SURE = 1e-6
# Sums of times in seconds may be off by this much.
_ROUNDING_S = 1e-6


@dataclass(frozen=True, eq=False)
class Rule:
    """What makes a detection.

    Attributes:
        on: [C] score that a detection must reach; infinite for a class that is never one.
        off: [C] score from which on a window is part of one.
        smooth_windows: the log odds of a window are a weighted mean over this many around it; odd, 1: its own.
        merge_gap_s: detections of a class with at most so much between them are one.
        min_s: shorter ones are left out.

    Raises:
        ValueError: shapes or numbers that no stage of birdtune should make.
    """

    on: Floats
    off: Floats
    smooth_windows: int = 1
    merge_gap_s: float = 0.0
    min_s: float = 0.0

    def __post_init__(self) -> None:
        if self.on.shape != self.off.shape or self.on.ndim != 1 or (self.off > self.on).any():
            raise ValueError(f"thresholds of shapes {self.on.shape} and {self.off.shape}, or off above on")
        if self.smooth_windows < 1 or self.smooth_windows % 2 == 0:
            raise ValueError(f"{self.smooth_windows} windows have no middle one")

    @classmethod
    def of(cls, thresholds: Thresholds, on: float | None = None, off: float | None = None, **more: Any) -> "Rule":
        """That of a model with thresholds.

        Args:
            on, off: scores for all classes; None: each class's threshold, and `OFF_SHARE` of `on`.
            more: as the attributes.
        """
        begins = np.asarray(thresholds.values, np.float64)
        if on is not None:
            begins = np.where(thresholds.asked, on, np.inf)
        ends = begins * OFF_SHARE if off is None else np.where(thresholds.asked, np.minimum(begins, off), np.inf)
        return cls(begins, ends, **more)

    def only(self, columns: Sequence[int]) -> "Rule":
        """The same for some of the classes; the others are never detected."""
        kept = np.isin(np.arange(len(self.on)), columns)
        return replace(self, on=np.where(kept, self.on, np.inf), off=np.where(kept, self.off, np.inf))

    def some(self, columns: Sequence[int]) -> "Rule":
        """That of scores with some of the columns alone, in this order."""
        return replace(self, on=self.on[list(columns)], off=self.off[list(columns)])


@dataclass(frozen=True, eq=False)
class Detection:
    """A class, from when to when.

    Attributes:
        column: of the class.
        start_s, end_s: in the recording.
        score: the highest smoothed score.
        peak_s: where the window with that score begins.
        sums: [S] over its windows, of what was given beside the scores; None: nothing was.
    """

    column: int
    start_s: float
    end_s: float
    score: float
    peak_s: float
    sums: Floats | None = None

    @property
    def length_s(self) -> float:
        """Seconds from begin to end."""
        return self.end_s - self.start_s

    def row(self) -> dict[str, Any]:
        """JSON-able."""
        sums = None if self.sums is None else self.sums.tolist()
        return {"column": self.column, "start_s": self.start_s, "end_s": self.end_s, "score": self.score,
                "peak_s": self.peak_s, "sums": sums}  # fmt: skip

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Detection":
        """What `row` gave. Raises TypeError if it did not."""
        return cls(**{**row, "sums": None if row["sums"] is None else np.array(row["sums"], np.float64)})

    def joined(self, later: "Detection") -> "Detection":
        """One detection in place of two of a class."""
        best = later if later.score > self.score else self
        sums = None if self.sums is None or later.sums is None else self.sums + later.sums
        return replace(best, start_s=self.start_s, end_s=later.end_s, sums=sums)


class Detector:
    """Finds the detections of one recording, whose windows come part by part.

    Args:
        window_s: length of a window.
    """

    def __init__(self, rule: Rule, window_s: float) -> None:
        self._rule, self._window_s = rule, window_s
        self._half = rule.smooth_windows // 2
        # Windows that wait for those behind them, and before these the last `_half` that have passed.
        self._start_s: Floats = np.zeros(0)
        self._scores: npt.NDArray[Any] = np.zeros((0, len(rule.on)), np.float32)
        self._given: npt.NDArray[Any] | None = None
        self._passed = 0
        self._edge_s = 0.0  # up to where is decided
        self._unfinished: dict[int, Detection] = {}  # runs that reach that edge, whatever their score
        self._open: dict[int, Detection] = {}  # detections that a later one may still be merged with

    def add(
        self, start_s: npt.NDArray[Any], scores: npt.NDArray[Any], given: npt.NDArray[Any] | None = None
    ) -> list[Detection]:
        """Take the next windows; the detections that are now complete.

        Args:
            start_s: [n] where they begin, rising.
            scores: [n, C].
            given: [n, S] what is summed over the windows of each detection.
        """
        if not self._start_s.size and start_s.size:
            self._edge_s = float(start_s[0])
        self._start_s = np.concatenate([self._start_s, start_s])
        self._scores = np.concatenate([self._scores, scores])
        if given is not None:
            self._given = given if self._given is None else np.concatenate([self._given, given])
        # A window's end is known with the next one, its smoothed score with `_half` more.
        n = len(self._start_s) - self._passed - max(self._half, 1)
        return self._advance(n, None) if n > 0 else []

    def end(self, end_s: float) -> list[Detection]:
        """The other detections, once all windows were added; end_s: of the recording."""
        n = len(self._start_s) - self._passed
        found = self._advance(n, max(end_s, self._edge_s)) if n else []
        return found + [each for each in self._open.values() if self._is_long(each)]

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here, JSON-able."""
        rows = {"unfinished": self._unfinished, "open": self._open}
        given = None if self._given is None else self._given.tolist()
        return {
            "start_s": self._start_s.tolist(), "scores": self._scores.tolist(), "given": given, "passed": self._passed,
            "edge_s": self._edge_s, **{name: [one.row() for one in each.values()] for name, each in rows.items()},
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises LookupError, TypeError or ValueError if it did not."""
        n = len(state["start_s"])
        self._start_s = np.array(state["start_s"], np.float64)
        self._scores = np.array(state["scores"], np.float32).reshape(n, len(self._rule.on))
        self._given = None if state["given"] is None else np.array(state["given"], np.float32)
        self._passed, self._edge_s = int(state["passed"]), float(state["edge_s"])
        self._unfinished, self._open = (
            {one.column: one for one in map(Detection.of, state[name])} for name in ("unfinished", "open")
        )

    def _advance(self, n: int, end_s: float | None) -> list[Detection]:
        """Decide for the next n windows; end_s: of the recording, if these are its last."""
        first, last = self._passed, self._passed + n
        smooth = self._smoothed(first, last)  # [n, C]
        centres = self._start_s + self._window_s / 2
        edges = (centres[first : last + 1][1:] + centres[first : last + 1][:-1]) / 2
        edges = np.concatenate([[self._edge_s], edges, [] if end_s is None else [end_s]])  # [n + 1]
        self._edge_s = float(edges[-1])
        inside = smooth >= self._rule.off  # [n, C]
        found: list[Detection] = []
        columns = set(np.flatnonzero(inside.any(axis=0)).tolist()) | self._unfinished.keys() | self._open.keys()
        for column in sorted(columns):
            self._runs(column, inside[:, column], smooth[:, column], edges, first, found)
            if end_s is not None and column in self._unfinished:
                self._finish(self._unfinished.pop(column), found)
            self._let_go(column, found)
        kept = last - min(self._half, last)
        self._start_s, self._scores, self._passed = self._start_s[kept:], self._scores[kept:], last - kept
        self._given = None if self._given is None else self._given[kept:]
        return found

    def _smoothed(self, first: int, last: int) -> npt.NDArray[Any]:
        begin = max(first - self._half, 0)
        around = smoothed(self._scores[begin : last + self._half], self._rule.smooth_windows)
        return around[first - begin : last - begin]

    def _runs(
        self, column: int, inside: npt.NDArray[np.bool_], scores: npt.NDArray[Any], edges: Floats, first: int,
        found: list[Detection],
    ) -> None:  # fmt: skip
        """Take the unbroken runs of windows of a class; one that reaches the last edge waits."""
        changes = np.flatnonzero(np.diff(np.concatenate([[0], inside.view(np.int8), [0]])))
        before = self._unfinished.pop(column, None)
        if before is not None and not inside[0]:
            self._finish(before, found)
            before = None
        for begin, end in changes.reshape(-1, 2).tolist():
            best = begin + int(scores[begin:end].argmax())
            sums = None
            if self._given is not None:
                sums = self._given[first + begin : first + end].sum(axis=0, dtype=np.float64)
            peak_s = float(self._start_s[first + best])
            run = Detection(column, float(edges[begin]), float(edges[end]), float(scores[best]), peak_s, sums)
            if before is not None:
                run, before = before.joined(run), None
            if end == len(inside):
                self._unfinished[column] = run
            else:
                self._finish(run, found)

    def _finish(self, run: Detection, found: list[Detection]) -> None:
        """A run has ended: it is a detection if its score suffices, and may be merged with the one before."""
        if run.score < self._rule.on[run.column]:
            return
        before = self._open.pop(run.column, None)
        if before is not None and run.start_s - before.end_s <= self._rule.merge_gap_s + _ROUNDING_S:
            run = before.joined(run)
        elif before is not None and self._is_long(before):
            found.append(before)
        self._open[run.column] = run

    def _let_go(self, column: int, found: list[Detection]) -> None:
        """Give out the open detection of a class if nothing that follows can be merged with it any more."""
        waiting, unfinished = self._open.get(column), self._unfinished.get(column)
        next_s = self._edge_s if unfinished is None else unfinished.start_s
        if waiting is not None and next_s - waiting.end_s > self._rule.merge_gap_s + _ROUNDING_S:
            del self._open[column]
            if self._is_long(waiting):
                found.append(waiting)

    def _is_long(self, detection: Detection) -> bool:
        return detection.length_s >= self._rule.min_s - _ROUNDING_S


def smoothed(scores: npt.NDArray[Any], windows: int) -> npt.NDArray[Any]:
    """Scores by the mean of log odds over so many windows around each, with weights that fall linearly. [n, C]

    Beyond the ends, the first and the last window stand again. With equal weights more calls of a class that follow one
    another become one.
    """
    if windows == 1:
        return scores
    log_odds = scipy.special.logit(np.clip(scores, _SURE, 1 - _SURE))
    own, half = np.arange(len(scores)), windows // 2
    weights = {step: half + 1 - abs(step) for step in range(-half, half + 1)}
    each = (weight * log_odds[np.clip(own + step, 0, len(scores) - 1)] for step, weight in weights.items())
    return np.asarray(scipy.special.expit(sum(each) / (half + 1) ** 2))


def detect(
    start_s: npt.NDArray[Any], scores: npt.NDArray[Any], rule: Rule, *, window_s: float, end_s: float
) -> list[Detection]:
    """The detections of a recording of which all windows are there, by start and column.

    Args:
        start_s: [n] where each window begins; scores: [n, C].
        end_s: of the recording.
    """
    detector = Detector(rule, window_s)
    found = detector.add(start_s, scores) + detector.end(end_s)
    return sorted(found, key=lambda each: (each.start_s, each.column))
