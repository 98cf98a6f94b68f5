"""Waveform → log-mel frames, as the published networks were trained with.

    waveform [samples] float32, 16 kHz mono ─▶ frames [n, 64] float32, stored as float16

Sources: Google's VGGish and YAMNet (AudioSet) as published.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.waveform import as_float

# This many frames are transformed at a time: what is between then stays in the processor's cache.
_FFT_FRAMES = 64
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
    magnitude = np.empty((len(windows), spec.n_bins), np.float32)
    # Tables that live on: a new one for each step costs as much as the transform itself.
    padded = np.zeros((_FFT_FRAMES, spec.fft))
    spectrum = np.empty((_FFT_FRAMES, spec.n_bins), np.complex128)
    for start in range(0, len(windows), _FFT_FRAMES):
        some = windows[start : start + _FFT_FRAMES]  # [n, window]
        np.multiply(some, hann_window(spec), out=padded[: len(some), : spec.frame])
        # The transform runs in float64: a float32 one errs by 1e-5 of the loudest bin, which beside the
        # offset of 0.01 would show in the quiet bands (2e-4 in the published test vector's minimum).
        np.fft.rfft(padded[: len(some)], axis=1, out=spectrum[: len(some)])
        np.abs(spectrum[: len(some)].astype(np.complex64), out=magnitude[start : start + _FFT_FRAMES])
    mel = magnitude @ mel_matrix(spec)  # [frames, n_mels]
    mel += np.float32(spec.log_offset)
    return np.asarray(np.log(mel, out=mel))
