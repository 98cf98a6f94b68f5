"""Losses: how wrong the logits of each example are, and how much each class counts.

    logits, targets, known [N, C] ─▶ losses [N];  training examples per class [C] ─▶ weights [C]

The caller averages over the examples, because only it knows the whole batch: a worker, or a step of
gradient accumulation, sees a part.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

from birdtune.errors import InputError, SettingsError
from birdtune.models.backbone import choose
from birdtune.models.heads import KINDS


def example_losses(
    logits: Any, targets: Any, kind: str, *, label_smoothing: float, known: Any = 1.0, focal_gamma: float = 0.0,
    untaught: Sequence[int] = (), n_kept: int = 0,
) -> Any:  # fmt: skip
    """The loss of each example.

    softmax: cross-entropy against (1 - s) targets + s / C. sigmoid: binary cross-entropy against
    (1 - s) targets + s / 2, **summed** over the classes that are known: each class is a question of its own, and a mean
    would make the one "yes" count less the more species there are (at 195 classes, 195 times less than
    with softmax), so that gradient clipping and weight decay would mean something else for each data set.

    With focal gamma each term counts by (1 - p)^gamma, p the score of what it asks for (Lin et al. 2017, "Focal loss
    for dense object detection"): what is known already moves nothing any more.

    Columns that are not taught are never the target, and have no gradient: nothing pushes them down. But where a new
    class is true, it has to be above them, as the highest score is the answer: with softmax they stand in the sum; with
    sigmoid, whose columns do not compete, the cross-entropy of it against these columns alone is added. Classes that
    were taught beside them once are above them already, and would only take their sounds.

    Args:
        logits: [N, C], before softmax or sigmoid; any floating type.
        targets: [N, C] 0…1, how true each class is; with softmax they sum to 1.
        kind: "softmax" or "sigmoid".
        label_smoothing: s in 0…1, 0 = none.
        known: [N, C] how much each target counts, 0 where nobody knows. Softmax compares all classes, so that an
            example counts as much as its true ones.
        focal_gamma: 0 = all terms count alike.
        untaught: columns without examples; no label has a share of them, nor has label smoothing. With softmax the
            caller sees to their logits (`training.step`), before these are averaged over windows.
        n_kept: columns of an earlier model, to which `untaught` belong; those behind are of new classes.

    Returns:
        [N] float32.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.output")
    ops = keras.ops
    logits = ops.cast(logits, "float32")
    n_classes = logits.shape[-1]
    taught = np.ones(n_classes, np.float32)
    taught[list(untaught)] = 0.0
    given = ops.cast(targets, "float32")  # [N, C]
    truth = given * taught
    is_new = (np.arange(n_classes) >= n_kept).astype(np.float32)
    if kind == "softmax":
        target = (1.0 - label_smoothing) * truth + label_smoothing / taught.sum() * taught
        log_scores = ops.log_softmax(logits, axis=-1)  # [N, C]
        counts = _share_of(given, known)  # [N]
        return -counts * ops.sum(target * _focal(log_scores, focal_gamma) * log_scores, axis=-1)  # [N]
    target = (1.0 - label_smoothing) * truth + label_smoothing / 2.0
    # With p = sigmoid(z): -t log p - (1 - t) log(1 - p) = softplus(z) - t z, which no logit makes overflow.
    if not focal_gamma:
        terms = ops.softplus(logits) - target * logits  # [N, C]
    else:
        yes, no = ops.log_sigmoid(logits), ops.log_sigmoid(-logits)  # [N, C] logarithms of p and of 1 - p
        terms = -(target * _focal(yes, focal_gamma) * yes + (1.0 - target) * _focal(no, focal_gamma) * no)
    if untaught:
        highest = ops.logsumexp(ops.stop_gradient(ops.take(logits, list(untaught), axis=-1)), axis=-1, keepdims=True)
        terms = (terms + truth * is_new * ops.softplus(highest - logits)) * taught
    return ops.sum(terms * known, axis=-1)  # [N]


def _focal(log_scores: Any, gamma: float) -> Any:
    """(1 - p)^gamma of logarithms of p."""
    if not gamma:
        return 1.0
    # 1 - p as -expm1(log p), exact near 1; a power below 1 has no slope at 0.
    return keras.ops.power(keras.ops.maximum(-keras.ops.expm1(log_scores), 1e-6), gamma)


def _share_of(targets: Any, values: Any) -> Any:
    """The mean over the true classes of each example, 1 where none is. [N]"""
    ops = keras.ops
    total = ops.sum(targets, axis=-1)
    return ops.where(total > 0, ops.sum(targets * values, axis=-1) / ops.where(total > 0, total, 1.0), 1.0)


def example_weights(targets: Any, weights: Any) -> Any:
    """How much each example counts: the weight of its class, of several classes their mean, without one 1. [N]

    Args:
        targets: [N, C] as `example_losses`.
        weights: [C] as `class_weights`.
    """
    return _share_of(keras.ops.cast(targets, "float32"), weights)


def constant_loss(
    positive: npt.ArrayLike, kind: str, *, label_smoothing: float, known: npt.ArrayLike | None = None,
    examples: float | None = None, mixup: float = 0.0, focal_gamma: float = 0.0,
) -> float:  # fmt: skip
    """The lowest mean loss of a constant answer: the same scores for every example.

    A model that has learnt anything is below it. The best constant scores are the mean of the targets; their loss is
    the entropy of these. With focal gamma there is no formula: the minimum is searched for.

    Args:
        positive: [C] sum of the targets over the training examples, each by its weight.
        kind, label_smoothing, focal_gamma: as `example_losses`.
        known: [C] sum of how much the targets count; None: each counts in every example.
        examples: sum of the weights of the examples; None: of the targets, as where each example has one class.
        mixup: share of the examples that are mixed with another, or made of two; with sigmoid that makes more classes
            true.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.output")
    sums = np.asarray(positive, np.float64)
    if kind == "softmax":
        shares = sums / sums.sum()  # [C]
        mean = (1.0 - label_smoothing) * shares + label_smoothing / shares.size
        return _least_focal(mean, focal_gamma) if focal_gamma else float(-_x_log_x(mean).sum())
    total = sums.sum() if examples is None else examples
    counts = np.full(sums.shape, total) if known is None else np.asarray(known, np.float64)
    shares = sums / np.maximum(counts, 1e-9)  # [C] of the examples in which the class is known
    shares = shares + mixup * shares * (1.0 - shares)  # of a mixture, either of the two
    mean = (1.0 - label_smoothing) * shares + label_smoothing / 2.0
    if focal_gamma:
        least = np.array([_least_focal(np.array([share, 1.0 - share]), focal_gamma) for share in mean])
    else:
        least = -(_x_log_x(mean) + _x_log_x(1.0 - mean))
    return float((counts / total * least).sum())


def _least_focal(target: npt.NDArray[np.float64], gamma: float) -> float:
    """The least Σ_c t_c (1 - p_c)^gamma (-log p_c) of any scores p that sum to 1."""

    def loss(logits: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        log_p = scipy.special.log_softmax(logits)
        p, rest = np.exp(log_p), np.maximum(-np.expm1(log_p), 1e-12)
        slope = target * (gamma * rest ** (gamma - 1) * p * log_p - rest**gamma)  # by log p
        return float(-(target * rest**gamma * log_p).sum()), slope - p * slope.sum()

    start = np.log(np.maximum(target, 1e-6))
    return float(scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").fun)


def _x_log_x(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))


def class_weights(counts: npt.ArrayLike, alpha: float) -> npt.NDArray[np.float32]:
    """How much one example of each class counts: its frequency to the power of -alpha.

    Scaled so that the mean over the training examples is 1: the learning rate keeps its meaning.
    A class without examples gets the weight of a class with one; nothing in training uses it.

    Args:
        counts: [C] training examples per class.
        alpha: 0 = all examples alike, 1 = all classes alike, 0.5 half-way.

    Returns:
        [C] float32.

    Raises:
        SettingsError: alpha is negative or not a number.
        InputError: no class has an example.
    """
    if not alpha >= 0.0:
        raise SettingsError(
            f"class weights: alpha is {alpha}, expected 0 (all examples alike) to 1 (all classes alike)."
        )
    examples = np.asarray(counts, np.float64)  # [C]
    if not examples.sum() > 0:
        raise InputError(
            "class weights: no class has a training example. Likely cause: the split puts all recordings "
            "into val and test; look at split.csv."
        )
    weights = np.maximum(examples, 1.0) ** -alpha
    return np.asarray(weights * (examples.sum() / (examples * weights).sum()), np.float32)
