"""From embeddings to class vectors, so that a class without recordings is recognised by its vector.

    embeddings [N, K] of recordings, vectors of their classes ─▶ a map ─▶ scores for any class vectors [N, M]

- `ridge`: linear regression from embeddings to vectors; a recording is of the class whose vector is nearest by cosine.
- `compatibility`: a bilinear score of embedding and vector, in closed form (Romera-Paredes and Torr 2015).
- `two-layer`: as ridge, with a hidden layer.
- `prototype`: the vectors are mean embeddings of recordings, and nothing is learnt.

Scores of different maps have different scales; `stacking` finds what to take off those of seen classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# From embeddings [N, K] and vectors [M, D] to scores [N, M].
Scorer = Callable[[Floats, Floats], Floats]

_HIDDEN = 64
_MOST_ITERATIONS = 200
_EQUAL = 1e-9  # scores that differ by less are the same vector's
_QUANTILES = 81  # of gaps between seen and unseen scores, tried as constants
_AS_GOOD = 0.01


@dataclass(frozen=True)
class ClassMap:
    """A way to learn from seen classes.

    Attributes:
        fit: embeddings [N, K], row of each in the vectors [N], vectors of the seen classes [M, D], how much it is kept
            from fitting them, seed.
        strengths: that are tried, by classes held out within the seen ones.
    """

    fit: Callable[[Floats, Ints, Floats, float, int], Scorer]
    strengths: Sequence[float]


def _cosine(found: Floats, vectors: Floats) -> Floats:
    """Of each row with each vector. [N, D], [M, D] → [N, M]"""
    return np.asarray(_unit(found) @ _unit(vectors).T)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def standard(rows: Floats) -> Callable[[Floats], Floats]:
    """Takes off the mean of some rows, and divides by their spread where there is one."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread < 1e-9] = 1.0
    return lambda given: np.asarray((given - mean) / spread)


def _regression(model: Any, x: Floats, rows: Ints, vectors: Floats) -> Scorer:
    """A model of scikit-learn from embeddings to vectors, which are centred on the mean of the seen classes."""
    scale, centre = standard(x), vectors.mean(axis=0)
    targets = _unit(vectors - centre)[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged to the last digit is no matter here
        model.fit(scale(x), targets[:, 0] if targets.shape[1] == 1 else targets)
    return lambda given, asked: _cosine(np.reshape(model.predict(scale(given)), (len(given), -1)), asked - centre)


def _ridge(x: Floats, rows: Ints, vectors: Floats, strength: float, seed: int) -> Scorer:
    return _regression(Ridge(alpha=strength), x, rows, vectors)


def _two_layer(x: Floats, rows: Ints, vectors: Floats, strength: float, seed: int) -> Scorer:
    layers = MLPRegressor(hidden_layer_sizes=(_HIDDEN,), alpha=strength, max_iter=_MOST_ITERATIONS, random_state=seed)
    return _regression(layers, x, rows, vectors)


def _compatibility(x: Floats, rows: Ints, vectors: Floats, strength: float, seed: int) -> Scorer:
    scale, centre = standard(x), vectors.mean(axis=0)
    seen = _unit(vectors - centre)  # [M, D]
    targets = np.where(rows[:, None] == np.arange(len(vectors)), 1.0, -1.0)
    left = Ridge(alpha=strength, fit_intercept=False).fit(scale(x), targets).coef_.T  # [K, M]
    right = np.linalg.solve(seen.T @ seen + np.eye(seen.shape[1]), seen.T)  # [D, M]
    weights = np.reshape(left, (x.shape[1], len(vectors))) @ right.T
    return lambda given, asked: np.asarray(scale(given) @ weights @ _unit(asked - centre).T)


def _prototype(x: Floats, rows: Ints, vectors: Floats, strength: float, seed: int) -> Scorer:
    scale = standard(x)
    return lambda given, asked: _cosine(scale(given), scale(asked))


MAPS: Mapping[str, ClassMap] = {
    "ridge": ClassMap(_ridge, (10.0, 100.0, 1e3, 1e4)),
    "compatibility": ClassMap(_compatibility, (10.0, 100.0, 1e3, 1e4)),
    "two-layer": ClassMap(_two_layer, (10.0,)),
    "prototype": ClassMap(_prototype, strengths=(0.0,)),
}


# ---- figures ------------------------------------------------------------------------------------


def top1(scores: Floats, labels: Ints, columns: Sequence[int]) -> float:
    """Share of the recordings whose own class has the highest score, averaged over classes.

    Several that are equally high share the credit: vectors that are the same cannot be told apart.

    Args:
        scores: [N, M]; labels: [N] columns; columns: the classes that are averaged over. NaN where none has recordings.
    """
    highest = scores >= scores.max(axis=1, keepdims=True) - _EQUAL
    credit = highest[np.arange(len(labels)), labels] / highest.sum(axis=1)
    found = [credit[labels == column].mean() for column in columns if (labels == column).any()]
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True)
class Generalised:
    """Recognised among seen and unseen classes together: recordings of each, and their harmonic mean."""

    seen: float
    unseen: float

    @property
    def harmonic(self) -> float:
        """0 where one of both is."""
        both = self.seen + self.unseen
        return 2 * self.seen * self.unseen / both if both else 0.0


def generalised(scores: Floats, labels: Ints, is_unseen: Bools, taken_off: float) -> Generalised:
    """Recognised where a constant is taken off the scores of seen classes (calibrated stacking: Chao et al. 2016).

    Args:
        scores: [N, M] of all classes; labels: [N]; is_unseen: [M].
    """
    calibrated = scores - taken_off * ~is_unseen
    return Generalised(
        top1(calibrated, labels, np.flatnonzero(~is_unseen).tolist()),
        top1(calibrated, labels, np.flatnonzero(is_unseen).tolist()),
    )


def stacking(trials: Sequence[tuple[Floats, Ints, Bools]]) -> float:
    """The constant with the best harmonic mean over some trials, as `generalised` takes them. 0: there are none.

    Of constants that are about as good, the middle one.
    """
    if not trials:
        return 0.0
    gaps = np.concatenate([
        scores[:, ~is_unseen].max(axis=1) - scores[:, is_unseen].max(axis=1) for scores, _, is_unseen in trials
    ])  # fmt: skip
    tried = np.unique(np.quantile(gaps, np.linspace(0, 1, _QUANTILES)))
    found = np.array([np.mean([generalised(*trial, value).harmonic for trial in trials]) for value in tried])
    return float(np.median(tried[found >= found.max() - _AS_GOOD]))


def ceiling(seen: Floats, unseen: Floats) -> float:
    """The most that can be recognised among the unseen, as far as the vectors tell them apart.

    A column in which all seen classes are the same teaches nothing.

    Args:
        seen: [M, D]; unseen: [U, D].
    """
    taught = np.ptp(seen, axis=0) > _EQUAL
    return len(np.unique(np.round(unseen[:, taught], 9), axis=0)) / len(unseen)
