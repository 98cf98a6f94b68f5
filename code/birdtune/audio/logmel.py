"""Waveform → log-mel frames → windows, as a network was trained to see them.

    waveform [samples] float32, 16 kHz mono ─▶ frames [n, 64] float32 ─▶ cut ─▶ windows [96, 64] and where they begin

Windows begin every so many frames, and the last one ends where the sound ends, so that all of it is in a window. Only
a sound shorter than a window is filled up with zeros.

A front end is a frozen specification; its name and digest are part of the frame store's key, so that
frames of two specifications never mix. Sources: Google's VGGish and YAMNet (AudioSet) as published.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from birdtune.runtime.files import value_sha256

# Frames are computed this many at a time, counted from the start of the sound, so that a sound fed
# in pieces gives the very bits of the same sound fed whole.
_BLOCK_FRAMES = 512
# Of those, this many are transformed at a time: what is between then stays in the processor's cache.
_FFT_FRAMES = 64


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes frames, and frames become patches."""

    name: str
    rate_hz: int = 16_000
    window: int = 400  # samples: 25 ms
    hop: int = 160  # samples: 10 ms
    fft: int = 512
    n_mels: int = 64
    low_hz: float = 125.0
    high_hz: float = 7_500.0
    log_offset: float = 0.01
    patch_frames: int = 96
    patch_hop: int = 96  # frames from one patch to the next where a whole sound is heard
    limit_hz: float | None = None  # what is above counts for nothing; None: all counts up to `high_hz`

    @property
    def n_bins(self) -> int:
        """Bins of the real FFT."""
        return self.fft // 2 + 1

    @property
    def top_hz(self) -> float:
        """What is above is not heard."""
        return self.high_hz if self.limit_hz is None else min(self.high_hz, self.limit_hz)

    @property
    def frames_per_s(self) -> float:
        """Frames in one second."""
        return self.rate_hz / self.hop

    @property
    def patch_s(self) -> float:
        """Seconds from one patch to the next when they do not overlap (0.96)."""
        return self.patch_frames / self.frames_per_s

    @property
    def patch_samples(self) -> int:
        """Samples of the shortest sound that gives one patch (15,600 = 0.975 s)."""
        return self.window + (self.patch_frames - 1) * self.hop

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any number above; those without a limit are as they were."""
        numbers = {name: value for name, value in asdict(self).items() if value is not None}
        return value_sha256(numbers)[:12]

    def padded_samples(self, n_samples: int) -> int:
        """Samples of a sound once zeros are put after its end: at least one patch, and whole frames (10 ms at most)."""
        hops = -(-(n_samples - self.window) // self.hop)
        return self.window + max(hops, self.patch_frames - 1) * self.hop

    def frame_count(self, n_samples: int) -> int:
        """Frames in `n_samples` samples, as they are."""
        return max(0, (n_samples - self.window) // self.hop + 1)

    def patch_count(self, n_frames: int, hop_frames: int | None = None) -> int:
        """Patches in `n_frames` frames: how many `starts` there are."""
        behind = n_frames - self.patch_frames  # frames behind the first patch
        return 0 if behind < 0 else -(-behind // (hop_frames or self.patch_hop)) + 1

    def starts(self, n_frames: int, hop_frames: int | None = None) -> npt.NDArray[np.int64]:
        """First frame of each patch: one every `hop_frames` (default: `patch_hop`), and a last one at the end.

        The last overlaps the one before more than others do, mostly. None for fewer frames than a patch has. [P]
        """
        count = self.patch_count(n_frames, hop_frames)
        return np.minimum(np.arange(count) * (hop_frames or self.patch_hop), n_frames - self.patch_frames)

    def patches_in(self, n_samples: int, hop_frames: int | None = None) -> int:
        """Patches of a sound of `n_samples` samples, filled up as `padded_samples` says."""
        return self.patch_count(self.frame_count(self.padded_samples(n_samples)), hop_frames)


VGGISH = FrontEnd("vggish")
# Patches overlap by half, as in Google's params.py. Google fills the last one up with zeros; to end it with the sound
# gives heads the same accuracy (docs/windows.md).
YAMNET = FrontEnd("yamnet", log_offset=0.001, patch_hop=48)
FRONT_ENDS = (VGGISH, YAMNET)


def front_end_of(digest: str, limit_hz: float | None = None) -> FrontEnd | None:
    """The front end that has this digest, of those that there are with this limit; None: there is none.

    Args:
        limit_hz: as somebody's model.json has it; what is no positive number gives None.
    """
    if limit_hz is not None and (type(limit_hz) not in (int, float) or not 0 < limit_hz < math.inf):
        return None
    limited = (replace(spec, limit_hz=None if limit_hz is None else float(limit_hz)) for spec in FRONT_ENDS)
    return next((spec for spec in limited if spec.digest == digest), None)


def mel_from_hz(frequency_hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Hertz to mel, the HTK formula in natural logarithms: 1127 ln(1 + f / 700)."""
    return np.asarray(1127.0 * np.log1p(np.asarray(frequency_hz, np.float64) / 700.0))


def hz_from_mel(mel: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mel to hertz, the inverse of `mel_from_hz`."""
    return np.asarray(700.0 * np.expm1(np.asarray(mel, np.float64) / 1127.0))


def band_centres_hz(spec: FrontEnd) -> npt.NDArray[np.float64]:
    """Centre frequency of each mel band, in hertz. [n_mels]"""
    return hz_from_mel(_band_edges_mel(spec)[1:-1])


def _band_edges_mel(spec: FrontEnd) -> npt.NDArray[np.float64]:
    low, high = mel_from_hz(spec.low_hz), mel_from_hz(spec.high_hz)
    return np.linspace(low, high, spec.n_mels + 2)  # [n_mels + 2]


@functools.cache
def mel_matrix(spec: FrontEnd) -> npt.NDArray[np.float32]:
    """Weights from FFT magnitudes to mel bands, read-only. [n_bins, n_mels]

    Triangles that are linear in mel (not in hertz) with peak 1, not normalised by area; the DC bin
    counts for nothing. So VGGish defines them. Bins above `spec.limit_hz` count for nothing either.
    """
    bins_hz = np.linspace(0.0, spec.rate_hz / 2, spec.n_bins)
    bins_mel = mel_from_hz(bins_hz)[:, None]  # [n_bins, 1]
    edges = _band_edges_mel(spec)
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
def hann_window(spec: FrontEnd) -> npt.NDArray[np.float64]:
    """Periodic Hann window, 0.5 - 0.5 cos(2 pi n / window), read-only. [window]"""
    # As in scipy.signal.get_window, to the bit; to import that takes every worker almost a second.
    window = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, spec.window + 1)[:-1])
    window.flags.writeable = False
    return window


def log_mel(waveform: npt.NDArray[np.floating], spec: FrontEnd = VGGISH) -> npt.NDArray[np.float32]:
    """Log-mel frames of a whole sound.

    Args:
        waveform: [samples] float32 or float64 mono at `spec.rate_hz`, full scale 1.

    Returns:
        [frames, n_mels] float32, `spec.frame_count(samples)` frames; none for a sound shorter than
        one window.
    """
    stream = LogMelStream(spec)
    blocks = [*stream.feed(waveform), *stream.finish()]
    return np.concatenate(blocks) if blocks else np.zeros((0, spec.n_mels), np.float32)


def frames_of(
    blocks: Iterable[npt.NDArray[np.float32]], spec: FrontEnd = VGGISH
) -> Iterator[npt.NDArray[np.float32]]:
    """Log-mel frames of a sound given in blocks, with zeros put after its end as `spec.padded_samples` says.

    Args:
        blocks: [n] samples each, mono at `spec.rate_hz`.

    Yields:
        [n, n_mels] float32; together at least `spec.patch_frames` frames.
    """
    stream = LogMelStream(spec)
    n_samples = 0
    for block in blocks:
        n_samples += block.size
        yield from stream.feed(block)
    yield from stream.feed(np.zeros(spec.padded_samples(n_samples) - n_samples, np.float32))
    yield from stream.finish()


def cut(
    blocks: Iterable[npt.NDArray[np.float32]], spec: FrontEnd = VGGISH, hop_frames: int | None = None
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The patches of a sound whose frames come in blocks, where `spec.starts` has them; memory does not grow.

    Args:
        blocks: [n, n_mels] each, as `frames_of` gives them.

    Yields:
        first frame, and frames [patch_frames, n_mels].
    """
    hop = hop_frames or spec.patch_hop
    waiting = np.zeros((0, spec.n_mels), np.float32)
    start = first = 0  # frames with which `waiting` and the next patch begin
    for frames in blocks:
        waiting = np.concatenate([waiting, frames])
        while first + spec.patch_frames <= start + len(waiting):
            yield first, waiting[first - start : first - start + spec.patch_frames]
            first += hop
        # A patch is kept back: it is the last one, if nothing follows.
        passed = max(0, min(first - start, len(waiting) - spec.patch_frames))
        waiting, start = waiting[passed:], start + passed
    last = start + len(waiting) - spec.patch_frames
    if last >= 0 and last > first - hop:
        yield last, waiting[-spec.patch_frames :]


class LogMelStream:
    """Log-mel frames of a sound that arrives in pieces; memory does not grow with its length."""

    def __init__(self, spec: FrontEnd = VGGISH) -> None:
        self.spec = spec
        self._waiting: npt.NDArray[np.floating] = np.zeros(0, np.float32)

    def feed(self, samples: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.float32]]:
        """Take [n] samples; yield blocks [512, n_mels] as they become whole."""
        self._waiting = np.concatenate([self._waiting, samples])
        needed = self.spec.window + (_BLOCK_FRAMES - 1) * self.spec.hop
        start = 0
        while self._waiting.size - start >= needed:
            yield _frames(self._waiting[start : start + needed], self.spec)
            start += _BLOCK_FRAMES * self.spec.hop
        self._waiting = self._waiting[start:]

    def finish(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the frames that are left, [n < 512, n_mels], if any."""
        if self.spec.frame_count(self._waiting.size):
            yield _frames(self._waiting, self.spec)
        self._waiting = np.zeros(0, np.float32)


def _frames(samples: npt.NDArray[np.floating], spec: FrontEnd) -> npt.NDArray[np.float32]:
    windows = np.lib.stride_tricks.sliding_window_view(samples, spec.window)[:: spec.hop]  # [frames, window]
    magnitude = np.empty((len(windows), spec.n_bins), np.float32)
    # Tables that live on: a new one for each step costs as much as the transform itself.
    padded = np.zeros((_FFT_FRAMES, spec.fft))
    spectrum = np.empty((_FFT_FRAMES, spec.n_bins), np.complex128)
    for start in range(0, len(windows), _FFT_FRAMES):
        some = windows[start : start + _FFT_FRAMES]  # [n, window]
        np.multiply(some, hann_window(spec), out=padded[: len(some), : spec.window])
        # The transform runs in float64: a float32 one errs by 1e-5 of the loudest bin, which beside the
        # offset of 0.01 would show in the quiet bands (2e-4 in the published test vector's minimum).
        np.fft.rfft(padded[: len(some)], axis=1, out=spectrum[: len(some)])
        np.abs(spectrum[: len(some)].astype(np.complex64), out=magnitude[start : start + _FFT_FRAMES])
    mel = magnitude @ mel_matrix(spec)  # [frames, n_mels]
    mel += np.float32(spec.log_offset)
    return np.asarray(np.log(mel, out=mel))
