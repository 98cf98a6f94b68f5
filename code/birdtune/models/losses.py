"""Losses: how wrong the logits of each patch are, and how much each class counts.

    logits [N, C], labels [N] ─▶ losses [N];  training examples per class [C] ─▶ weights [C]

The caller averages over the patches, because only it knows the whole batch: a worker, or a step of
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


def patch_losses(
    logits: Any, labels: Any, kind: str, *, label_smoothing: float, focal_gamma: float = 0.0,
    untaught: Sequence[int] = (), n_kept: int = 0,
) -> Any:  # fmt: skip
    """The loss of each patch.

    softmax: cross-entropy against (1 - s) one-hot + s / C. sigmoid: binary cross-entropy against
    (1 - s) one-hot + s / 2, **summed** over the classes: each class is a question of its own, and a mean
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
        labels: [N] integers, the column of the true class; or [N, C] how true each class is, 0…1, of sounds that
            were mixed.
        kind: "softmax" or "sigmoid".
        label_smoothing: s in 0…1, 0 = none.
        focal_gamma: 0 = all terms count alike.
        untaught: columns without examples; no label has a share of them, nor has label smoothing. With softmax the
            caller sees to their logits (`training.step`), before these are averaged over patches.
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
    truth = _shares(labels, n_classes) * taught  # [N, C]
    is_new = (np.arange(n_classes) >= n_kept).astype(np.float32)
    if kind == "softmax":
        target = (1.0 - label_smoothing) * truth + label_smoothing / taught.sum() * taught
        log_scores = ops.log_softmax(logits, axis=-1)  # [N, C]
        return -ops.sum(target * _focal(log_scores, focal_gamma) * log_scores, axis=-1)  # [N]
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
    return ops.sum(terms, axis=-1)  # [N]


def _focal(log_scores: Any, gamma: float) -> Any:
    """(1 - p)^gamma of logarithms of p."""
    if not gamma:
        return 1.0
    # 1 - p as -expm1(log p), exact near 1; a power below 1 has no slope at 0.
    return keras.ops.power(keras.ops.maximum(-keras.ops.expm1(log_scores), 1e-6), gamma)


def _shares(labels: Any, n_classes: int) -> Any:
    """Labels in either form as [N, C] float32."""
    ops = keras.ops
    labels = ops.convert_to_tensor(labels)
    return ops.one_hot(labels, n_classes, dtype="float32") if labels.ndim == 1 else ops.cast(labels, "float32")


def label_weights(labels: Any, weights: Any) -> Any:
    """How much each patch counts: its class's weight; of a mixed sound the mean over its classes. [N]

    Args:
        labels: [N] or [N, C], as `patch_losses`.
        weights: [C] as `class_weights`.
    """
    ops = keras.ops
    shares = _shares(labels, weights.shape[0])  # [N, C]
    return ops.sum(shares * weights, axis=-1) / ops.sum(shares, axis=-1)


def constant_loss(
    counts: npt.ArrayLike, weights: npt.ArrayLike, kind: str, *, label_smoothing: float,
    mixup: float = 0.0, focal_gamma: float = 0.0,
) -> float:  # fmt: skip
    """The lowest mean loss of an answer that does not listen: one and the same scores for every patch.

    Whoever has learnt anything is below it. That answer's scores are the mean of the targets, each patch counting
    by its class's weight; its loss is their entropy. With focal gamma there is no formula: it is searched for.

    Args:
        counts: [C] training patches per class.
        weights: [C] as `class_weights`.
        kind, label_smoothing, focal_gamma: as `patch_losses`.
        mixup: share of the patches that are mixed with another; with sigmoid that makes more classes true.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.output")
    shares = np.asarray(counts, np.float64) * np.asarray(weights, np.float64)
    shares = shares / shares.sum()  # [C]
    if kind == "softmax":
        mean = (1.0 - label_smoothing) * shares + label_smoothing / shares.size
        return _least_focal(mean, focal_gamma) if focal_gamma else float(-_x_log_x(mean).sum())
    shares = shares + mixup * shares * (1.0 - shares)  # of a mixture, either of the two
    mean = (1.0 - label_smoothing) * shares + label_smoothing / 2.0
    if focal_gamma:
        return float(sum(_least_focal(np.array([share, 1.0 - share]), focal_gamma) for share in mean))
    return float(-(_x_log_x(mean) + _x_log_x(1.0 - mean)).sum())


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
