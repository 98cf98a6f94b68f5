"""What a recording is like apart from what sings in it, measured while it is decoded.

    blocks [n, channels] at the file's own rate, and their mono mixture ─▶ Meter ─▶ Measures, sample digest

Levels are in decibels of full scale, where a sine of amplitude 1 has -3. Spectra are of the mono mixture, in third
octaves of absolute frequency, so that recordings of different rates can be compared band by band.
"""

import base64
import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Lower edges of the bands: third octaves from 50 Hz on, up to what recorders of bats reach.
_N_BANDS: Final = 36
BAND_EDGES_HZ: Final = 50.0 * 2.0 ** (np.arange(_N_BANDS + 1) / 3)  # [37]
# Of a band above the recording's own range.
NO_BAND: Final = -128
# A frame is about so long: fine enough for the lowest bands, short enough to fall between two syllables.
_FRAME_S = 0.04
# Frames are dense in the first seconds, so that short clips have enough of them, and sparse behind.
_DENSE_S, _DENSE_PER_S, _SPARSE_PER_S = 3.0, 24.0, 3.0
# Frames kept at most; of longer recordings every second one is let go, again and again.
_MOST_FRAMES = 2048
# The floor of a band: this quantile over the frames.
_FLOOR = 0.1
# Of the sample digest: one frame of samples in so many is hashed, which costs next to nothing; recordings that agree in
# all of these and in their length are the same.
_DIGEST_STEP = 16
_ENVELOPE_S = 0.01
# At or above this magnitude a sample is at the end of its range, whatever the number of bits.
_FULL_SCALE = 0.9995
# An edge of the band: from one step of a hundredth of the range to the next but one the mean power falls by this, and
# stays below for all of what follows.
_EDGE_DB, _EDGE_STEPS = 15.0, 100
_SILENT_POWER = 1e-14


@dataclass(frozen=True)
class Measures:
    """Properties of a recording that say nothing of what sings in it."""

    level_db: float  # root mean square of the mono mixture, without its offset; -999 is silence
    offset: float  # the largest mean of any channel (DC), full scale 1
    clipped: float  # share of samples at the end of their range, of all channels
    click: float  # share of the energy that the loudest hundredth of a second holds
    bandwidth_hz: int  # above it there is much less than below, up to half the rate
    spectrum: str  # mean power of each band, as `decode_bands` reads it
    floor: str  # power that each band keeps above in nine frames of ten

    @property
    def spectrum_db(self) -> npt.NDArray[np.int8]:
        """Mean power in each band of `BAND_EDGES_HZ`, decibels; NO_BAND above the recording's range. [36]"""
        return decode_bands(self.spectrum)

    @property
    def floor_db(self) -> npt.NDArray[np.int8]:
        """Noise floor in each band of `BAND_EDGES_HZ`, decibels; NO_BAND above the recording's range. [36]"""
        return decode_bands(self.floor)


def encode_bands(power: npt.NDArray[Any]) -> str:
    """Powers, NaN where there is none, as a string of one byte each (whole decibels from -127 to 0, or NO_BAND)."""
    decibels = 10 * np.log10(np.maximum(power, 10**-12.7))
    whole = np.where(np.isnan(power), NO_BAND, np.clip(np.rint(decibels), -127, 127))
    return base64.b64encode(whole.astype(np.int8).tobytes()).decode("ascii")


def decode_bands(text: str) -> npt.NDArray[np.int8]:
    """What `encode_bands` made. [n] int8"""
    return np.frombuffer(base64.b64decode(text), np.int8)


class Meter:
    """Measures a recording that comes in blocks; memory does not grow with its length."""

    def __init__(self, rate_hz: int, channels: int) -> None:
        self._rate_hz = rate_hz
        self._digest = hashlib.blake2b(f"{rate_hz} {channels}".encode(), digest_size=16)
        self._n = 0
        self._sums = np.zeros(channels)
        self._mono_sum = self._mono_squares = 0.0
        self._n_clipped = 0
        self._hop = max(1, round(_ENVELOPE_S * rate_hz))
        self._loudest = 0.0
        self._spectra = _Spectra(rate_hz)

    def feed(self, block: npt.NDArray[Any], mono: Floats, peak: float) -> None:
        """Take a block.

        Args:
            block: [n, channels] int16, or float32 of full scale 1.
            mono: [n] float32, what is made of it.
            peak: the largest magnitude in the block, full scale 1.
        """
        scale = np.float32(1 / 32768 if block.dtype == np.int16 else 1.0)
        some = block[-self._n % _DIGEST_STEP :: _DIGEST_STEP]
        self._digest.update((some * scale).astype("<f4").tobytes())
        values = block.astype(np.float32, copy=False)
        # As a product: numpy's own sum over the first axis takes thirty times as long.
        self._sums += (_ones(len(values)) @ values) * scale
        if peak >= _FULL_SCALE:
            self._n_clipped += int((np.abs(values) >= _FULL_SCALE / scale).sum())
        self._mono_sum += float(mono.sum())
        self._mono_squares += float(mono @ mono)
        whole = mono[: mono.size // self._hop * self._hop].reshape(-1, self._hop)
        energies = np.einsum("ij,ij->i", whole, whole)  # [hundredths of a second]
        self._loudest = max(self._loudest, float(energies.max(initial=0.0)))
        self._spectra.feed(mono, self._n)
        self._n += len(block)

    def sample_digest(self) -> str:
        """Hexadecimal digest that is equal for equal samples, in whatever format they are kept."""
        whole = self._digest.copy()
        whole.update(str(self._n).encode())
        return whole.hexdigest()

    def measures(self) -> Measures:
        """What was measured of all blocks so far."""
        n = max(1, self._n)
        power = self._mono_squares / n - (self._mono_sum / n) ** 2
        spectrum, floor, bandwidth_hz = self._spectra.found()
        return Measures(
            level_db=round(10 * math.log10(power), 1) if power > _SILENT_POWER else -999.0,
            offset=round(float(np.abs(self._sums).max()) / n, 4),
            clipped=round(self._n_clipped / (n * self._sums.size), 6),
            click=round(min(1.0, self._loudest / self._mono_squares), 3) if self._mono_squares > 0 else 0.0,
            bandwidth_hz=bandwidth_hz,
            spectrum=encode_bands(spectrum),
            floor=encode_bands(floor),
        )


@functools.lru_cache(maxsize=2)
def _ones(n: int) -> Floats:
    return np.ones(n, np.float32)


class _Spectra:
    """Power in bands of some frames of a recording."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._size = 1 << round(math.log2(_FRAME_S * rate_hz))
        self._window = np.hanning(self._size + 1)[:-1].astype(np.float32)
        frequency_hz = np.fft.rfftfreq(self._size, 1 / rate_hz)
        edges = np.searchsorted(frequency_hz, BAND_EDGES_HZ)
        # Bands narrower than a bin have none of their own at low rates; they take the next one.
        self._first = np.minimum(edges[:-1], frequency_hz.size - 1)
        self._width = np.maximum(1, np.minimum(edges[1:], frequency_hz.size) - self._first)
        self._there = BAND_EDGES_HZ[:-1] < rate_hz / 2
        self._bands: list[npt.NDArray[np.float32]] = []
        self._mean = np.zeros(frequency_hz.size)
        self._n_frames = 0
        self._next = 0  # sample with which the next frame begins
        self._spacing = 1  # of the frames kept

    def feed(self, mono: Floats, start: int) -> None:
        """Take the next samples; `start`: how many came before."""
        begins = []
        self._next = max(self._next, start)
        while self._next + self._size <= start + mono.size:
            begins.append(self._next - start)
            per_s = _DENSE_PER_S if self._next < _DENSE_S * self._rate_hz else _SPARSE_PER_S
            self._next += max(self._size, round(self._rate_hz / per_s))
        if not begins:
            return
        frames = np.lib.stride_tricks.sliding_window_view(mono, self._size)[begins]  # [n, size]
        frames = (frames - frames.mean(axis=1, keepdims=True)) * self._window
        spectrum = np.fft.rfft(frames, axis=1)
        # Twice for the half of the spectrum that is not there; the window's power is divided out.
        power = (np.square(spectrum.real) + np.square(spectrum.imag)) * np.float32(
            2.0 / (self._size * np.square(self._window).sum())
        )  # [n, bins], sums to the mean square
        self._mean += power.sum(axis=0, dtype=np.float64)
        sums = np.add.reduceat(power, self._indices(), axis=1)[:, ::2]
        self._bands += list(sums[:: self._spacing])
        self._n_frames += len(begins)
        while len(self._bands) > _MOST_FRAMES:
            self._bands = self._bands[::2]
            self._spacing *= 2

    def _indices(self) -> npt.NDArray[np.int64]:
        ends = np.minimum(self._first + self._width, self._mean.size - 1)
        return np.stack([self._first, np.maximum(ends, self._first)], axis=1).ravel()

    def found(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
        """Mean power and floor of each band, NaN above the range, and the bandwidth in hertz."""
        if not self._bands:
            nothing = np.full(_N_BANDS, np.nan)
            return nothing, nothing, self._rate_hz // 2
        bands = np.array(self._bands, np.float64)  # [frames, bands]
        spectrum = np.where(self._there, bands.mean(axis=0), np.nan)
        floor = np.where(self._there, np.quantile(bands, _FLOOR, axis=0), np.nan)
        return spectrum, floor, _bandwidth_hz(self._mean / self._n_frames, self._rate_hz)


def _bandwidth_hz(power: npt.NDArray[np.float64], rate_hz: int) -> int:
    """The highest frequency above which the spectrum falls off steeply and stays low; else half the rate."""
    starts = np.unique(np.linspace(1, power.size, _EDGE_STEPS, endpoint=False).astype(np.int64))
    steps = np.add.reduceat(power, starts) / np.diff(np.append(starts, power.size))
    decibels = 10 * np.log10(np.maximum(steps, 1e-16))
    above = np.maximum.accumulate(decibels[::-1])[::-1][2:]  # the most from the next step but one on
    edges = np.flatnonzero(decibels[:-2] - above >= _EDGE_DB)
    return round((edges[-1] + 1) / len(decibels) * rate_hz / 2) if edges.size else rate_hz // 2
