"""The metrics: each a function of scores and targets, registered here; everything else iterates over `METRICS`.

    scores [N, C], targets [N, C] ─▶ View ─▶ estimate(metric, view) ─▶ Estimate: value and bootstrap replicates

To add a metric, write one function and register it with `metric` (or `ratio`, where it is a sum over a sum). It then
appears in metrics.json (with its interval), per_class.csv, the report, its curves and TensorBoard:

    @metric("brier", "Brier score", "mean squared distance of score and truth")
    def brier(scores, positive, weights):  # [N, C] each → one number, or [C]
        return (weights * (scores - positive) ** 2).sum() / weights.sum()

A metric that yields a value per class stands as `<name>` with each class, and its mean over the classes that are
present as `macro_<name>`; one that yields a single number stands as `<name>`.

Definitions:
- top-1 accuracy: share of the recordings whose highest score is that of one of their classes, among those that have a
  class; of equal scores the first in class order counts. With one class a recording this is plain accuracy; with
  several it is T1-Acc of BirdSet (Rauch et al. 2024).
- average precision (AP): precision at each distinct score, times the share of the class found there, summed
  (scikit-learn's).
- precision, recall, F1 are those of predictions: the class with the highest score, or, where recordings have several
  classes, every class whose score reaches its threshold.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits

from birdtune.evaluation.bootstrap import Bools, Bootstrap, Floats, Ints, divide, interval, mean_defined
from birdtune.evaluation.ranking import ranking_replicates
from birdtune.evaluation.scores import POSITIVE, Scores, clip_scores

TOP = 3
_SMALLEST_PROBABILITY = 1e-7  # about float32's resolution near 1: a log loss of 16 is the worst there is
# Of scores [N, C], targets [N, C] and weights [N, C] (how often each is drawn; 0 where unknown): [C], or one number.
Function = Callable[[Floats, Bools, Floats], Any]
# Of scores [N, C], targets [N, C] and where they are known [N, C]: numerator and denominator, [N] or [N, C] each.
Terms = Callable[[Floats, Bools, Bools], tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class View:
    """Items to evaluate: recordings, or windows.

    Attributes:
        scores: [N, C]; positive: [N, C] whether an item is of a class; known: [N, C] where that is known.
        bootstrap: of the items.
        predictions: [N, C] the classes that are predicted; None: metrics of predictions are left out.
    """

    scores: npt.NDArray[Any]
    positive: Bools
    known: Bools
    bootstrap: Bootstrap
    predictions: Bools | None = None

    @cached_property
    def rankings(self) -> tuple[Floats, Floats]:
        """Replicates of AP and ROC-AUC of every class. [n, C] each"""
        # Sorting and sums release the interpreter, so threads help; those of BLAS below them would wait for each other.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor() as threads:
            found = list(threads.map(self._ranking, range(self.scores.shape[1])))
        ap, roc = (np.stack(columns, axis=-1) for columns in zip(*found, strict=True))
        return ap, roc

    def _ranking(self, column: int) -> tuple[Floats, Floats]:
        known = self.known[:, column]
        return ranking_replicates(
            self.scores[:, column], self.positive[:, column], self.bootstrap, None if known.all() else known
        )


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure, or one for each class, with its bootstrap replicates.

    Attributes:
        value: [] or [C]; NaN where it is undefined.
        drawn: [n] or [n, C].
        n_groups: [] or [C], source recordings that it rests on.
    """

    value: Floats
    drawn: Floats
    n_groups: Ints

    @property
    def is_per_class(self) -> bool:
        """Whether there is a value for each class."""
        return self.value.ndim == 1

    def of(self, column: int) -> "Estimate":
        """That of one class."""
        return Estimate(self.value[column], self.drawn[:, column], self.n_groups[column])

    def mean(self, n_groups: int, columns: Ints | None = None) -> "Estimate":
        """Mean over all classes, or some, that are defined."""
        chosen: Any = slice(None) if columns is None else columns
        value, drawn = mean_defined(self.value[chosen]), mean_defined(self.drawn[:, chosen], axis=1)
        return Estimate(value, drawn, np.asarray(n_groups))

    def row(self, name: str) -> dict[str, Any]:
        """`name` and `name_ci`, as in metrics.json; None where undefined."""
        if not np.isfinite(self.value):
            return {name: None, f"{name}_ci": None}
        value = float(self.value)
        return {name: value, f"{name}_ci": interval(self.drawn, int(self.n_groups), centre=value)}


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its key in metrics.json, and its column in per_class.csv.
        title: for people.
        meaning: a sentence for the report's glossary.
        function: the metric itself.
        fast: from a view to its replicates and the source recordings behind them; None: the function is called for
            each replicate.
        of_predictions: it is given predictions (0 or 1) in place of scores.
        headline: whether it stands in the report's first figure and among the curves.
    """

    name: str
    title: str
    meaning: str
    function: Function
    fast: Callable[[View], tuple[Floats, Ints]] | None = None
    of_predictions: bool = False
    headline: bool = True


METRICS: dict[str, Metric] = {}


def metric(name: str, title: str, meaning: str, **more: Any) -> Callable[[Function], Function]:
    """Register a function as a metric; `more`: as the attributes of `Metric`."""

    def register(function: Function) -> Function:
        METRICS[name] = Metric(name, title, meaning, function, **more)
        return function

    return register


def ratio(name: str, title: str, meaning: str, **more: Any) -> Callable[[Terms], Terms]:
    """Register a metric that is a sum over items by another; a function gives the terms of each item."""

    def register(terms: Terms) -> Terms:
        def function(scores: Floats, positive: Bools, weights: Floats) -> Any:
            top, bottom = terms(scores, positive, weights > 0)
            own = weights if top.ndim == 2 else weights.max(axis=1)
            return divide((own * top).sum(axis=0), (own * bottom).sum(axis=0))

        def fast(view: View) -> tuple[Floats, Ints]:
            top, bottom = terms(_given(METRICS[name], view), view.positive, view.known)
            if top.ndim == 2:
                top, bottom = top * view.known, bottom * view.known
            n_groups = (view.bootstrap.per_group(bottom) > 0).sum(axis=0)
            return view.bootstrap.ratio(top, bottom), np.asarray(n_groups)

        METRICS[name] = Metric(name, title, meaning, function, fast, **more)
        return terms

    return register


def _given(metric: Metric, view: View) -> Any:
    return view.predictions if metric.of_predictions else view.scores


def estimate(metric: Metric, view: View) -> Estimate:
    """The value of a metric, and its replicates."""
    given = _given(metric, view)
    # Where all is known, nothing as large as the scores is made.
    known = view.known
    ones: Floats = np.broadcast_to(np.float64(1), known.shape) if known.all() else known.astype(np.float64)
    value = np.asarray(metric.function(given, view.positive, ones), np.float64)
    if metric.fast is not None:
        return Estimate(value, *metric.fast(view))
    found = [metric.function(given, view.positive, ones * drawn[:, None]) for drawn in view.bootstrap.weights()]
    drawn = np.asarray(found, np.float64).reshape(-1, *value.shape)
    groups = _groups_of_classes(view) if value.ndim else np.asarray(view.bootstrap.n_groups)
    return Estimate(value, drawn, groups)


def estimates(view: View) -> dict[str, Estimate]:
    """Every registered metric that the view allows."""
    return {
        name: estimate(each, view)
        for name, each in METRICS.items()
        if not each.of_predictions or view.predictions is not None
    }


def summary(found: dict[str, Estimate], n_groups: int) -> dict[str, Any]:
    """`<name>`, or `macro_<name>` of a metric per class, with `_ci` each; as in metrics.json."""
    rows: dict[str, Any] = {}
    for name, each in found.items():
        rows |= each.mean(n_groups).row(f"macro_{name}") if each.is_per_class else each.row(name)
    return rows


def headline(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Metric]]:
    """Keys of a summary, or of a row of the history (prefix `val_`), that stand in the first figure and the curves."""
    return [
        (key, each)
        for name, each in METRICS.items()
        for key in (f"{prefix}macro_{name}", f"{prefix}{name}")
        if each.headline and key in row
    ]


def _groups_of_classes(view: View) -> Ints:
    return np.asarray((view.bootstrap.per_group(view.positive) > 0).sum(axis=0))


def names(class_scores: npt.NDArray[Any]) -> Bools:
    """The class with the highest score, the first of equals, as predictions. [N, C]"""
    return np.asarray(class_scores.argmax(axis=1)[:, None] == np.arange(class_scores.shape[1]))


def predictions(scores: Scores, thresholds: npt.NDArray[Any] | float = 0.5) -> Bools:
    """The classes that are predicted: the highest score's; with several a recording, all that reach their threshold."""
    pooled = clip_scores(scores)
    return np.asarray(pooled >= thresholds) if scores.is_multi_label else names(pooled)


def view_of(scores: Scores, bootstrap: Bootstrap, thresholds: npt.NDArray[Any] | float = 0.5) -> View:
    """The recordings of some scores, as they are served."""
    return View(clip_scores(scores), scores.positive, scores.known, bootstrap, predictions(scores, thresholds))


def windows_of(scores: Scores, bootstrap: Bootstrap) -> tuple[View, npt.NDArray[Any]]:
    """The windows of some scores, and their targets [P, C]: their own where labels have times.

    Args:
        bootstrap: of the recordings.
    """
    targets, known = scores.truth_of_windows()
    positive = np.asarray((targets >= POSITIVE) & known)
    return View(scores.window_scores, positive, known, bootstrap.at(scores.window_recording)), targets


# ---- the metrics --------------------------------------------------------------------------------


def ranks(class_scores: npt.NDArray[Any], positive: Bools) -> Ints:
    """Place of the best-ranked class of each item in the order of the scores, 0 = first; equals stand in class order.

    Args:
        class_scores, positive: [N, C].

    Returns:
        [N]; C where an item has no class.
    """
    best = np.where(positive, class_scores, -np.inf).argmax(axis=1)[:, None]  # [N, 1]
    own = np.take_along_axis(class_scores, best, axis=1)
    earlier = np.arange(class_scores.shape[1]) < best  # [N, C]
    before = ((class_scores > own) | ((class_scores == own) & earlier)).sum(axis=1, dtype=np.int64)
    return np.asarray(np.where(positive.any(axis=1), before, class_scores.shape[1]), np.int64)


@ratio("accuracy", "top-1 accuracy", "Share of the recordings whose highest score is that of a class they belong to.")
def accuracy(scores: Floats, positive: Bools, known: Bools) -> tuple[Any, Any]:
    """Whether the highest score is that of one of an item's classes, of items that have a class."""
    right = np.take_along_axis(positive, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    return right, positive.any(axis=1)


@ratio("top3", "top-3 accuracy", "The same, with one of the three highest scores.")
def top3(scores: Floats, positive: Bools, known: Bools) -> tuple[Any, Any]:
    """Whether one of the three highest scores is that of one of an item's classes."""
    return ranks(scores, positive) < min(TOP, scores.shape[1]), positive.any(axis=1)


def _of_each_class(function: Callable[..., Any], scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """A ranking metric of scikit-learn, class by class; NaN without a positive. [C]"""

    def of_class(c: int) -> float:
        chosen = weights[:, c] > 0
        truth, own = positive[chosen, c], weights[chosen, c]
        if not truth.any() or (function is roc_auc_score and truth.all()):
            return float("nan")
        same = own[0] == own.max() == own.min()
        return float(function(truth, scores[chosen, c], sample_weight=None if same else own))

    with ThreadPoolExecutor() as threads:
        return np.array(list(threads.map(of_class, range(scores.shape[1]))), np.float64)


@metric(
    "ap", "average precision",
    "Sort all recordings by their score for a class: 100 % when all of that class come first. The figure for all "
    "classes is the plain mean, so that rare classes count as much as common ones.",
    fast=lambda view: (view.rankings[0], _groups_of_classes(view)),
)  # fmt: skip
def average_precision(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Average precision of each class; NaN without a positive. [C]"""
    return _of_each_class(average_precision_score, scores, positive, weights)


@metric(
    "roc_auc", "ROC-AUC",
    "How often a recording of a class scores higher for it than one of another: 50 % is chance.",
    fast=lambda view: (view.rankings[1], _groups_of_classes(view)), headline=False,
)  # fmt: skip
def roc_auc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Area under the ROC curve of each class; NaN without a positive or a negative. [C]"""
    return _of_each_class(roc_auc_score, scores, positive, weights)


@ratio(
    "precision", "precision", "Of all times that a class was predicted, how often it was right.",
    of_predictions=True, headline=False,
)  # fmt: skip
def precision(predicted: Floats, positive: Bools, known: Bools) -> tuple[Any, Any]:
    """Right predictions of each class, and all."""
    return np.asarray(predicted, np.bool_) & positive, predicted


@ratio(
    "recall", "recall", "Of all recordings of a class, how many were predicted as that class.",
    of_predictions=True, headline=False,
)  # fmt: skip
def recall(predicted: Floats, positive: Bools, known: Bools) -> tuple[Any, Any]:
    """Right predictions of each class, and recordings of it."""
    return np.asarray(predicted, np.bool_) & positive, positive


@ratio("f1", "F1", "Harmonic mean of precision and recall.", of_predictions=True, headline=False)
def f1(predicted: Floats, positive: Bools, known: Bools) -> tuple[Any, Any]:
    """Twice the right predictions of each class, and predictions plus recordings; nothing of a class without any."""
    present = positive.any(axis=0)
    both = predicted.astype(np.int64) + positive
    return 2 * (np.asarray(predicted, np.bool_) & positive), both * present


# ---- beside them --------------------------------------------------------------------------------


def log_loss(class_scores: npt.NDArray[Any], targets: npt.NDArray[Any], known: Bools) -> float:
    """Mean negative log likelihood of an item's targets, at most 16.1 each. class_scores, targets, known: [N, C]

    With one class an item: -ln of that class's share of the item's scores. That changes nothing for softmax and makes
    sigmoid and Σp² comparable with it. With several: binary cross-entropy, the mean over all that is known.
    """
    if known.all() and (targets.sum(axis=1) == 1).all() and (targets.max(axis=1) == 1).all():
        own = (class_scores * targets).sum(axis=1, dtype=np.float64)
        total = class_scores.sum(axis=1, dtype=np.float64)
        share = np.divide(own, total, out=np.full_like(own, 1.0 / class_scores.shape[1]), where=total > 0)
        return abs(float(np.log(np.clip(share, _SMALLEST_PROBABILITY, 1.0)).mean()))  # abs: no -0.0
    return binary_log_loss(class_scores, targets, known)


def binary_log_loss(class_scores: npt.NDArray[Any], targets: npt.NDArray[Any], known: Bools) -> float:
    """Mean binary cross-entropy over all that is known, at most 16.1. class_scores, targets, known: [N, C]"""
    p = np.clip(class_scores.astype(np.float64), _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    return float(-(targets * np.log(p) + (1.0 - targets) * np.log1p(-p))[known].mean())


def chance_ap(positives: Ints, n: Ints | int) -> float:
    """Macro average precision of a random order of the recordings, on average.

    Of k among n it is not k / n but (H + (k - 1) (n - H) / (n - 1)) / n, with H = 1 + 1/2 + … + 1/n: of few
    recordings, chance puts some high (Y. Bestgen, "Exact expected average precision of the random baseline", 2015).

    Args:
        positives: [C] recordings of each class; classes without any do not count.
        n: recordings of which it is known, in all or [C] of each class.
    """
    totals = np.broadcast_to(n, positives.shape)[positives > 0]
    k = positives[positives > 0]
    harmonic = np.array([float((1.0 / np.arange(1, total + 1)).sum()) for total in totals])
    return float(((harmonic + (k - 1) * (totals - harmonic) / np.maximum(1, totals - 1)) / totals).mean())
