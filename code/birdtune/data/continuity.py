"""Whether the samples of one recording run on in another, as those of clips do that lay side by side.

    covariance and samples of ends ─▶ Seams ─▶ score of a pair: the end of one, the start of the other

The score is a generalised log-likelihood ratio in nats: of the last samples of one recording and the first of the other
as one stretch of a Gaussian process, against two independent stretches of that process. Its autocovariance is the mean
of those around both ends, by autoregressive models; its scale is not given, but estimated from the samples. An end that
was faded out, by a person or by an encoder, shows nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from birdtune.audio.ends import N_LAGS, N_SAMPLES, read_ends

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What the covariance is certain to, and the rounding of 16-bit samples.
_UNCERTAIN, _ROUNDING = 1e-6, (1 / 32768) ** 2 / 12
# Of the prediction errors, the last and those before them; an end in which the last are so much smaller was faded out.
_NEAREST, _FADED = 12, 0.3
# Share of its power in the prediction error, from which on a sound is as good as white: no sample predicts the next.
_WHITE = 0.8
# Prediction errors at the seam, of those usual around it, beyond which no more is computed.
_FAR = 8.0
# How much better, as a logarithm, the samples around one end can be predicted than those around the other.
_MOST_UNLIKE = np.log(5.0)
# Energies of the ends, the fainter relative to the model and to the louder: below the first, the model is of another
# sound; below the second, it may be, and the score counts up to so many nats.
_NO_ENERGY, _LITTLE_ENERGY = (0.02, 0.05), (0.3, 0.2)
_MOST_OF_LITTLE = 4.0
_PAIRS_AT_ONCE = 1024
# Samples of each end by which most pairs are left out.
_FEW_SAMPLES = 12


@dataclass(frozen=True, eq=False)
class _Ends:
    """One end of each of n recordings, the samples in the order of time.

    Attributes:
        samples: [n, 48]
        model: [n, 25] the prediction error is the sum over lags of model · sample.
        error: [n] standard deviation of the prediction error.
        power: [n] variance.
        correlation: [n, 96] autocorrelation, by the model beyond its order.
        shows: [n] whether it is neither silent, nor faded out, nor white.
    """

    samples: Floats
    model: Floats
    error: Floats
    power: Floats
    correlation: Floats
    shows: npt.NDArray[np.bool_]


class Seams:
    """The ends of recordings of one sample rate.

    Args:
        texts: as `audio.ends.Ends.found` makes them; "" shows nothing.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        both = [read_ends(text) if text else None for text in texts]
        self._starts, self._ends = (
            _modelled(
                np.stack([ends[side].samples if ends else np.zeros(N_SAMPLES) for ends in both]),
                np.stack([ends[side].covariance if ends else np.zeros(N_LAGS + 1) for ends in both]),
                at_end=bool(side),
            )
            for side in (0, 1)
        )

    def scores(self, first: Ints, second: Ints) -> Floats:
        """Log-likelihood ratio that `second` begins where `first` ends, nats; -inf where it does not. [pairs]"""
        found = np.full(len(first), -np.inf)
        near = np.flatnonzero(self._near(first, second))
        for n, least in ((_FEW_SAMPLES, 0.0), (N_SAMPLES, -np.inf)):  # a few samples leave few pairs for all of them
            ratios = [
                self._ratio(first[part], second[part], n)
                for part in np.split(near, range(_PAIRS_AT_ONCE, len(near), _PAIRS_AT_ONCE))
            ]
            ratio = np.concatenate(ratios)
            near, ratio = near[ratio >= least], ratio[ratio >= least]
        found[near] = ratio
        return found

    def _near(self, first: Ints, second: Ints) -> npt.NDArray[np.bool_]:
        """Whether the first sample of one is about what the last of the other predict, and the other way round."""
        ends, starts = self._ends, self._starts
        forward = starts.samples[second, 0] + np.einsum(
            "ij,ij->i", ends.model[first, 1:], ends.samples[first, : -N_LAGS - 1 : -1]
        )
        backward = ends.samples[first, -1] + np.einsum(
            "ij,ij->i", starts.model[second, 1:], starts.samples[second, :N_LAGS]
        )
        certain = np.log(ends.error[first] / np.sqrt(ends.power[first])) - np.log(
            starts.error[second] / np.sqrt(starts.power[second])
        )
        return np.asarray(
            (np.abs(certain) < _MOST_UNLIKE)
            & ends.shows[first]
            & starts.shows[second]
            & (np.abs(forward) <= _FAR * ends.error[first])
            & (np.abs(backward) <= _FAR * starts.error[second])
        )

    def _ratio(self, first: Ints, second: Ints, m: int) -> Floats:
        """The score by the `m` samples next to the seam."""
        ends, starts = self._ends, self._starts
        correlation = (ends.correlation[first, : 2 * m] + starts.correlation[second, : 2 * m]) / 2
        correlation[:, 0] += _UNCERTAIN
        lags = np.abs(np.subtract.outer(np.arange(2 * m), np.arange(2 * m)))
        factor = np.linalg.cholesky(correlation[:, lags])  # [pairs, 2 m, 2 m]
        scale = (ends.power[first] * starts.power[second])[:, None] ** 0.25
        last, next_ = ends.samples[first, -m:] / scale, starts.samples[second, :m] / scale
        whole = np.linalg.solve(factor, np.concatenate([last, next_], axis=1)[..., None])[..., 0]
        alone = np.linalg.solve(factor[:, :m, :m], next_[..., None])[..., 0]
        logs = np.log(np.diagonal(factor, axis1=1, axis2=2))
        information = (logs[:, :m] - logs[:, m:]).sum(axis=1)
        last_energy, next_energy, energy = (
            np.square(white).mean(axis=1) for white in (whole[:, :m], alone, whole)
        )
        apart = last_energy + next_energy
        ratio = information - m * np.log(2 * energy / apart)
        loud, faint = np.maximum(last_energy, next_energy), np.minimum(last_energy, next_energy)
        none, little = (
            (faint < least) | (faint < share * loud) for least, share in (_NO_ENERGY, _LITTLE_ENERGY)
        )
        return np.where(none, -np.inf, np.where(little, np.minimum(ratio, _MOST_OF_LITTLE), ratio))


def _modelled(samples: Floats, covariance: Floats, *, at_end: bool) -> _Ends:
    """Autoregressive models by Levinson's recursion, all at once."""
    covariance = covariance.copy()
    covariance[:, 0] = covariance[:, 0] * (1 + _UNCERTAIN) + _ROUNDING
    power = covariance[:, 0]
    correlation = np.zeros((len(power), 2 * N_SAMPLES))
    correlation[:, : N_LAGS + 1] = covariance / power[:, None]
    model = np.zeros((len(power), N_LAGS + 1))
    model[:, 0] = 1.0
    error = np.ones(len(power))
    for k in range(1, N_LAGS + 1):
        reflection = -np.einsum("ij,ij->i", model[:, :k], correlation[:, k:0:-1]) / error
        model[:, : k + 1] += reflection[:, None] * model[:, k::-1]
        error = np.maximum(error * (1 - reflection**2), 1e-12)
    for k in range(N_LAGS + 1, 2 * N_SAMPLES):
        correlation[:, k] = -np.einsum("ij,ij->i", model[:, 1:], correlation[:, k - 1 : k - N_LAGS - 1 : -1])
    towards = samples if at_end else samples[:, ::-1]
    windows = np.lib.stride_tricks.sliding_window_view(towards, N_LAGS + 1, axis=1)  # [n, 24, 25]
    errors = np.einsum("nij,nj->ni", windows, model[:, ::-1])
    nearest, before = (
        np.sqrt(np.square(part).mean(axis=1)) for part in (errors[:, -_NEAREST:], errors[:, :-_NEAREST])
    )
    shows = (nearest > _FADED * before) & (before > 0) & (error < _WHITE)
    return _Ends(samples, model, np.sqrt(error * power), power, correlation, shows)
