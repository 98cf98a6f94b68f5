"""Level, spectrum, noise floor and faults of a recording, measured while it is decoded.

    blocks [n, channels] at the file's own rate, and their mono mixture ─▶ Meter ─▶ Measures, sample digest

Levels are in decibels of full scale, where a sine of amplitude 1 has -3. Spectra are of the mono mixture, in third
octaves of absolute frequency, so that recordings of different rates can be compared band by band.
"""

import base64
import functools
import hashlib
import math
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from birdtune.audio.fft import rfft
from birdtune.audio.fingerprint import Fingerprinter
from birdtune.audio.seams import Ends

Floats = npt.NDArray[np.float32]

# Lower edges of the bands: third octaves from 50 Hz on, up to what recorders of bats reach.
_N_BANDS: Final = 36
BAND_EDGES_HZ: Final = 50.0 * 2.0 ** (np.arange(_N_BANDS + 1) / 3)  # [37]
# Of a band above the recording's own range.
NO_BAND: Final = -128
# A frame is about so long: fine enough for the lowest bands, short enough to fall between two syllables.
_FRAME_S = 0.04
# Frames are dense in the first seconds, so that short clips have enough of them, and sparse behind.
_DENSE_S, _DENSE_PER_S, _SPARSE_PER_S = 2.0, 16.0, 3.0
# Frames kept at most; of longer recordings every second one is let go, again and again.
_MOST_FRAMES = 2048
# The floor of a band: this quantile over the frames.
_FLOOR = 0.1
# Of the sample digest: one frame of samples in so many is hashed, so that different recordings differ; all are in a
# checksum, which takes a fifth of the time of a hash, so that recordings that differ in one sample do.
_DIGEST_STEP = 64
_STEP_S = 0.01
# A mean of the first block above this is taken off all: squares of more than that drown what is faint.
_OFFSET = 1e-3
# Values of the frames whose spectra are taken at once: what is made of them stays in the processor's cache.
_FFT_VALUES = 1 << 16
# At or above this magnitude a sample is at the end of its range, whatever the number of bits.
_FULL_SCALE = 0.9995
# An edge of the band: from one step of a hundredth of the range to the next but one the mean power falls by this, and
# stays below that, and below most of what comes before, for all of what follows.
_EDGE_DB, _EDGE_STEPS = 15.0, 100
# Mean square below which a step is empty: -90 dB, one step of 16-bit audio.
_SILENT_POWER = 1e-9
# Of the energy of a step, what sums of single precision leave uncertain.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Measures:
    """Acoustic properties of a recording, whatever sings in it."""

    level_db: float  # root mean square of the mono mixture, without its offset; -999: all of it is empty
    offset: float  # the largest mean of any channel (DC), full scale 1
    clipped: float  # share of samples at the end of their range, of all channels
    click: float  # share of the energy that the loudest fiftieth of a second holds
    empty: float  # share of the recording in which there is nothing, not even the noise of a recorder
    gaps: float  # of that, what lies between sounds
    leading: float  # of that, what lies before the first sound
    bandwidth_hz: int  # above it there is much less than below, up to half the rate
    spectrum: str  # mean power of each band, as `decode_bands` reads it
    floor: str  # power that each band keeps above in nine frames of ten
    fingerprint: str = ""  # of recorder and moment, as `fingerprint.floors_of` reads it; "" of too little sound
    ends: str = ""  # the first and the last samples, as `seams.Seams` reads them; "" of too few

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
        self._digest = hashlib.blake2b(f"{rate_hz} {channels}".encode(), digest_size=16)
        self._checksum = 0
        self._n = 0
        self._sums = np.zeros(channels)
        self._n_clipped = 0
        self._envelope = _Envelope(rate_hz)
        self._spectra = _Spectra(rate_hz)
        self._fingerprinter = Fingerprinter(rate_hz)
        self._ends = Ends(rate_hz)
        # Taken once: memory that is taken anew for each block costs more than what is computed in it.
        self._memory = np.empty((0, channels), np.float32)

    def feed(self, block: npt.NDArray[Any], mono: Floats, peak: float) -> None:
        """Take a block.

        Args:
            block: [n, channels] int16, or float32 of full scale 1.
            mono: [n] float32, what is made of it.
            peak: the largest magnitude in the block, full scale 1.
        """
        values, scale = self._values(block, mono)
        samples = _canonical(block)
        self._digest.update(samples[-self._n % _DIGEST_STEP :: _DIGEST_STEP].tobytes())
        self._checksum = zlib.crc32(samples.data, self._checksum)
        # As a product: numpy's own sum over the first axis takes thirty times as long.
        self._sums += (ones(len(values)) @ values) * scale
        if peak >= _FULL_SCALE:
            self._n_clipped += int((np.abs(values) >= _FULL_SCALE / scale).sum())
        self._envelope.feed(mono)
        self._spectra.feed(mono, self._n)
        self._fingerprinter.feed(mono)
        self._ends.feed(mono)
        self._n += len(block)

    def _values(self, block: npt.NDArray[Any], mono: Floats) -> tuple[Floats, np.float32]:
        """The block as float32, and what makes it full scale 1. [n, channels]"""
        if block.shape[1] == 1:
            return mono[:, None], np.float32(1.0)
        if block.dtype == np.float32:
            return block, np.float32(1.0)
        if len(self._memory) < len(block):
            self._memory = np.empty(block.shape, np.float32)
        values = self._memory[: len(block)]
        np.copyto(values, block)
        return values, np.float32(1 / 32768)

    def sample_digest(self) -> str:
        """Hexadecimal digest that is equal for equal samples, in whatever format they are kept."""
        whole = self._digest.copy()
        whole.update(f"{self._n} {self._checksum}".encode())
        return whole.hexdigest()

    def measures(self) -> Measures:
        """What was measured of all blocks so far."""
        n = max(1, self._n)
        spectrum, floor, bandwidth_hz = self._spectra.result()
        return Measures(
            **self._envelope.result(),
            offset=round(float(np.abs(self._sums).max()) / n, 4),
            clipped=round(self._n_clipped / (n * self._sums.size), 6),
            bandwidth_hz=bandwidth_hz,
            spectrum=encode_bands(spectrum),
            floor=encode_bands(floor),
            fingerprint=self._fingerprinter.encoded(),
            ends=self._ends.encoded(),
        )


def _canonical(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers for the same samples: 16-bit samples are whole numbers, in whatever format they are kept."""
    if block.dtype != np.int16:
        for step in (64, 1):  # a few samples say of nearly all others that they are not
            steps = block[::step] * np.float32(32768)
            if (steps != np.rint(steps)).any() or (np.abs(steps + np.float32(0.5)) > 32768).any():
                return np.ascontiguousarray(block, "<f4")
        block = steps
    return np.ascontiguousarray(block, "<i2")


@functools.lru_cache(maxsize=8)
def ones(n: int) -> Floats:
    """For sums as products. [n]"""
    return np.ones(n, np.float32)


class _Envelope:
    """Energy of a recording in steps of a hundredth of a second, without its constant offset."""

    def __init__(self, rate_hz: int) -> None:
        self._hop = max(1, round(_STEP_S * rate_hz))
        self._shift: np.float32 | None = None
        self._n = 0
        self._sum = self._squares = self._energy = 0.0
        self._last = self._loudest = 0.0  # energy of the step before, and of the two loudest in a row
        self._n_steps = self._n_sounding = self._n_gaps = 0
        self._n_leading = 0
        self._n_waiting = -1  # empty steps since the last that was not; -1: there was none

    def feed(self, mono: Floats) -> None:
        """Take the next samples. [n]"""
        if self._shift is None:
            self._shift = np.float32(mono @ ones(mono.size) / mono.size)
        if abs(self._shift) > _OFFSET:
            mono = mono - self._shift
        cut = mono.size // self._hop * self._hop
        whole, rest = mono[:cut].reshape(-1, self._hop), mono[cut:]
        self._n += mono.size
        parts = [_Steps.of(steps) for steps in (whole, rest[None]) if steps.size]
        self._sum += sum(float(part.sums.sum()) for part in parts)
        self._squares += sum(float(part.squares.sum()) for part in parts)
        energy = np.concatenate([part.varying for part in parts])  # [steps]
        self._energy += float(energy.sum())
        self._loudest = max(self._loudest, float((energy + np.append(self._last, energy[:-1])).max()))
        self._last = float(energy[-1])
        sounding = np.flatnonzero(energy > _SILENT_POWER * self._hop)
        self._n_steps += energy.size
        self._n_sounding += sounding.size
        if self._n_waiting < 0:
            self._n_leading += int(sounding[0]) if sounding.size else energy.size
        if sounding.size:
            before = max(0, self._n_waiting) + (int(sounding[0]) if self._n_waiting >= 0 else 0)
            self._n_gaps += before + int(sounding[-1] - sounding[0]) + 1 - sounding.size
            self._n_waiting = energy.size - 1 - int(sounding[-1])
        elif self._n_waiting >= 0:
            self._n_waiting += energy.size

    def result(self) -> dict[str, float]:
        """level_db, click, empty, gaps and leading of `Measures`."""
        n, n_steps = max(1, self._n), max(1, self._n_steps)
        power = self._squares / n - (self._sum / n) ** 2
        return {
            "level_db": round(10 * math.log10(power), 1) if self._n_sounding and power > 0 else -999.0,
            "click": round(min(1.0, self._loudest / self._energy), 3) if self._n_sounding else 0.0,
            "empty": round(1 - self._n_sounding / n_steps, 4),
            "gaps": round(self._n_gaps / n_steps, 4),
            "leading": round(self._n_leading / n_steps, 4),
        }


@dataclass(frozen=True, eq=False)
class _Steps:
    """What is known of each of some steps. [steps]"""

    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    # Energy without what a straight line through the step holds: a mean or a drift is of no song.
    varying: npt.NDArray[np.float64]

    @classmethod
    def of(cls, steps: Floats) -> "_Steps":
        """Of samples. [steps, samples]"""
        size = steps.shape[1]
        squares = np.vecdot(steps, steps).astype(np.float64)
        sums, slope = (steps @ ones(size)).astype(np.float64), (steps @ _line(size)).astype(np.float64)
        varying = np.maximum(squares - sums * sums / size - slope * slope, 0.0)
        # Where little is left, it is all rounding.
        doubtful = np.flatnonzero(varying < _ROUNDING * squares)
        if doubtful.size:
            exact = steps[doubtful].astype(np.float64)
            exact -= exact.mean(axis=1, keepdims=True)
            exact -= np.outer(exact @ _line(size), _line(size))
            varying[doubtful] = np.square(exact).sum(axis=1)
        return cls(sums, squares, varying)


@functools.lru_cache(maxsize=8)
def _line(n: int) -> Floats:
    """A rising line of n samples, of mean 0 and energy 1."""
    line = np.arange(n) - (n - 1) / 2
    return np.asarray(line / max(1.0, float(np.sqrt(np.square(line).sum()))), np.float32)


class _Spectra:
    """Power in bands of some frames of a recording."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._grid = _grid(rate_hz)
        self._bands: list[npt.NDArray[np.float32]] = []  # parts of [frames, bands]
        self._mean = np.zeros(self._grid.n_bins * 2)
        self._n_frames = self._n_kept = 0
        self._next = 0  # sample with which the next frame begins
        self._spacing = 1  # of the frames kept

    def feed(self, mono: Floats, start: int) -> None:
        """Take the next samples; `start`: how many came before."""
        size, mono = self._grid.window.size, np.ascontiguousarray(mono)
        self._next = max(self._next, start)
        while (room := start + mono.size - size - self._next) >= 0:
            dense = self._next < _DENSE_S * self._rate_hz
            step = max(size, round(self._rate_hz / (_DENSE_PER_S if dense else _SPARSE_PER_S)))
            if dense:
                room = min(room, math.ceil(_DENSE_S * self._rate_hz) - 1 - self._next)
            n = min(room // step + 1, self._grid.n_at_once)
            begin = 4 * (self._next - start)
            self._take(np.ndarray((n, size), np.float32, mono, begin, (4 * step, 4)))
            self._next += n * step
        while self._n_kept > _MOST_FRAMES:
            self._bands = [np.concatenate(self._bands)[::2]]
            self._n_kept = len(self._bands[0])
            self._spacing *= 2

    def _take(self, frames: Floats) -> None:
        """Take frames. [n, size]"""
        grid = self._grid
        # Real and imaginary parts side by side: power is the sum of their squares. [n, 2 * bins]
        power = rfft(frames * grid.window).view(np.float32)
        np.multiply(power, power, out=power)
        self._mean += power.sum(axis=0)
        kept = power[:: self._spacing]
        self._bands.append(np.add.reduceat(kept, grid.indices, axis=1)[:, ::2])
        self._n_kept += len(kept)
        self._n_frames += len(frames)

    def result(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
        """Mean power and floor of each band, NaN above the range, and the bandwidth in hertz."""
        grid = self._grid
        if not self._bands:
            nothing = np.full(_N_BANDS, np.nan)
            return nothing, nothing, self._rate_hz // 2
        bands = np.concatenate(self._bands)  # [frames, bands]
        at = int(_FLOOR * (len(bands) - 1))
        floor = np.partition(bands, at, axis=0)[at].astype(np.float64)
        spectrum = bands.mean(axis=0, dtype=np.float64)
        for powers in (spectrum, floor):
            powers *= grid.scale
            powers[~grid.there] = np.nan
        mean = self._mean.reshape(-1, 2).sum(axis=1) * (grid.scale / self._n_frames)
        mean[:2] = mean[2]  # what a constant offset leaves there
        return spectrum, floor, _bandwidth_hz(mean, self._rate_hz)


@dataclass(frozen=True, eq=False)
class _Grid:
    """What frames at one rate have in common."""

    window: Floats  # [size]
    n_bins: int
    indices: npt.NDArray[np.int64]  # first and end of each band among real and imaginary parts, for reduceat
    there: npt.NDArray[np.bool_]  # [bands] within the range
    scale: float  # from sums over a band to its mean square
    n_at_once: int


@functools.lru_cache(maxsize=8)
def _grid(rate_hz: int) -> _Grid:
    size = 1 << round(math.log2(_FRAME_S * rate_hz))
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    frequency_hz = np.fft.rfftfreq(size, 1 / rate_hz)
    edges = np.searchsorted(frequency_hz, BAND_EDGES_HZ)
    # Bands narrower than a bin have none of their own at low rates; they take the next one.
    first = np.minimum(edges[:-1], frequency_hz.size - 2)
    ends = np.maximum(np.minimum(edges[1:], frequency_hz.size - 1), first + 1)
    indices = 2 * np.stack([first, ends], axis=1).ravel()
    # Twice for the half of the spectrum that is not there; the window's power is divided out.
    scale = 2.0 / (size * float(np.square(window).sum()))
    return _Grid(window, frequency_hz.size, indices, BAND_EDGES_HZ[:-1] < rate_hz / 2, scale,
                 max(1, _FFT_VALUES // size))  # fmt: skip


@functools.lru_cache(maxsize=2)
def _steps(n_bins: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First bin and width of each step in which a band edge is looked for."""
    starts = np.unique(np.linspace(1, n_bins, _EDGE_STEPS, endpoint=False).astype(np.int64))
    return starts, np.diff(np.append(starts, n_bins))


def _bandwidth_hz(power: npt.NDArray[np.float64], rate_hz: int) -> int:
    """The highest frequency above which the spectrum falls off steeply and stays low; else half the rate."""
    starts, widths = _steps(power.size)
    steps = np.add.reduceat(power, starts) / widths
    decibels = 10 * np.log10(np.maximum(steps, 1e-16))
    above = np.maximum.accumulate(decibels[::-1])[::-1][2:]  # the most from the next step but one on
    for edge in np.flatnonzero(decibels[:-2] - above >= _EDGE_DB)[::-1].tolist():
        # A tone falls off as steeply; but what is around it is then as low as what is above.
        if np.median(decibels[: edge + 1]) - above[edge] >= _EDGE_DB:
            edge_hz: float = (edge + 1) / len(decibels) * rate_hz / 2
            return round(edge_hz)
    return rate_hz // 2
