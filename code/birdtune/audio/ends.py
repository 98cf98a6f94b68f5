"""The first and the last samples of a recording, and what predicts the samples next to them.

    blocks [n] float32, mono at the file's own rate ─▶ Ends ─▶ text ─▶ read_ends ─▶ End of the start, End of the end

Where a recording was cut into clips, the last samples of one predict the first samples of the next. An autoregressive
model of the samples around each end is kept as its autocovariance.
"""

import base64
import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Samples kept of each end, and the lags of the autocovariance: the order of the model. Of warblers cut up, 64 and 32
# predict hardly more seams, 32 and 16 fewer.
N_SAMPLES: Final = 48
N_LAGS: Final = 24
# The autocovariance is of so many samples: with half of them it is uncertain, with twice as many not of the end alone.
_N_AROUND = 2048
# Of longer recordings nothing is kept: recorders that run all day begin a new file every minute or later.
LONGEST_S: Final = 60.0
_LARGEST = 32767
_STORED = np.dtype([("covariance", "<f4", N_LAGS + 1), ("step", "<f4"), ("samples", "<i2", N_SAMPLES)])


class Ends:
    """Takes the ends of a recording that comes in blocks."""

    def __init__(self, rate_hz: int) -> None:
        self._left = round(LONGEST_S * rate_hz)
        self._first = self._last = np.empty(0, np.float32)

    def feed(self, mono: Floats) -> None:
        """Take the next samples. [n]"""
        self._left -= mono.size
        if self._first.size < _N_AROUND:
            self._first = np.concatenate([self._first, mono[: _N_AROUND - self._first.size]])
        last = mono[-_N_AROUND:]
        self._last = (
            last.copy() if last.size == _N_AROUND else np.concatenate([self._last, last])[-_N_AROUND:]
        )

    def found(self) -> str:
        """Both ends as text (536 characters); "" of less than 2,048 samples, and of 60 s and more."""
        if self._first.size < _N_AROUND or self._left <= 0:
            return ""
        stored = np.zeros(2, _STORED)
        window = _window()
        for end, around, samples in zip(
            stored, (self._first, self._last), (self._first[:N_SAMPLES], self._last[-N_SAMPLES:]), strict=True
        ):
            windowed = around.astype(np.float64) * window
            end["covariance"] = [windowed[: _N_AROUND - lag] @ windowed[lag:] for lag in range(N_LAGS + 1)]
            end["step"] = step = max(float(np.abs(samples).max()), 1e-9) / _LARGEST
            end["samples"] = np.rint(samples / step)
        return base64.b64encode(stored.tobytes()).decode("ascii")


@functools.cache
def _window() -> npt.NDArray[np.float64]:
    """Power 1 in all."""
    window = np.hanning(_N_AROUND)
    return np.asarray(window / np.sqrt(np.square(window).sum()))


@dataclass(frozen=True, eq=False)
class End:
    """One end of a recording.

    Attributes:
        samples: [48] in the order of time, full scale 1.
        covariance: [25] of the samples around it, by lag.
    """

    samples: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


def read_ends(text: str) -> tuple[End, End]:
    """The start and the end of a recording, of the text that `Ends.found` makes."""
    start, end = (
        End(one["samples"] * float(one["step"]), one["covariance"].astype(np.float64))
        for one in np.frombuffer(base64.b64decode(text), _STORED)
    )
    return start, end
