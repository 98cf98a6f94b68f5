"""The grouped bootstrap: 95 % intervals from drawing whole source recordings with replacement.

    groups [N] ─▶ Bootstrap ─▶ ratio, replicates ─▶ interval, difference_interval

Clips of one source recording share the bird, the place and the wind, so they are drawn together. Every interval of
birdtune comes from here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
# Replicates computed together: [groups, 128] float32 of some thousand groups stays in a core's cache.
_AT_ONCE = 128


class Bootstrap:
    """How often each source recording is drawn in each replicate.

    Args:
        groups: [N] source recording of each item.
        n: replicates; 1,000 is customary, 0 gives no intervals.
        seed: the same seed gives the same replicates.
    """

    def __init__(self, groups: Sequence[str], n: int, seed: int) -> None:
        names, index = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
        self.n, self.n_groups = n, len(names)
        self.index: Ints = index.astype(np.int64)  # [N] group of each item
        rng = np.random.default_rng(seed)
        self._blocks = []
        for start in range(0, n, _AT_ONCE):
            width = min(_AT_ONCE, n - start)
            counts = rng.multinomial(self.n_groups, np.full(self.n_groups, 1.0 / self.n_groups), size=width)
            self._blocks.append(np.ascontiguousarray(counts.T, dtype=np.float32))  # [G, width]

    def at(self, items: Ints) -> "Bootstrap":
        """The same replicates for other items, each a part of one of these: the windows of recordings."""
        other = object.__new__(Bootstrap)
        other.__dict__ = {**vars(self), "index": self.index[items]}
        return other

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Counts of the groups, some replicates at a time. [G, width]"""
        yield from self._blocks

    def weights(self) -> Iterator[Floats]:
        """How often each item is drawn, replicate by replicate. [N]"""
        for block in self.blocks():
            for drawn in block.T:
                yield drawn[self.index].astype(np.float64)

    def per_group(self, values: npt.NDArray[Any]) -> Floats:
        """Sums over the items of each group: [N] → [G], or [N, K] → [G, K]."""
        if values.ndim == 1:
            return np.asarray(np.bincount(self.index, values, self.n_groups), np.float64)
        n = len(self.index)
        members = scipy.sparse.csr_array((np.ones(n), (self.index, np.arange(n))), shape=(self.n_groups, n))
        return np.asarray(members @ values.astype(np.float64))

    def n_groups_of(self, inside: Bools) -> int:
        """How many source recordings some of the items come from."""
        return len(np.unique(self.index[inside]))

    def ratio(self, top: npt.NDArray[Any], bottom: npt.NDArray[Any]) -> Floats:
        """Replicates of Σ top / Σ bottom; NaN where Σ bottom is 0.

        Args:
            top, bottom: [N] or [N, K], a row for each item.

        Returns:
            [n] or [n, K].
        """
        tops, bottoms = self.per_group(top), self.per_group(bottom)
        found = [divide(block.T @ tops, block.T @ bottoms) for block in self.blocks()]
        return np.concatenate(found) if found else np.zeros((0, *tops.shape[1:]))

    def share(self, right: Bools, inside: Bools) -> tuple[float | None, list[float] | None]:
        """Share of the items `inside` that are `right`, and its interval; None, None where none is inside."""
        if not inside.any():
            return None, None
        ci = interval(self.ratio(right & inside, inside), self.n_groups_of(inside))
        return float(right[inside].mean()), ci

    def difference(self, first: Bools, second: Bools, inside: Bools) -> tuple[float, list[float] | None]:
        """How much larger the first share of some items is than the second, and its interval, in pairs."""
        change = (first.astype(np.float64) - second) * inside
        value = float(change[inside].mean())
        return value, difference_interval(self.ratio(change, inside), self.n_groups_of(inside), centre=value)


def divide(top: npt.NDArray[Any], bottom: npt.NDArray[Any]) -> Floats:
    """top / bottom, NaN where bottom is 0."""
    undefined = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    return np.asarray(np.divide(top, bottom, out=undefined, where=bottom > 0))


def mean_defined(values: npt.NDArray[Any], axis: int = -1) -> Any:
    """Mean over what is defined (not NaN): over the classes that the items, or a replicate, hold."""
    known = np.isfinite(values)
    return divide(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis))


def source_weights(groups: Sequence[str]) -> Floats:
    """Weights under which the recordings of a source count as one together. [N]"""
    _, source, size = np.unique(np.asarray(groups, object), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / size[source])


def interval(replicates: Floats, n_groups: int, *, centre: float | None = None) -> list[float] | None:
    """95 % interval of a share (0…1) from its bootstrap replicates.

    The exact binomial (Clopper-Pearson) interval of as many independent trials as would scatter like the replicates
    (Korn & Graubard 1998). With few groups that scatter is itself only roughly known, so it is averaged with the
    scatter of one trial for each group; without that, sets whose sources agree by luck get intervals that are too
    narrow. Percentiles of the replicates are too narrow as well: drawing G groups of G understates the variance by
    (G - 1) / G, and near 0 and 1 they are skewed. docs/statistics.md has the measured coverage of both.

    Where the replicates do not scatter, resampling cannot show the remaining uncertainty (ten out of ten is not
    certainty): each group counts as one trial. For AP and ROC-AUC, which are no shares, all this is a rule of thumb.

    Args:
        replicates: [n]; undefined ones (NaN) are left out.
        n_groups: how many groups were drawn from.
        centre: the figure itself, for AP and ROC-AUC; None: the replicates' mean. Drawing an item twice lowers AP
            and ROC-AUC systematically, on large sets by more than the interval's width.

    Returns:
        [low, high], or None with fewer than two groups, or no replicates.
    """
    from scipy.stats import beta  # takes as long to load as `check` takes for a hundred clips

    known = replicates[np.isfinite(replicates)]
    if n_groups < 2 or known.size == 0:
        return None
    share = min(1.0, max(0.0, float(known.mean() if centre is None else centre)))
    trials = float(n_groups)
    if known.min() < known.max() and 0.0 < share < 1.0:
        of_one = _standard_error(known, n_groups) ** 2 / (share * (1.0 - share))  # 1 / trials
        trials = n_groups / ((n_groups - 1) * of_one + 1.0 / n_groups)
    tail, hits = (1.0 - CONFIDENCE) / 2, share * trials
    low = beta.ppf(tail, hits, trials - hits + 1.0) if share > 0.0 else 0.0
    high = beta.ppf(1.0 - tail, hits + 1.0, trials - hits) if share < 1.0 else 1.0
    return [float(low), float(high)]


def difference_interval(replicates: Floats, n_groups: int, *, centre: float | None = None) -> list[float] | None:
    """95 % interval of a difference of two shares (-1…1) from its bootstrap replicates; arguments as `interval`.

    The difference, and on both sides its standard error times Student's t for the groups. Where the replicates do not
    scatter, the exact binomial bound for a trial each group: a share of groups that would show in fewer than 2.5 % of
    sets, times the largest possible difference.

    Returns:
        [low, high], or None with fewer than two groups, or no replicates.
    """
    from scipy.stats import t

    known = replicates[np.isfinite(replicates)]
    if n_groups < 2 or known.size == 0:
        return None
    difference = float(known.mean() if centre is None else centre)
    if known.min() == known.max():
        hidden = 1.0 - ((1.0 - CONFIDENCE) / 2) ** (1.0 / n_groups)
        below, above = min(1.0, 1.0 + difference) * hidden, min(1.0, 1.0 - difference) * hidden
    else:
        student = float(t.ppf((1.0 + CONFIDENCE) / 2, n_groups - 1))
        below = above = student * _standard_error(known, n_groups)
    return [max(-1.0, difference - below), min(1.0, difference + above)]


def _standard_error(replicates: Floats, n_groups: int) -> float:
    return float(replicates.std() * math.sqrt(n_groups / (n_groups - 1)))
