"""The noise floor of a recording, fine enough to separate recordings of one recorder and moment from others.

    blocks [n] float32, mono at the file's own rate ─▶ Fingerprinter ─▶ text ─▶ floors_of ─▶ [2, 64] decibels

Wind, traffic, the recorder's own hiss, its filters and the encoder's cut-off are in each clip that was cut out of one
recording. They are taken twice, from the first half of the recording and from the second: how far the halves of
recordings are apart shows how much of a difference is chance.
"""

import base64
import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt

from birdtune.audio.fft import rfft

Floats = npt.NDArray[np.float32]

# Bands of equal width from 0 to half the rate: steep edges and narrow lines are what recorders and encoders leave.
N_BANDS: Final = 64
# A frame is about so long, to fall between two syllables: at twice that, fewer of the warblers' clips are matched.
_FRAME_S = 0.021
# Frames begin so often at first; beyond so many, every second one is let go, and half as many taken from there on.
_PER_S, _MOST_FRAMES = 32, 128
_LEAST_FRAMES = 32
# The floor of a band: this quantile over the frames. Of warblers cut into 3 s clips, 0.2 and 0.5 separate fewer.
_FLOOR = 0.35
# Steps of the text, decibels, and the least that it holds: below the rounding of 16-bit samples.
_STEP_DB, _LOWEST_DB = 0.5, -127.0
# Values that are transformed at once: they stay in the processor's cache.
_AT_ONCE = 1 << 16


class Fingerprinter:
    """Takes the noise floor of a recording that comes in blocks; memory does not grow with its length."""

    def __init__(self, rate_hz: int) -> None:
        self._window = _window(max(2 * N_BANDS, 1 << round(math.log2(_FRAME_S * rate_hz))))
        self._hop = max(1, round(rate_hz / _PER_S))
        self._next = 0  # sample that the next frame begins with
        self._n = 0
        self._bands: list[Floats] = []  # parts of [frames, 64]
        self._n_kept = 0

    def feed(self, mono: Floats) -> None:
        """Take the next samples. [n]"""
        mono = np.ascontiguousarray(mono)
        self._next = max(self._next, self._n)
        while (room := self._n + mono.size - self._window.size - self._next) >= 0:
            n = min(room // self._hop + 1, max(1, _AT_ONCE // self._window.size))
            begin = 4 * (self._next - self._n)
            self._take(np.ndarray((n, self._window.size), np.float32, mono, begin, (4 * self._hop, 4)))
            self._next += n * self._hop
            if self._n_kept > _MOST_FRAMES:
                self._bands = [np.concatenate(self._bands)[::2]]
                self._n_kept = len(self._bands[0])
                self._hop *= 2
        self._n += mono.size

    def _take(self, frames: Floats) -> None:
        """Take frames. [n, size]"""
        # Real and imaginary parts side by side: power is the sum of their squares. [n, 2 * bins]
        power = rfft(frames * self._window).view(np.float32)
        np.multiply(power, power, out=power)
        bands = power[:, 2:].reshape(len(frames), N_BANDS, -1)
        # As a product: reduceat takes four times as long.
        self._bands.append(bands @ np.ones(bands.shape[2], np.float32))
        self._n_kept += len(frames)

    def encoded(self) -> str:
        """The fingerprint as text (172 characters); "" of less sound than it takes."""
        bands = np.concatenate(self._bands) if self._bands else np.empty((0, N_BANDS), np.float32)
        # Digital silence is of the one who filled the clip up, not of a recorder.
        bands = bands[bands.any(axis=1)]
        if len(bands) < _LEAST_FRAMES:
            return ""
        half = len(bands) // 2
        at = int(_FLOOR * (half - 1))
        floors = [np.partition(part, at, axis=0)[at] for part in (bands[:half], bands[-half:])]
        # Power of one bin, so that noise that is alike in all bands reads as its own level.
        scale = 2 * N_BANDS / (self._window.size * float(np.square(self._window).sum()))
        decibels = 10 * np.log10(np.maximum(np.array(floors, np.float64) * scale, 1e-13))
        steps = np.clip(np.rint((decibels - _LOWEST_DB) / _STEP_DB), 0, 255)
        return base64.b64encode(steps.astype(np.uint8).tobytes()).decode("ascii")


@functools.lru_cache(maxsize=8)
def _window(size: int) -> Floats:
    return np.hanning(size + 1)[:-1].astype(np.float32)


def floors_of(fingerprint: str) -> Floats:
    """Noise floor of the first half of a recording and of the second. [2, 64] decibels of full scale"""
    steps = np.frombuffer(base64.b64decode(fingerprint), np.uint8)
    return (steps.astype(np.float32) * _STEP_DB + _LOWEST_DB).reshape(2, N_BANDS)
