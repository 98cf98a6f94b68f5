"""Synthetic noises, which a model must not take for a bird.

name, seconds, rate ─▶ made_noise ─▶ waveform [samples] float32

The same samples every time and everywhere, so that figures of two runs can be compared.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import scipy.signal

Floats = npt.NDArray[np.float64]

_SEED = 1
# Root mean square of steady noise, as of a recorder in wind or rain: 26 dB below full scale.
_LEVEL = 0.05
_MAINS_HZ, _HARMONICS = 50.0, 12
_CLICKS_A_S, _CLICK_S = 2.0, 0.004


def made_noise(name: str, seconds: float, rate_hz: int) -> npt.NDArray[np.float32]:
    """One of `NOISES`. [samples] float32 in -1…1"""
    made = NOISES[name](round(seconds * rate_hz), rate_hz, np.random.default_rng(_SEED))
    return np.clip(made, -1.0, 1.0).astype(np.float32)


def _silence(n: int, rate_hz: int, rng: np.random.Generator) -> Floats:
    return np.zeros(n)


def _white(n: int, rate_hz: int, rng: np.random.Generator) -> Floats:
    return _LEVEL * rng.standard_normal(n)


def _pink(n: int, rate_hz: int, rng: np.random.Generator) -> Floats:
    """Power falls as 1 / f: amplitudes of white noise over the root of the frequency, none below 20 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequencies_hz = np.fft.rfftfreq(n, 1 / rate_hz)
    shape = np.where(frequencies_hz >= 20.0, 1 / np.sqrt(np.maximum(frequencies_hz, 20.0)), 0.0)
    return _levelled(np.fft.irfft(spectrum * shape, n))


def _hum(n: int, rate_hz: int, rng: np.random.Generator) -> Floats:
    """Mains and its harmonics, each weaker than the one before, in a little noise."""
    time_s = np.arange(n) / rate_hz
    tones = [np.sin(2 * np.pi * k * _MAINS_HZ * time_s + k) / k for k in range(1, _HARMONICS + 1)]
    return _levelled(np.sum(tones, axis=0)) + 0.01 * _white(n, rate_hz, rng)


def _clicks(n: int, rate_hz: int, rng: np.random.Generator) -> Floats:
    """Short bursts at random moments, as of rain drops or a loose cable, in a little noise."""
    train = np.zeros(n)
    train[rng.integers(0, n, max(1, round(n / rate_hz * _CLICKS_A_S)))] = 1.0
    burst = rng.standard_normal(round(_CLICK_S * rate_hz)) * np.hanning(round(_CLICK_S * rate_hz))
    return 0.3 * np.asarray(scipy.signal.fftconvolve(train, burst))[:n] + 0.01 * _white(n, rate_hz, rng)


def _levelled(noise: Floats) -> Floats:
    return np.asarray(noise * (_LEVEL / np.sqrt(np.mean(noise**2))))


SILENCE = "silence"

NOISES: Mapping[str, Callable[[int, int, np.random.Generator], Floats]] = {
    SILENCE: _silence,
    "white noise": _white,
    "pink noise": _pink,
    "mains hum": _hum,
    "clicks": _clicks,
}
