"""The input of a backbone: a waveform as rows of numbers, and windows of rows.

    waveform [samples] float32, mono ─▶ rows_of ─▶ rows [n, ...] ─▶ cut ─▶ windows [window_rows, ...]

A row is the smallest step in time at which a window can begin: a frame of log-mel (`logmel.py`) or some samples as they
are (`waveform.py`). Windows begin every so many rows, and the last one ends where the recording ends, so that all of it
is in a window. Only a recording shorter than a window is filled up with zeros.

A front end is a frozen specification; its name and digest are part of the store's key, so that rows of two
specifications never mix.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.runtime.files import value_sha256

# Weight of a window without any sound in a mean over windows, so that a silent recording still has one.
SILENT = 1e-6
# Rows are made this many at a time, counted from the start of the recording, so that a recording in blocks of any size
# gives the very bits of the same recording as a whole.
_BLOCK_ROWS = 512
# Detections need no finer steps.
_SHORTEST_DETECTION_HOP_S = 0.5


@dataclass(frozen=True, kw_only=True)
class FrontEnd(ABC):
    """How a waveform becomes rows, and rows become windows."""

    kind: ClassVar[str]  # as model.json names it
    row_dtype: ClassVar[np.dtype[Any]]  # as rows are stored, little-endian
    has_sound: ClassVar[bool] = True  # whether rows are made of sound; else they come from files as they are
    arithmetic: ClassVar[str] = ""  # how rows are computed, where that has changed: those made otherwise are made anew

    name: str
    rate_hz: int
    window_rows: int
    hop_rows: int  # from one window to the next, by default
    limit_hz: float | None = None  # frequencies above are not used; None: all are, up to the backbone's own limit

    # ---- different in each kind ----

    @property
    @abstractmethod
    def row_hop(self) -> int:
        """Samples from one row to the next."""

    @property
    @abstractmethod
    def row_samples(self) -> int:
        """Samples that a row is made of."""

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    @property
    @abstractmethod
    def low_hz(self) -> float:
        """The lowest frequency that is used."""

    @property
    @abstractmethod
    def top_hz(self) -> float:
        """The highest frequency that is used."""

    @abstractmethod
    def make_rows(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Rows of [row_samples + (n - 1) * row_hop] samples at `rate_hz`. [n, *row_shape]"""

    @abstractmethod
    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows as the store keeps them, in `row_dtype`."""

    @abstractmethod
    def sounding(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which rows hold any sound at all. Stored or float32 windows [n, window_rows, ...] → [n, window_rows]"""

    @abstractmethod
    def is_still(self, rows: npt.NDArray[Any]) -> bool:
        """Whether nothing changes in some rows [n, *row_shape]: silence, or a steady tone of a broken recorder."""

    # ---- the same in all ----

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return math.prod(self.row_shape) * self.row_dtype.itemsize

    @property
    def rows_per_s(self) -> float:
        """Rows in one second."""
        return self.rate_hz / self.row_hop

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Shape of one window: [window_rows, *row_shape]."""
        return (self.window_rows, *self.row_shape)

    @property
    def window_s(self) -> float:
        """Seconds from the first row of a window to the row behind its last."""
        return self.window_rows / self.rows_per_s

    @property
    def hop_s(self) -> float:
        """Seconds from one window to the next, by default."""
        return self.hop_rows / self.rows_per_s

    @property
    def detection_hop(self) -> int:
        """Rows from one window to the next where begin and end of a call are wanted.

        Half a window; of long windows a sixth, but no less than half a second (docs/detections.md has what that gains).
        """
        at_least = max(self.rows(_SHORTEST_DETECTION_HOP_S), self.window_rows // 6)
        return max(1, min(self.hop_rows, self.window_rows // 2, at_least))

    def smoothed_windows(self, hop_rows: int) -> int:
        """How many windows, at some hop, begin within a third of a window of one, with itself; odd."""
        return 1 + 2 * (self.window_rows // 3 // hop_rows)

    @property
    def window_samples(self) -> int:
        """Samples of the shortest recording that fills a window."""
        return self.row_samples + (self.window_rows - 1) * self.row_hop

    @property
    def receptive_s(self) -> float:
        """Seconds of sound that a window is made of; of log-mel a little more than `window_s`, as frames overlap."""
        return self.window_samples / self.rate_hz

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any number of the specification."""
        return value_sha256(self.row())[:12]

    def row(self) -> dict[str, Any]:
        """As it stands in model.json."""
        return {"kind": self.kind, **asdict(self)}

    def rows(self, seconds: float) -> int:
        """A time in whole rows."""
        return round(seconds * self.rows_per_s)

    def hop(self, hop_s: float | None) -> int:
        """Rows from one window to the next, 1 or more; None: `hop_rows`."""
        return self.hop_rows if hop_s is None else max(1, self.rows(hop_s))

    def samples(self, duration_s: float) -> int:
        """Samples of a recording at `rate_hz`."""
        return round(duration_s * self.rate_hz)

    def padded_samples(self, n_samples: int) -> int:
        """Samples of a recording once zeros are put after its end: at least one window, and whole rows."""
        hops = -(-(n_samples - self.row_samples) // self.row_hop)
        return self.row_samples + max(hops, self.window_rows - 1) * self.row_hop

    def row_count(self, n_samples: int) -> int:
        """Rows in `n_samples` samples, as they are."""
        return max(0, (n_samples - self.row_samples) // self.row_hop + 1)

    def window_count(self, n_rows: int, hop_rows: int | None = None) -> int:
        """Windows in `n_rows` rows: how many `starts` there are."""
        behind = n_rows - self.window_rows  # rows behind the first window
        return 0 if behind < 0 else -(-behind // (hop_rows or self.hop_rows)) + 1

    def starts(self, n_rows: int, hop_rows: int | None = None) -> npt.NDArray[np.int64]:
        """First row of each window: one every `hop_rows`, and a last one at the end. [windows]

        The last overlaps the one before more than others do, mostly. None for fewer rows than a window has.
        """
        count = self.window_count(n_rows, hop_rows)
        return np.minimum(np.arange(count) * (hop_rows or self.hop_rows), n_rows - self.window_rows)

    def windows_in(self, duration_s: float, hop_s: float | None = None) -> int:
        """Windows of a recording of so many seconds, filled up as `padded_samples` says."""
        rows = self.row_count(self.padded_samples(self.samples(duration_s)))
        return self.window_count(rows, self.hop(hop_s))

    def held(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The weight of each window in a mean over a recording: its share of rows that hold sound. [n]"""
        return np.asarray(self.sounding(windows).mean(axis=1) + SILENT, np.float64)

    def rows_of(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[Any]]:
        """Rows of a recording given in blocks, with zeros put after its end as `padded_samples` says.

        Args:
            blocks: [n] samples each, mono at `rate_hz`.

        Yields:
            [n, *row_shape]; together at least `window_rows` rows.
        """

        def padded() -> Iterator[npt.NDArray[np.float32]]:
            n_samples = 0
            for block in blocks:
                n_samples += block.size
                yield block
            yield np.zeros(self.padded_samples(n_samples) - n_samples, np.float32)

        yield from self.unpadded_rows(padded())

    def unpadded_rows(self, blocks: Iterable[npt.NDArray[np.floating]]) -> Iterator[npt.NDArray[np.float32]]:
        """The whole rows in a recording given in blocks. [512 or fewer, *row_shape]; memory does not grow"""
        waiting: npt.NDArray[np.floating] = np.zeros(0, np.float32)
        needed, step = self.row_samples + (_BLOCK_ROWS - 1) * self.row_hop, _BLOCK_ROWS * self.row_hop
        for block in blocks:
            waiting, start = np.concatenate([waiting, block]) if waiting.size else block, 0
            while waiting.size - start >= needed:
                yield self.make_rows(waiting[start : start + needed])
                start += step
            waiting = waiting[start:]
        if n_rows := self.row_count(waiting.size):
            yield self.make_rows(waiting[: self.row_samples + (n_rows - 1) * self.row_hop])

    def cut(
        self, blocks: Iterable[npt.NDArray[Any]], hop_rows: int | None = None
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The windows of a recording whose rows come in blocks, where `starts` has them; memory does not grow.

        Args:
            blocks: [n, *row_shape] each, as `rows_of` gives them.

        Yields:
            first row, and the window [window_rows, *row_shape].
        """
        hop, length = hop_rows or self.hop_rows, self.window_rows
        waiting: npt.NDArray[Any] | None = None
        start = first = 0  # rows with which `waiting` and the next window begin
        for rows in blocks:
            waiting = rows if waiting is None else np.concatenate([waiting, rows])
            while first + length <= start + len(waiting):
                yield first, waiting[first - start : first - start + length]
                first += hop
            # A window is kept back: it is the last one, if nothing follows.
            passed = max(0, min(first - start, len(waiting) - length))
            waiting, start = waiting[passed:], start + passed
        if waiting is None:
            return
        last = start + len(waiting) - length
        if last >= 0 and last > first - hop:
            yield last, waiting[-length:]

    def windows_of(self, waveform: npt.NDArray[np.float32], hop_rows: int | None = None) -> npt.NDArray[Any]:
        """All windows of a waveform [samples] at `rate_hz`. [windows, window_rows, ...]"""
        return np.stack([window for _, window in self.cut(self.rows_of([waveform]), hop_rows)])
