"""Scores → judgement: how good the classifier is, and how sure that is.

    Scores (one row of class scores per patch) ─▶ pooled per recording ─▶ judge() ─▶ a JSON-able dict

Every figure comes with a 95 % interval, whose width comes from drawing *source recordings* (groups) again and again
with replacement: slices of one recording are not independent witnesses, so they are drawn together. Beside the
accuracy always stands the majority baseline, which is what "always the commonest class" would reach.

Definitions, the same for both heads (sigmoid scores need not sum to 1):
- predicted class: the highest score; among equals the first class.
- top 3: the true class has rank 1, 2 or 3 in that order. With three classes or fewer that is always so.
- average precision (AP): precision at each distinct score, times the share of the
  class found there, summed (scikit-learn's); macro = the plain mean over the classes that are present.
- log loss: mean of the negative logarithm of the true class's score, after the scores of one item were
  divided by their sum. That changes nothing for softmax and makes sigmoid and Σp² comparable with it.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from birdtune.evaluation.scores import Floats, Ints, Scores, clip_scores, pool_sum_squares

CONFIDENCE = 0.95
TOP = 3
MOST_PAIRS = 100
# Replicates computed together: [groups, 128] float32 of some thousand groups stays in a core's cache.
_DRAWS_AT_ONCE = 128
_SMALLEST_PROBABILITY = 1e-7  # about float32's resolution near 1: a log loss of 16 is the worst there is


def ranks(class_scores: npt.NDArray[Any], labels: Ints) -> Ints:
    """Place of the true class in the order of the scores, 0 = first; equals stand in class order. [M]"""
    own = np.take_along_axis(class_scores, labels[:, None], axis=1)  # [M, 1]
    earlier = np.arange(class_scores.shape[1]) < labels[:, None]  # [M, C]
    before = (class_scores > own) | ((class_scores == own) & earlier)
    return np.asarray(before.sum(axis=1, dtype=np.int64))


def log_loss(class_scores: npt.NDArray[Any], labels: Ints) -> float:
    """Mean of -ln(true class's share of the item's scores), at most 16.1; see the module's definitions."""
    own = np.take_along_axis(class_scores, labels[:, None], axis=1)[:, 0].astype(np.float64)
    total = class_scores.sum(axis=1, dtype=np.float64)
    share = np.divide(own, total, out=np.full_like(own, 1.0 / class_scores.shape[1]), where=total > 0)
    return float(-np.log(np.clip(share, _SMALLEST_PROBABILITY, 1.0)).mean())


class Draws:
    """The bootstrap: how often each group is drawn in each replicate.

    Args:
        groups: [N] name of the group of each item.
        n: replicates.
        seed: the same seed gives the same draws.
    """

    def __init__(self, groups: tuple[str, ...], n: int, seed: int) -> None:
        names, index = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
        self.n_groups = len(names)
        self.index: Ints = index.astype(np.int64)  # [N] group of each item
        rng = np.random.default_rng(seed)
        self._blocks = []
        for start in range(0, n, _DRAWS_AT_ONCE):
            width = min(_DRAWS_AT_ONCE, n - start)
            counts = rng.multinomial(self.n_groups, np.full(self.n_groups, 1.0 / self.n_groups), size=width)
            self._blocks.append(np.ascontiguousarray(counts.T, dtype=np.float32))  # [G, width]

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Weights of the groups, some replicates at a time. [G, width]"""
        yield from self._blocks

    def ratio(self, top: Floats, bottom: Floats) -> Floats:
        """Replicates of Σ top / Σ bottom, where both are given per group; NaN where nothing was drawn.

        Args:
            top, bottom: [G] or [G, K].

        Returns:
            [n] or [n, K].
        """
        found = [_divide(weights.T @ top, weights.T @ bottom) for weights in self.blocks()]
        return np.concatenate(found) if found else np.zeros((0, *top.shape[1:]))

    def per_group(self, values: npt.NDArray[Any], index: Ints) -> Floats:
        """Sum of the values of each group's items. [G]"""
        return np.asarray(np.bincount(index, values, self.n_groups), np.float64)


def _divide(top: npt.NDArray[Any], bottom: npt.NDArray[Any]) -> Floats:
    blank = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    return np.asarray(np.divide(top, bottom, out=blank, where=bottom > 0))


def interval(replicates: Floats, n_groups: int, *, centre: float | None = None) -> list[float] | None:
    """95 % interval of a share (0…1) from its bootstrap replicates.

    The exact binomial (Clopper-Pearson) interval of as many independent trials as would scatter like the replicates
    (Korn & Graubard 1998). Of few groups that scatter is itself only roughly known, so it is averaged with that of one
    trial for each group, which counts as one group; without that, sets whose sources agree by luck would be too sure.
    Percentiles of the replicates are too narrow: drawing G groups of G understates the variance by (G - 1) / G, and
    where all is nearly right they lean the wrong way. docs/statistics.md has the coverage of both, measured.

    Where the replicates do not scatter, drawing again cannot show the doubt that is left (ten out of ten is not
    certainty): each group counts as one trial. For AP and ROC-AUC, which are no shares, all this is a rule of thumb.

    Args:
        replicates: [n]; those that are undefined (NaN) are left out.
        n_groups: how many groups were drawn from.
        centre: the figure itself, for AP and ROC-AUC; None: the replicates' mean. Drawing an item twice lowers AP
            and ROC-AUC systematically, on large sets by more than the interval's width.

    Returns:
        [low, high], or None where there is nothing to draw from: fewer than two groups, or no replicates.
    """
    known = replicates[np.isfinite(replicates)]
    if n_groups < 2 or known.size == 0:
        return None
    share = min(1.0, max(0.0, float(known.mean() if centre is None else centre)))
    trials = float(n_groups)
    if known.min() < known.max() and 0.0 < share < 1.0:
        of_one = _standard_error(known, n_groups) ** 2 / (share * (1.0 - share))  # 1 / trials
        trials = n_groups / ((n_groups - 1) * of_one + 1.0 / n_groups)
    tail, hits = (1.0 - CONFIDENCE) / 2, share * trials
    low = scipy.stats.beta.ppf(tail, hits, trials - hits + 1.0) if share > 0.0 else 0.0
    high = scipy.stats.beta.ppf(1.0 - tail, hits + 1.0, trials - hits) if share < 1.0 else 1.0
    return [float(low), float(high)]


def difference_interval(replicates: Floats, n_groups: int, *, centre: float | None = None) -> list[float] | None:
    """95 % interval of a difference of two shares (-1…1) from its bootstrap replicates; arguments as `interval`.

    The difference, and on both sides its standard error times Student's t for the groups. Where the replicates do not
    scatter, the exact binomial bound for a trial each group: a share of groups that would show in fewer than 2.5 % of
    sets, times the largest difference that there is.

    Returns:
        [low, high], or None where there is nothing to draw from: fewer than two groups, or no replicates.
    """
    known = replicates[np.isfinite(replicates)]
    if n_groups < 2 or known.size == 0:
        return None
    difference = float(known.mean() if centre is None else centre)
    if known.min() == known.max():
        hidden = 1.0 - ((1.0 - CONFIDENCE) / 2) ** (1.0 / n_groups)
        below, above = min(1.0, 1.0 + difference) * hidden, min(1.0, 1.0 - difference) * hidden
    else:
        student = float(scipy.stats.t.ppf((1.0 + CONFIDENCE) / 2, n_groups - 1))
        below = above = student * _standard_error(known, n_groups)
    return [max(-1.0, difference - below), min(1.0, difference + above)]


def _standard_error(replicates: Floats, n_groups: int) -> float:
    return float(replicates.std() * math.sqrt(n_groups / (n_groups - 1)))


def ranking_replicates(
    column: npt.NDArray[Any], positive: npt.NDArray[np.bool_], index: Ints, draws: Draws
) -> tuple[Floats, Floats]:
    """Average precision and ROC-AUC of one class in every replicate.

    The scores are sorted once. Between two neighbouring scores of positives only the *number* of negatives
    matters, so each group is reduced to its counts per stretch, a sparse matrix; a replicate is then one
    product of that matrix with the weights. Equal to scikit-learn's figures with `sample_weight`, ties too.

    Args:
        column: [M] scores of the class.
        positive: [M] whether the item is of the class.
        index: [M] group of each item, a number below `draws.n_groups`.

    Returns:
        Two [n] arrays; NaN where a replicate holds no positive (ROC-AUC: or no negative).
    """
    levels = np.unique(column[positive])[::-1]  # [K] distinct scores of positives, highest first
    if levels.size == 0:
        nothing = np.full(sum(weights.shape[1] for weights in draws.blocks()), np.nan)
        return nothing, nothing
    # Stretch 2k: between levels k-1 and k; 2k+1: exactly level k. Items below the last level count nowhere.
    below = np.searchsorted(-levels, -column, side="left")  # first level that the item reaches
    reaches = below < levels.size
    on_level = reaches & (levels[np.minimum(below, levels.size - 1)] == column)
    stretch = 2 * below + on_level
    shape = (2 * levels.size, draws.n_groups)
    negatives = _counts(stretch, index, reaches & ~positive, shape)
    positives = _counts(stretch // 2, index, positive, (levels.size, draws.n_groups))
    all_negatives = draws.per_group(~positive, index)
    found = [_ranking_block(negatives, positives, all_negatives, weights) for weights in draws.blocks()]
    ap, roc = np.concatenate([np.zeros((2, 0)), *found], axis=1)
    return ap, roc


def _counts(rows: Ints, columns: Ints, keep: npt.NDArray[np.bool_], shape: tuple[int, int]) -> Any:
    ones = np.ones(int(keep.sum()), np.float32)
    counts = scipy.sparse.coo_array((ones, (rows[keep], columns[keep])), shape=shape).tocsr()
    counts.sum_duplicates()
    return counts


def _ranking_block(
    negatives: Any, positives: Any, all_negatives: Floats, weights: npt.NDArray[np.float32]
) -> Floats:
    """AP and ROC-AUC of some replicates. [2, width]"""
    drawn = (positives @ weights).astype(np.float64)  # [K, width] positives at each level
    true = np.cumsum(drawn, axis=0)
    per_stretch = (negatives @ weights).astype(np.float64)  # [2K, width]
    false = np.cumsum(per_stretch, axis=0)
    n_positive, n_negative = true[-1], all_negatives @ weights  # [width]
    precision = np.nan_to_num(_divide(true, true + false[1::2]))  # [K, width]
    ap = _divide((drawn * precision).sum(axis=0), n_positive)
    # A positive loses against the negatives above it, and half against those on its own level.
    lost = (drawn * (false[0::2] + 0.5 * per_stretch[1::2])).sum(axis=0)
    roc = 1.0 - _divide(lost, n_positive * n_negative)
    return np.stack([ap, roc])


def judge(scores: Scores, *, train_counts: Ints, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Everything that the report says in figures, as plain JSON values.

    Args:
        scores: one part of the split, at least one recording.
        train_counts: [C] recordings of each class that were trained on.
        n_bootstrap: replicates for the intervals; 1,000 is customary, 0 leaves them out (None).
        seed: for the bootstrap.

    Returns:
        `n_recordings`, `n_groups`, `n_patches`; `majority_class`, `majority_baseline` (+ `_ci`),
        `accuracy_gain` (+ `_ci`: clip accuracy less the baseline, drawn in pairs); `macro_ap_chance`; `clip`,
        `clip_sum_squares`, `patch`, each with `accuracy`, `top3`, `macro_ap`, `roc_auc` (+ `_ci` each),
        `macro_ap_classes` (how many were averaged) and `log_loss`; `per_class`, `confusion` (rows are
        true), `confusion_pairs` (the 100 most frequent), `never_predicted`.
        What is undefined is None.

    Raises:
        ValueError: no recordings, or train_counts of another number of classes.
    """
    if not scores.recordings or len(train_counts) != len(scores.classes):
        raise ValueError(
            f"cannot judge {len(scores.recordings)} recordings of {len(scores.classes)} classes "
            f"with {len(train_counts)} training counts"
        )
    draws = Draws(scores.groups, n_bootstrap, seed)
    mean = clip_scores(scores)  # [N, C]
    clip, *by_class = _judge_view(mean, scores.labels, draws.index, draws)
    squares, *_ = _judge_view(pool_sum_squares(scores), scores.labels, draws.index, draws)
    of_patch = scores.patch_recording
    patch, *_ = _judge_view(scores.patch_scores, scores.labels[of_patch], draws.index[of_patch], draws)
    predicted: Ints = mean.argmax(axis=1).astype(np.int64)
    confusion = np.zeros((len(scores.classes),) * 2, np.int64)
    np.add.at(confusion, (scores.labels, predicted), 1)
    return {
        "n_recordings": len(scores.recordings),
        "n_groups": draws.n_groups,
        "n_patches": len(of_patch),
        **_against_baseline(scores, predicted, train_counts, draws),
        "clip": clip,
        "macro_ap_chance": chance_ap(np.bincount(scores.labels)),
        "clip_sum_squares": squares,
        "patch": patch,
        "per_class": _per_class(scores, confusion, train_counts, by_class, draws),
        "confusion": confusion.tolist(),
        "confusion_pairs": _confusion_pairs(confusion, scores.classes),
        "never_predicted": [scores.classes[c] for c in np.flatnonzero(confusion.sum(axis=0) == 0)],
    }


def _judge_view(
    class_scores: npt.NDArray[Any], labels: Ints, index: Ints, draws: Draws
) -> tuple[dict[str, Any], Floats, Floats, Floats]:
    """Figures of items [M, C]; and per class AP [C], ROC-AUC [C] and the replicates of AP [n, C]."""
    places = ranks(class_scores, labels)
    items = draws.per_group(np.ones(len(labels)), index)
    view: dict[str, Any] = {}
    for name, right in (("accuracy", places == 0), ("top3", places < TOP)):
        view[name] = float(right.mean())
        drawn = draws.ratio(draws.per_group(right, index), items)
        view[f"{name}_ci"] = interval(drawn, draws.n_groups)
    with ThreadPoolExecutor() as threads:  # sorting and sums let go of the interpreter, so threads help
        each = threads.map(
            lambda c: _judge_class(class_scores[:, c], labels == c, index, draws),
            range(class_scores.shape[1]),
        )
        ap, roc, ap_draws, roc_draws = (np.stack(values, axis=-1) for values in zip(*each, strict=True))
    for name, values, drawn in (("macro_ap", ap, ap_draws), ("roc_auc", roc, roc_draws)):
        mean = _mean_known(values, axis=0)
        view[name] = _known(mean)
        view[f"{name}_ci"] = interval(_mean_known(drawn, axis=1), draws.n_groups, centre=mean)
    view["macro_ap_classes"] = int(np.isfinite(ap).sum())
    view["log_loss"] = log_loss(class_scores, labels)
    return view, ap, roc, ap_draws


def _judge_class(
    column: npt.NDArray[Any], positive: npt.NDArray[np.bool_], index: Ints, draws: Draws
) -> tuple[float, float, Floats, Floats]:
    """AP and ROC-AUC of one class (NaN where undefined), and the replicates [n] of each."""
    ap = average_precision_score(positive, column) if positive.any() else np.nan
    roc = roc_auc_score(positive, column) if positive.any() and not positive.all() else np.nan
    return float(ap), float(roc), *ranking_replicates(column, positive, index, draws)


def _mean_known(values: Floats, axis: int) -> Any:
    known = np.isfinite(values)
    return _divide(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis))


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def chance_ap(support: Ints) -> float:
    """Macro average precision that a random order of the recordings has on average.

    Of k among n it is not k / n but (H + (k - 1) (n - H) / (n - 1)) / n, with H = 1 + 1/2 + … + 1/n: of few
    recordings, chance puts some high (Y. Bestgen, "Exact expected average precision of the random baseline", 2015).

    Args:
        support: [C] recordings of each class; classes without any do not count.
    """
    k, n = support[support > 0], int(support.sum())
    harmonic = float((1.0 / np.arange(1, n + 1)).sum())
    return float(((harmonic + (k - 1) * (n - harmonic) / max(1, n - 1)) / n).mean())


def _against_baseline(
    scores: Scores, predicted: Ints, train_counts: Ints, draws: Draws
) -> dict[str, Any]:
    majority = int(np.argmax(train_counts))
    right, baseline = predicted == scores.labels, scores.labels == majority
    share, gain = float(baseline.mean()), float(right.mean() - baseline.mean())
    items = draws.per_group(np.ones(len(right)), draws.index)
    by_group = draws.per_group(baseline, draws.index)
    gain_draws = draws.ratio(draws.per_group(right, draws.index) - by_group, items)
    gain_ci = difference_interval(gain_draws, draws.n_groups)
    if gain_ci and (predicted == majority).all():
        gain_ci = [0.0, 0.0]  # it is the baseline: no doubt about that
    return {
        "majority_class": scores.classes[majority],
        "majority_baseline": share,
        "majority_baseline_ci": interval(draws.ratio(by_group, items), draws.n_groups),
        "accuracy_gain": gain,
        "accuracy_gain_ci": gain_ci,
    }


def _per_class(
    scores: Scores, confusion: Ints, train_counts: Ints, by_class: list[Floats], draws: Draws
) -> list[dict[str, Any]]:
    ap, roc, ap_draws = by_class
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _divide(hits, predicted), _divide(hits, support)
    f1 = np.where(support > 0, _divide(2.0 * hits, support + predicted), np.nan)
    right = ranks(clip_scores(scores), scores.labels) == 0
    by_group = np.zeros((2, draws.n_groups, len(scores.classes)))  # [right or all, G, C]
    np.add.at(by_group[0], (draws.index, scores.labels), right)
    np.add.at(by_group[1], (draws.index, scores.labels), 1)
    recall_draws = draws.ratio(by_group[0], by_group[1])  # [n, C]
    groups = (by_group[1] > 0).sum(axis=0)  # [C]
    rows = []
    for c, name in enumerate(scores.classes):
        n_groups = int(groups[c])
        rows.append(
            {
                "class": name,
                "support": int(support[c]),
                "groups": n_groups,
                "train_recordings": int(train_counts[c]),
                "precision": _known(precision[c]),
                "recall": _known(recall[c]),
                "recall_ci": interval(recall_draws[:, c], n_groups),
                "f1": _known(f1[c]),
                "ap": _known(ap[c]),
                "ap_ci": interval(ap_draws[:, c], n_groups, centre=ap[c]),
                "roc_auc": _known(roc[c]),
                "predicted": int(predicted[c]),
            }
        )
    return rows


def _confusion_pairs(confusion: Ints, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    wrong = confusion - np.diag(np.diag(confusion))
    share = _divide(wrong, confusion.sum(axis=1, keepdims=True))  # of the recordings of the true class
    true, predicted = np.nonzero(wrong)
    order = np.lexsort((predicted, true, -share[true, predicted], -wrong[true, predicted]))[:MOST_PAIRS]
    return [
        {
            "true": classes[true[k]],
            "predicted": classes[predicted[k]],
            "count": int(wrong[true[k], predicted[k]]),
            "share": float(share[true[k], predicted[k]]),
        }
        for k in order
    ]
