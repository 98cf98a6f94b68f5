"""Waveform → rows of samples as they are, for backbones that take a waveform.

    waveform [samples] float32, mono at the backbone's rate ─▶ rows [n, samples a row] float32, stored as int16

A row is 10 ms, or the next multiple of that which is a whole number of samples (20 ms at 22,050 Hz). Samples are stored
in 16 bits, as most recordings have them; what is above full scale is clipped.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd

_ROWS_PER_S = 100
FULL_SCALE = 32768.0


@dataclass(frozen=True, kw_only=True)
class Waveform(FrontEnd):
    """Samples as they are."""

    kind: ClassVar[str] = "waveform"
    row_dtype: ClassVar[np.dtype[Any]] = np.dtype("<i2")

    row_width: int  # samples a row

    @property
    def row_hop(self) -> int:
        return self.row_width

    @property
    def row_samples(self) -> int:
        return self.row_width

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.row_width,)

    @property
    def low_hz(self) -> float:
        return 0.0

    @property
    def top_hz(self) -> float:
        return self.rate_hz / 2 if self.limit_hz is None else min(self.rate_hz / 2, self.limit_hz)

    @property
    def faintest(self) -> float:
        """What a sample must exceed to hold sound: one step of 16 bits."""
        return 1.0 / FULL_SCALE

    def make_rows(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """As `FrontEnd.make_rows`."""
        return np.asarray(samples, np.float32).reshape(-1, self.row_width)

    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Samples of full scale 1 as 16-bit integers; those above full scale are clipped."""
        scaled = rows * np.float32(FULL_SCALE)
        np.rint(scaled, out=scaled)
        np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
        return np.ascontiguousarray(scaled, self.row_dtype)

    def sounding(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """As `FrontEnd.sounding`."""
        return np.asarray(np.abs(as_float(windows)).max(axis=2) > self.faintest)

    def is_still(self, rows: npt.NDArray[Any]) -> bool:
        """As `FrontEnd.is_still`: no sample differs from another."""
        return not np.ptp(as_float(rows)) > 2 * self.faintest


def waveform(name: str, *, rate_hz: int, window_s: float, hop_s: float) -> Waveform:
    """The front end of a backbone that takes so many seconds of waveform."""
    row = rate_hz // math.gcd(rate_hz, _ROWS_PER_S)
    return Waveform(
        name=name,
        rate_hz=rate_hz,
        row_width=row,
        window_rows=math.ceil(round(window_s * rate_hz) / row),
        hop_rows=max(1, round(hop_s * rate_hz / row)),
    )


def as_float(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Samples of full scale 1, of 16-bit integers or floats."""
    if samples.dtype == np.int16:
        return np.asarray(samples, np.float32) / np.float32(FULL_SCALE)
    return np.asarray(samples, np.float32)
