"""How sounds are made louder and mixed in the features of a front end.

    stored windows [n, ...] ─▶ amplitudes ─▶ times a factor, plus others, plus noise ─▶ stored windows

Amplitudes are what a factor makes louder: samples of a waveform, or mel magnitudes of log-mel. A frame of log-mel is
log(m + offset), so m = exp(frame) - offset; magnitudes of independent sounds add up as powers do, m'² = m² + (g a)².
"""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from birdtune.audio import noise
from birdtune.audio.front_end import FrontEnd
from birdtune.audio.logmel import LogMel
from birdtune.audio.waveform import Waveform, as_float

Windows = npt.NDArray[Any]  # [n, window_rows, ...] as they are stored
Amplitudes = npt.NDArray[np.float32]  # [n, window_rows, ...]
Floats = npt.NDArray[np.float64]


class Mixing(Protocol):
    """What can be done to sounds in the features of a front end."""

    @property
    def silence(self) -> float:
        """The value of silence in stored windows."""
        ...

    def amplitudes(self, windows: Windows) -> Amplitudes:
        """Amplitudes of stored windows, in memory of their own."""
        ...

    def stored(self, amplitudes: Amplitudes) -> Windows:
        """Windows as they are stored."""
        ...

    def power(self, amplitudes: Amplitudes) -> npt.NDArray[np.float32]:
        """Power of each window within the front end's band, full scale sine 0.5. [n]"""
        ...

    def summed(self, first: Amplitudes, second: Amplitudes) -> Amplitudes:
        """Two independent sounds at once."""
        ...

    def with_noise(
        self, amplitudes: Amplitudes, level: npt.NDArray[np.floating[Any]], colour: noise.Colour, start: Floats,
        phase: Floats,
    ) -> Amplitudes:  # fmt: skip
        """Windows with noise.

        Args:
            level: [n] root of the noise's power, within the front end's band.
            start, phase: [n] in 0…1, which part of the tables of noise and of phases.
        """
        ...


def mixing_of(spec: FrontEnd) -> Mixing:
    """How sounds are mixed in this front end's features."""
    if isinstance(spec, LogMel):
        return LogMelMixing(spec)
    assert isinstance(spec, Waveform)
    return WaveformMixing(spec)


@dataclass(frozen=True)
class LogMelMixing:
    """In log-mel frames [n, frames, n_mels]."""

    spec: LogMel

    @property
    def silence(self) -> float:
        return float(np.log(self.spec.log_offset))

    def amplitudes(self, windows: Windows) -> Amplitudes:
        mel = np.exp(windows.astype(np.float32))
        mel -= np.float32(self.spec.log_offset)
        return np.asarray(np.maximum(mel, 0.0, out=mel))  # float16 rounds

    def stored(self, amplitudes: Amplitudes) -> Windows:
        return self.spec.stored(np.log(amplitudes + np.float32(self.spec.log_offset)))

    def power(self, amplitudes: Amplitudes) -> npt.NDArray[np.float32]:
        return noise.power(np.square(amplitudes), self.spec)

    def summed(self, first: Amplitudes, second: Amplitudes) -> Amplitudes:
        return np.asarray(np.sqrt(np.square(first) + np.square(second)))

    def with_noise(
        self, amplitudes: Amplitudes, level: npt.NDArray[np.floating[Any]], colour: noise.Colour, start: Floats,
        phase: Floats,
    ) -> Amplitudes:  # fmt: skip
        """As `Mixing.with_noise`; see `noise.py` for how both meet."""
        mel, table = amplitudes, noise.noise_frames(self.spec, colour)
        inside = np.arange(mel.shape[1])
        room = len(table) - inside.size
        added = table[(start * room).astype(np.int64)[:, None] + inside]  # [n, frames, n_mels]
        added *= column(level, added)
        meeting = noise.interference(self.spec)[(phase * room).astype(np.int64)[:, None] + inside]
        # m² + a² + 2 m a c = (m + a c)² + a² (1 - c²): never negative, as |c| ≤ 1; computed in place, for speed.
        meeting *= mel
        meeting *= 2.0
        meeting += added
        meeting *= added
        meeting += np.square(mel)
        return np.asarray(np.sqrt(np.maximum(meeting, 0.0, out=meeting), out=meeting))


@dataclass(frozen=True)
class WaveformMixing:
    """In samples [n, rows, samples a row]."""

    spec: Waveform

    @property
    def silence(self) -> float:
        return 0.0

    def amplitudes(self, windows: Windows) -> Amplitudes:
        return np.array(as_float(windows))

    def stored(self, amplitudes: Amplitudes) -> Windows:
        return self.spec.stored(amplitudes)

    def power(self, amplitudes: Amplitudes) -> npt.NDArray[np.float32]:
        return np.asarray(np.square(amplitudes).mean(axis=(1, 2), dtype=np.float64), np.float32)

    def summed(self, first: Amplitudes, second: Amplitudes) -> Amplitudes:
        return np.asarray(first + second)

    def with_noise(
        self, amplitudes: Amplitudes, level: npt.NDArray[np.floating[Any]], colour: noise.Colour, start: Floats,
        phase: Floats,
    ) -> Amplitudes:  # fmt: skip
        """As `Mixing.with_noise`; waveforms bring their own phases."""
        del phase
        table = _noise_rows(self.spec.rate_hz, self.spec.row_width, colour)
        inside = np.arange(amplitudes.shape[1])
        first = (start * (len(table) - inside.size)).astype(np.int64)
        added = table[first[:, None] + inside]  # [n, rows, samples]
        added *= column(level, added)
        return np.asarray(amplitudes + added)


@functools.cache
def _noise_rows(rate_hz: int, row_width: int, colour: noise.Colour) -> npt.NDArray[np.float32]:
    """A minute of noise with power 1, read-only. [rows, samples a row]"""
    samples = noise.noise_samples(rate_hz, colour)
    samples /= np.sqrt(np.mean(np.square(samples)))
    table = samples[: samples.size // row_width * row_width].reshape(-1, row_width).astype(np.float32)
    table.flags.writeable = False
    return table


def column(values: npt.NDArray[np.floating[Any]], beside: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[n] → float32 [n, 1, …], to multiply `beside` with."""
    return np.asarray(values, np.float32).reshape(-1, *[1] * (beside.ndim - 1))
