"""Whether the samples of one recording run on in another, as those of clips do that lay side by side.

    blocks [n] float32, mono at the file's own rate ─▶ Ends ─▶ text ─▶ Seams ─▶ score: end of one, start of the other

The score is a generalised log-likelihood ratio in nats: of the last samples of one recording and the first of the other
as one realisation of a Gaussian process, against two independent ones of that process. Its autocovariance is the mean
of those around both ends, by autoregressive models; its scale is not given, but estimated from the samples. An end that
was faded out, by a person or by an encoder, shows nothing.
"""

import base64
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# ---- kept of each recording -----------------------------------------------------------------------------------------

# Samples kept of each end, and the lags of the autocovariance: the order of the model. Of warblers cut up, 64 and 32
# predict hardly more seams, 32 and 16 fewer.
N_SAMPLES: Final = 48
N_LAGS: Final = 24
# The autocovariance is of so many samples: with half of them it is uncertain, with twice as many not of the end alone.
_N_AROUND = 2048
# Of longer recordings nothing is kept: recorders that run all day begin a new file every minute or later.
LONGEST_S: Final = 60.0
_LARGEST = 32767
_STORED = np.dtype([("covariance", "<f4", N_LAGS + 1), ("step", "<f4"), ("samples", "<i2", N_SAMPLES)])


class Ends:
    """The first and last samples of a recording that comes in blocks, and the autocovariance of those around them."""

    def __init__(self, rate_hz: int) -> None:
        self._left = round(LONGEST_S * rate_hz)
        self._first = self._last = np.empty(0, np.float32)

    def feed(self, mono: npt.NDArray[np.float32]) -> None:
        """Take the next samples. [n]"""
        self._left -= mono.size
        if self._first.size < _N_AROUND:
            self._first = np.concatenate([self._first, mono[: _N_AROUND - self._first.size]])
        self._last = np.concatenate([self._last, mono[-_N_AROUND:]])[-_N_AROUND:]

    def encoded(self) -> str:
        """Both ends as text (536 characters); "" of less than 2,048 samples, and of 60 s and more."""
        if self._first.size < _N_AROUND or self._left <= 0:
            return ""
        stored = np.zeros(2, _STORED)
        window = _window()
        for end, around, samples in zip(
            stored, (self._first, self._last), (self._first[:N_SAMPLES], self._last[-N_SAMPLES:]), strict=True
        ):
            padded = np.zeros(_N_AROUND + N_LAGS)
            np.multiply(around, window, out=padded[:_N_AROUND])
            end["covariance"] = np.correlate(padded, padded[:_N_AROUND], "valid")
            end["step"] = step = max(float(np.abs(samples).max()), 1e-9) / _LARGEST
            end["samples"] = np.rint(samples / step)
        return base64.b64encode(stored.tobytes()).decode("ascii")


@functools.cache
def _window() -> Floats:
    """Power 1 in all."""
    window = np.hanning(_N_AROUND)
    return np.asarray(window / np.sqrt(np.square(window).sum()))


# ---- comparison -----------------------------------------------------------------------------------------------------

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
        usable: [n] whether it is neither silent, nor faded out, nor white.
    """

    samples: Floats
    model: Floats
    error: Floats
    power: Floats
    correlation: Floats
    usable: npt.NDArray[np.bool_]


class Seams:
    """The ends of recordings of one sample rate.

    Args:
        texts: of `Ends.encoded`; "" where there is nothing to compare.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        nothing = np.zeros(2, _STORED)
        stored = np.stack([np.frombuffer(base64.b64decode(text), _STORED) if text else nothing for text in texts])
        samples = stored["samples"] * stored["step"].astype(np.float64)[..., None]  # [n, 2, 48]
        covariance = stored["covariance"].astype(np.float64)  # [n, 2, 25]
        self._starts, self._ends = (
            _modelled(samples[:, side], covariance[:, side], at_end=bool(side)) for side in (0, 1)
        )

    def scores(self, first: Ints, second: Ints) -> Floats:
        """Log-likelihood ratio that `second` begins where `first` ends, nats; -inf where it does not. [pairs]"""
        scores = np.full(len(first), -np.inf)
        near = np.flatnonzero(self._may_follow(first, second))
        for n, least in ((_FEW_SAMPLES, 0.0), (N_SAMPLES, -np.inf)):  # a few samples leave few pairs for all of them
            parts = np.split(near, range(_PAIRS_AT_ONCE, len(near), _PAIRS_AT_ONCE))
            ratio = np.concatenate([self._ratio(first[part], second[part], n) for part in parts])
            near, ratio = near[ratio >= least], ratio[ratio >= least]
        scores[near] = ratio
        return scores

    def _may_follow(self, first: Ints, second: Ints) -> npt.NDArray[np.bool_]:
        """Whether the first sample of one is about what the last of the other predict, and the other way round."""
        ends, starts = self._ends, self._starts
        before, behind = ends.samples[first, : -N_LAGS - 1 : -1], starts.samples[second, :N_LAGS]
        forward = starts.samples[second, 0] + np.einsum("ij,ij->i", ends.model[first, 1:], before)
        backward = ends.samples[first, -1] + np.einsum("ij,ij->i", starts.model[second, 1:], behind)
        of_end = np.log(ends.error[first] / np.sqrt(ends.power[first]))
        of_start = np.log(starts.error[second] / np.sqrt(starts.power[second]))
        return np.asarray(
            (np.abs(of_end - of_start) < _MOST_UNLIKE)
            & ends.usable[first]
            & starts.usable[second]
            & (np.abs(forward) <= _FAR * ends.error[first])
            & (np.abs(backward) <= _FAR * starts.error[second])
        )

    def _ratio(self, first: Ints, second: Ints, m: int) -> Floats:
        """The score by the `m` samples next to the seam."""
        ends, starts = self._ends, self._starts
        correlation = (ends.correlation[first, : 2 * m] + starts.correlation[second, : 2 * m]) / 2
        correlation[:, 0] += _UNCERTAIN
        scale = (ends.power[first] * starts.power[second])[:, None] ** 0.25
        last, next_ = ends.samples[first, -m:] / scale, starts.samples[second, :m] / scale
        both = np.concatenate([last, next_], axis=1)  # [pairs, 2 m]
        # Prediction errors, each from all samples before it, and the logarithms of their standard deviations.
        whole, alone, logs = np.empty_like(both), np.empty_like(next_), np.empty_like(both)
        for k, (model, error) in enumerate(_models(correlation, 2 * m - 1)):
            deviation = np.sqrt(error)
            whole[:, k] = np.vecdot(model, both[:, k::-1]) / deviation
            if k < m:
                alone[:, k] = np.vecdot(model, next_[:, k::-1]) / deviation
            logs[:, k] = np.log(deviation)
        information = (logs[:, :m] - logs[:, m:]).sum(axis=1)
        last_energy, next_energy, energy = (np.square(part).mean(axis=1) for part in (whole[:, :m], alone, whole))
        ratio = information - m * np.log(2 * energy / (last_energy + next_energy))
        loud, faint = np.maximum(last_energy, next_energy), np.minimum(last_energy, next_energy)
        none, little = ((faint < least) | (faint < share * loud) for least, share in (_NO_ENERGY, _LITTLE_ENERGY))
        return np.where(none, -np.inf, np.where(little, np.minimum(ratio, _MOST_OF_LITTLE), ratio))


def _models(correlation: Floats, order: int) -> Iterator[tuple[Floats, Floats]]:
    """Autoregressive models of the orders 0, 1, ..., `order`, by Levinson's recursion, of n processes at once.

    Args:
        correlation: [n, lags] more than `order`.

    Yields:
        the model [n, order + 1], newest sample first, and the variance of its prediction error [n].
    """
    model = np.zeros((len(correlation), order + 1))
    model[:, 0] = 1.0
    error = correlation[:, 0]
    yield model[:, :1], error
    for k in range(1, order + 1):
        reflection = -np.vecdot(model[:, :k], correlation[:, k:0:-1]) / error
        model[:, : k + 1] += reflection[:, None] * model[:, k::-1]
        error = np.maximum(error * (1 - reflection**2), 1e-12)
        yield model[:, : k + 1], error


def _modelled(samples: Floats, covariance: Floats, *, at_end: bool) -> _Ends:
    """What is known of one end of each recording, by a model of its autocovariance."""
    covariance = covariance.copy()
    covariance[:, 0] = covariance[:, 0] * (1 + _UNCERTAIN) + _ROUNDING
    power = covariance[:, 0]
    correlation = np.zeros((len(power), 2 * N_SAMPLES))
    correlation[:, : N_LAGS + 1] = covariance / power[:, None]
    *_, (model, error) = _models(correlation, N_LAGS)
    for k in range(N_LAGS + 1, 2 * N_SAMPLES):
        correlation[:, k] = -np.einsum("ij,ij->i", model[:, 1:], correlation[:, k - 1 : k - N_LAGS - 1 : -1])
    towards = samples if at_end else samples[:, ::-1]
    windows = np.lib.stride_tricks.sliding_window_view(towards, N_LAGS + 1, axis=1)  # [n, 24, 25]
    errors = np.einsum("nij,nj->ni", windows, model[:, ::-1])
    nearest, before = (np.sqrt(np.square(e).mean(axis=1)) for e in (errors[:, -_NEAREST:], errors[:, :-_NEAREST]))
    usable = (nearest > _FADED * before) & (before > 0) & (error < _WHITE)
    return _Ends(samples, model, np.sqrt(error * power), power, correlation, usable)
