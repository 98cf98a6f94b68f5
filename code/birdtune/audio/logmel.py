"""Waveform → log-mel frames, as the published networks were trained with.

    waveform [samples] float32, 16 kHz mono ─▶ frames [n, 64] float32, stored as float16

Sources: Google's VGGish and YAMNet (AudioSet) as published.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.audio.fft import rfft
from birdtune.audio.front_end import FrontEnd
from birdtune.audio.waveform import as_float

# This many frames are transformed at a time: what is between then stays in the processor's cache. With 512, log-mel
# took 1.3 to 1.9 times as long on a Xeon.
_FFT_FRAMES = 128
# Transforms in float32 leave an error of up to 1.2e-7 of a frame's loudest bin in the sum of each band. A frame whose
# loudest bin is more than so many times its quietest band is transformed in float64: else, beside the offset of 0.01,
# its logarithms would be wrong by up to 1e-3, of others by 1e-4. float16 errs by 0.002.
_WIDEST_RANGE = 1000.0
# Neighbouring bands are summed together in so many parts, as each takes few of the bins.
_MEL_PARTS = 4
# A frame holds sound when a band of it is this far above the floor: a tenth of what is added before the logarithm.
# float16 errs by 0.004 there.
_ABOVE_FLOOR = 0.1
# Log-mel that varies less over a window does not vary: float16 is spaced by 0.004 at the log offset (-4.6), and
# the faintest noise moves a band by more than this.
_STILL = 0.02


@dataclass(frozen=True, kw_only=True)
class LogMel(FrontEnd):
    """Logarithms of magnitudes in mel bands, one frame every 10 ms."""

    kind: ClassVar[str] = "log-mel"
    row_dtype: ClassVar[np.dtype[Any]] = np.dtype("<f2")
    arithmetic: ClassVar[str] = "f32"

    rate_hz: int = 16_000
    window_rows: int = 96
    hop_rows: int = 96
    frame: int = 400  # samples: 25 ms
    frame_hop: int = 160  # samples: 10 ms
    fft: int = 512
    n_mels: int = 64
    low_hz: float = 125.0
    high_hz: float = 7_500.0
    log_offset: float = 0.01

    @property
    def row_hop(self) -> int:
        return self.frame_hop

    @property
    def row_samples(self) -> int:
        return self.frame

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.n_mels,)

    @property
    def n_bins(self) -> int:
        """Bins of the real FFT."""
        return self.fft // 2 + 1

    @property
    def top_hz(self) -> float:
        return self.high_hz if self.limit_hz is None else min(self.high_hz, self.limit_hz)

    @property
    def floor(self) -> float:
        """What a band must exceed to hold sound."""
        return float(np.log(self.log_offset)) + _ABOVE_FLOOR

    def make_rows(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """As `FrontEnd.make_rows`."""
        return _frames(samples, self)

    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
        """Frames in float16."""
        return np.ascontiguousarray(rows, self.row_dtype)

    def sounding(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """As `FrontEnd.sounding`."""
        return np.asarray(windows.max(axis=2) > self.floor)

    def is_still(self, rows: npt.NDArray[Any]) -> bool:
        """As `FrontEnd.is_still`: in no band."""
        return not np.ptp(rows.astype(np.float32), axis=0).max() > _STILL


VGGISH = LogMel(name="vggish")
# Windows overlap by half, as in Google's params.py. Google fills the last one up with zeros; to end it with the
# recording gives heads the same accuracy (docs/windows.md).
YAMNET = LogMel(name="yamnet", log_offset=0.001, hop_rows=48)


def display(rate_hz: int) -> LogMel:
    """For spectrograms: windows of 25 ms every 10 ms, 64 bands, up to 12 kHz or what the rate has."""
    frame = round(0.025 * rate_hz)
    return LogMel(
        name="display", rate_hz=rate_hz, frame=frame, frame_hop=round(0.01 * rate_hz),
        fft=1 << (frame - 1).bit_length(), high_hz=min(12_000.0, 0.46875 * rate_hz),
    )  # fmt: skip


def picture(spec: FrontEnd, windows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float]:
    """Stored windows [n, window_rows, ...] as spectrograms [n, frames, bands], and their value of silence."""
    if isinstance(spec, LogMel):
        return windows.astype(np.float32), float(np.log(spec.log_offset))
    look = display(spec.rate_hz)
    waveforms = as_float(windows).reshape(len(windows), -1)
    return np.stack([log_mel(waveform, look) for waveform in waveforms]), float(np.log(look.log_offset))


def mel_from_hz(frequency_hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Hertz to mel, the HTK formula in natural logarithms: 1127 ln(1 + f / 700)."""
    return np.asarray(1127.0 * np.log1p(np.asarray(frequency_hz, np.float64) / 700.0))


@functools.cache
def mel_matrix(spec: LogMel) -> npt.NDArray[np.float32]:
    """Weights from FFT magnitudes to mel bands, read-only. [n_bins, n_mels]

    Triangles that are linear in mel (not in hertz) with peak 1, not normalised by area; the DC bin
    counts for nothing. So VGGish defines them. Bins above `spec.limit_hz` count for nothing either.
    """
    bins_hz = np.linspace(0.0, spec.rate_hz / 2, spec.n_bins)
    bins_mel = mel_from_hz(bins_hz)[:, None]  # [n_bins, 1]
    edges = np.linspace(mel_from_hz(spec.low_hz), mel_from_hz(spec.high_hz), spec.n_mels + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]  # [n_mels] each
    rising = (bins_mel - lower) / (centre - lower)
    falling = (upper - bins_mel) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    weights[0] = 0.0
    if spec.limit_hz is not None:
        weights[bins_hz > spec.limit_hz] = 0.0
    weights.flags.writeable = False
    return weights


@functools.cache
def hann_window(spec: LogMel) -> npt.NDArray[np.float64]:
    """Periodic Hann window, 0.5 - 0.5 cos(2 pi n / frame), read-only. [frame]"""
    # As in scipy.signal.get_window, to the bit; to import that takes every worker almost a second.
    window = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, spec.frame + 1)[:-1])
    window.flags.writeable = False
    return window


@functools.cache
def _mel_parts(spec: LogMel) -> list[tuple[slice, slice, npt.NDArray[np.float32]]]:
    """The matrix in parts: bins, bands and the weights from these to those; all others are zero."""
    parts, weights = [], mel_matrix(spec)
    for numbers in np.array_split(np.arange(spec.n_mels), _MEL_PARTS):
        bands = slice(int(numbers[0]), int(numbers[-1]) + 1)
        used = np.flatnonzero(weights[:, bands].any(axis=1))
        bins = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
        parts.append((bins, bands, np.ascontiguousarray(weights[bins, bands])))
    return parts


def log_mel(waveform: npt.NDArray[np.floating], spec: LogMel = VGGISH) -> npt.NDArray[np.float32]:
    """Log-mel frames of a whole sound.

    Args:
        waveform: [samples] float32 or float64 mono at `spec.rate_hz`, full scale 1.

    Returns:
        [frames, n_mels] float32, `spec.row_count(samples)` frames; none for a sound shorter than
        one window.
    """
    blocks = list(spec.unpadded_rows([waveform]))
    return np.concatenate(blocks) if blocks else np.zeros((0, spec.n_mels), np.float32)


def _frames(samples: npt.NDArray[np.floating], spec: LogMel) -> npt.NDArray[np.float32]:
    windows = np.lib.stride_tricks.sliding_window_view(samples, spec.frame)[:: spec.frame_hop]  # [frames, frame]
    mel = np.empty((len(windows), spec.n_mels), np.float32)
    window = hann_window(spec).astype(np.float32)
    padded = np.empty((min(_FFT_FRAMES, len(windows)), spec.fft), np.float32)
    padded[:, spec.frame :] = 0.0
    for start in range(0, len(windows), _FFT_FRAMES):
        some = windows[start : start + _FFT_FRAMES]  # [n, frame]
        np.multiply(some, window, out=padded[: len(some), : spec.frame], casting="same_kind")
        magnitude = np.abs(rfft(padded[: len(some)]))  # [n, n_bins]
        found = _banded(magnitude, mel[start : start + _FFT_FRAMES], spec)
        if magnitude.max() <= _WIDEST_RANGE * found.min():  # mostly; by frames it takes ten times as long
            continue
        wide = magnitude.max(axis=1) > _WIDEST_RANGE * found.min(axis=1)
        if wide.any():
            exact = np.abs(np.fft.rfft(some[wide] * hann_window(spec), spec.fft, axis=1)).astype(np.float32)
            found[wide] = _banded(exact, np.empty((len(exact), spec.n_mels), np.float32), spec)
    return np.log(mel, out=mel)


def _banded(
    magnitude: npt.NDArray[np.float32], mel: npt.NDArray[np.float32], spec: LogMel
) -> npt.NDArray[np.float32]:
    """Magnitudes [n, n_bins] summed into bands, with the offset. Fills and returns mel [n, n_mels]."""
    for bins, bands, weights in _mel_parts(spec):
        np.matmul(magnitude[:, bins], weights, out=mel[:, bands])
    mel += np.float32(spec.log_offset)
    return mel
