"""Average precision and ROC-AUC of one class in every replicate of the bootstrap, without sorting in each.

    scores [N] of a class, positive [N] ─▶ ranking_replicates ─▶ AP [n], ROC-AUC [n]
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from birdtune.evaluation.bootstrap import Bools, Bootstrap, Floats, Ints, divide


def ranking_replicates(
    scores: npt.NDArray[Any], positive: Bools, bootstrap: Bootstrap, known: Bools | None = None
) -> tuple[Floats, Floats]:
    """Average precision and ROC-AUC of one class in every replicate.

    The scores are sorted once. Between two neighbouring scores of positives only the *number* of negatives
    matters, so each group is reduced to its counts per span between them, a sparse matrix; a replicate is then one
    product of that matrix with the weights. Equal to scikit-learn's figures with `sample_weight`, ties too.

    Args:
        scores: [N] scores of the class.
        positive: [N] whether the item is of the class.
        known: [N] whether that is known; None: of all items.

    Returns:
        Two [n] arrays; NaN where a replicate holds no positive (ROC-AUC: or no negative).
    """
    index, n_groups = bootstrap.index, bootstrap.n_groups
    negative = ~positive if known is None else ~positive & known
    positive = positive if known is None else positive & known
    levels = np.unique(scores[positive])[::-1]  # [K] distinct scores of positives, highest first
    if levels.size == 0:
        nothing = np.full(bootstrap.n, np.nan)
        return nothing, nothing
    # Span 2k: between levels k-1 and k; 2k+1: exactly level k. Items below the last level count nowhere.
    below = np.searchsorted(-levels, -scores, side="left")  # first level that the item reaches
    reaches = below < levels.size
    on_level = reaches & (levels[np.minimum(below, levels.size - 1)] == scores)
    span = 2 * below + on_level
    negatives = _counts(span, index, reaches & negative, (2 * levels.size, n_groups))
    positives = _counts(span // 2, index, positive, (levels.size, n_groups))
    # As the weights: in float64 these would be copied for each class, and sums of so small integers are exact in both.
    all_negatives = bootstrap.per_group(negative).astype(np.float32)
    found = [_ranking_block(negatives, positives, all_negatives, weights) for weights in bootstrap.blocks()]
    ap, roc = np.concatenate([np.zeros((2, 0)), *found], axis=1)
    return ap, roc


def _counts(rows: Ints, columns: Ints, keep: Bools, shape: tuple[int, int]) -> Any:
    ones = np.ones(int(keep.sum()), np.float32)
    counts = scipy.sparse.coo_array((ones, (rows[keep], columns[keep])), shape=shape).tocsr()
    counts.sum_duplicates()
    return counts


def _ranking_block(
    negatives: Any, positives: Any, all_negatives: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
) -> Floats:
    """AP and ROC-AUC of some replicates. [2, width]"""
    drawn = (positives @ weights).astype(np.float64)  # [K, width] positives at each level
    true = np.cumsum(drawn, axis=0)
    per_span = (negatives @ weights).astype(np.float64)  # [2K, width]
    false = np.cumsum(per_span, axis=0)
    n_positive, n_negative = true[-1], (all_negatives @ weights).astype(np.float64)  # [width]
    precision = np.nan_to_num(divide(true, true + false[1::2]))  # [K, width]
    ap = divide((drawn * precision).sum(axis=0), n_positive)
    # A positive loses against the negatives above it, and half against those on its own level.
    lost = (drawn * (false[0::2] + 0.5 * per_span[1::2])).sum(axis=0)
    roc = 1.0 - divide(lost, n_positive * n_negative)
    return np.stack([ap, roc])
