"""Noise as a front end gives it: its mean in each mel band, and its variation there.

    front end + colour ─▶ expected magnitudes [n_mels], a table of noise frames [n, n_mels];  frames ─▶ power

A frame holds sums of FFT *magnitudes*, m_b = Σ_k w_kb |X_k|, not of powers. Gaussian noise of power spectrum
E_k = E|X_k|² has Rayleigh magnitudes, so that, with the correlation r_kl that the window leaves between bins,

    E m_b   = Σ_k w_kb √(π E_k / 4)
    Var m_b = Σ_kl w_kb w_lb √(E_k E_l) (π/4) (₂F₁(-½, -½; 1; r_kl²) - 1)

(the mean product of two correlated Rayleigh variables is √(E_k E_l) (π/4) ₂F₁). Where noise N meets a sound S,
|S + N|² = S² + N² + 2 S N cos θ in each bin; of a band that is n bins wide, the last term averages out in part:

    m'² = m² + a² + 2 m a s_b cos θ,   s_b² = Var a_b / ((1 - π/4) E a_b²)

with a from the noise alone and θ even. s_b makes m' as variable as it is where the sound is far louder: it is exact
for one bin (s = 1), and for many that are independent. On real sound the means of log(m' + offset) so got are within
0.02 of those of sound and noise added as waveforms, and the deviations within a twentieth; a pure tone that is
far above the noise varies by some quarter too much.

Powers are those within the front end's own band, from `low_hz` to `top_hz`: noise outside of it is ignored.
"""

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.special

from birdtune.audio.logmel import LogMel, hann_window, log_mel, mel_matrix

Colour = Literal["white", "pink"]
COLOURS: tuple[Colour, ...] = ("white", "pink")

# One minute of noise: an excerpt of it is drawn for each window, so that the same one seldom comes twice.
_TABLE_S = 60
# The sample is loud beside the front end's offset, which float32 then takes off without loss.
_LOUD = 10.0

Floats = npt.NDArray[np.float64]


def bin_powers(spec: LogMel, colour: Colour) -> Floats:
    """E|X_k|² of noise with power 1 in the front end's band. [n_bins]

    White noise has the same in all bins, pink noise 1 / f (nothing at 0 Hz). By Parseval's theorem the sum of
    |X_k|² over all bins is fft · Σ window² times the power of the waveform; each bin counts twice, but one half of
    the spectrum is kept.
    """
    frequency_hz = np.linspace(0.0, spec.rate_hz / 2, spec.n_bins)
    shape = np.ones(spec.n_bins)
    if colour == "pink":
        shape = np.concatenate([[0.0], 1.0 / frequency_hz[1:]])
    in_band = (frequency_hz >= spec.low_hz) & (frequency_hz <= spec.top_hz)
    return np.asarray(shape * spec.fft * (hann_window(spec) ** 2).sum() / (2.0 * shape[in_band].sum()))


def mean_magnitudes(spec: LogMel, colour: Colour) -> Floats:
    """E m_b of noise with power 1 in the front end's band. [n_mels]"""
    return np.asarray(np.sqrt(np.pi / 4 * bin_powers(spec, colour)) @ mel_matrix(spec).astype(np.float64))


def magnitude_variances(spec: LogMel, colour: Colour) -> Floats:
    """Var m_b of noise with power 1 in the front end's band. [n_mels]"""
    weighted = np.sqrt(bin_powers(spec, colour))[:, None] * mel_matrix(spec).astype(np.float64)  # [n_bins, n_mels]
    squares = hann_window(spec) ** 2
    # Bins as far apart as k and l of one signal: the transform of the squared window at the distance k - l.
    correlation = np.abs(np.fft.rfft(squares, spec.fft)) / squares.sum()  # [n_bins] by distance
    covariance = np.pi / 4 * (scipy.special.hyp2f1(-0.5, -0.5, 1.0, correlation**2) - 1.0)
    distance = np.abs(np.subtract.outer(np.arange(spec.n_bins), np.arange(spec.n_bins)))
    return np.asarray(np.einsum("kb,kl,lb->b", weighted, covariance[distance], weighted, optimize=True))


@functools.cache
def power_weights(spec: LogMel) -> npt.NDArray[np.float32]:
    """Weight of m_b² of each band in the power, read-only. [n_mels]

    Σ_b power_weights_b · m_b², averaged over frames, is the power of white noise, and within some decibels that of
    birds and other sounds: each band stands for its share of the spectrum, and m_b² for what white noise that makes it
    would have.
    """
    matrix = mel_matrix(spec).astype(np.float64)
    share = matrix.sum(axis=0) / matrix.sum()
    expected = mean_magnitudes(spec, "white") ** 2 + magnitude_variances(spec, "white")
    # Bands above a limit hold nothing, whatever the noise.
    weights = np.zeros(spec.n_mels, np.float32)
    np.divide(share, expected, out=weights, where=expected > 0, casting="same_kind")
    weights.flags.writeable = False
    return weights


def power(squares: npt.NDArray[np.float32], spec: LogMel) -> npt.NDArray[np.float32]:
    """Power of windows in the front end's band, full scale sine 0.5, from the squares of mel magnitudes.

    Args:
        squares: [n, frames, n_mels] m².

    Returns:
        [n] float32.
    """
    # No matrix product: its last bits depend on how many rows there are, and a row must not depend on others.
    return np.asarray((squares.mean(axis=1) * power_weights(spec)).sum(axis=1), np.float32)


def noise_samples(rate_hz: int, colour: Colour, low_hz: float = 20.0) -> Floats:
    """A minute of Gaussian noise, the same each time; pink noise has nothing below `low_hz`. [samples]"""
    n_samples = _TABLE_S * rate_hz
    samples = np.random.Generator(np.random.Philox(key=[0, COLOURS.index(colour)])).standard_normal(n_samples)
    if colour == "white":
        return samples
    spectrum = np.fft.rfft(samples)
    frequency = np.arange(spectrum.size, dtype=np.float64)
    frequency[: round(low_hz * _TABLE_S)] = np.inf
    return np.asarray(np.fft.irfft(spectrum / np.sqrt(frequency), n_samples))


@functools.cache
def noise_frames(spec: LogMel, colour: Colour) -> npt.NDArray[np.float32]:
    """Mel magnitudes of a minute of noise with power 1 in the front end's band, read-only. [n, n_mels]

    Made by the front end itself, from Gaussian samples that are the same each time: so each frame and band has its
    right distribution, and neighbours in time and pitch are as alike as in real noise.
    """
    # Below a fifth of the band nothing reaches it, and 1 / f has no end there.
    samples = noise_samples(spec.rate_hz, colour, spec.low_hz / 5)
    samples *= np.float64(_LOUD / np.sqrt(band_power(samples, spec)))
    table = (np.exp(log_mel(samples, spec)) - np.float32(spec.log_offset)) / np.float32(_LOUD)
    table.flags.writeable = False
    return np.asarray(table)


@functools.cache
def interference(spec: LogMel) -> npt.NDArray[np.float32]:
    """s_b cos θ, as the module's docstring says, for as many frames as `noise_frames` has, read-only. [n, n_mels]"""
    # Pink noise is as white within a band: the bands are narrow.
    variances, means = magnitude_variances(spec, "white"), mean_magnitudes(spec, "white")
    squares = (1.0 - np.pi / 4) * (means**2 + variances)
    scale = np.sqrt(np.divide(variances, squares, out=np.zeros_like(squares), where=squares > 0))  # [n_mels]
    shape = noise_frames(spec, "white").shape
    angles = np.random.Generator(np.random.Philox(key=[0, len(COLOURS)])).random(shape, np.float32)
    table = np.asarray(np.cos(2 * np.pi * angles) * scale, np.float32)
    table.flags.writeable = False
    return table


def band_power(samples: npt.NDArray[np.floating], spec: LogMel) -> float:
    """Mean square of a waveform's part between `low_hz` and `top_hz`. samples: [n] at `spec.rate_hz`"""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequency_hz = np.arange(spectrum.size) * spec.rate_hz / samples.size
    in_band = (frequency_hz >= spec.low_hz) & (frequency_hz <= spec.top_hz)
    return float(2.0 * spectrum[in_band].sum() / samples.size**2)
