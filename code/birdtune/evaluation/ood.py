"""How far a recording is from the training data: the out-of-distribution (OOD) score.

    windows, their embeddings ─▶ Pooler ─▶ mean embedding of each recording, silence left out [K]
    those of training ─▶ OodStatistics ─▶ OodModel: the mean of each class, one covariance within all of them
    those of validation ─▶ fit_scale ─▶ OodScale: median and limit of known recordings
    of another, distance and energy ─▶ OodScale.ood_score: 0 up to the median, 1 at the limit; above it, `unknown`

A softmax cannot say "none of these": it tells classes apart, and an unknown sound is assigned to one as well. So two
other figures of the recording's mean embedding are used: its distance from the nearest class, relative to the spread
within classes (Mahalanobis distance: Lee et al. 2018), and the energy of its logits (Liu et al. 2020). Both are scaled
to their spread on validation, and subtracted.

Three things make the distance work. Silence is left out (`FrontEnd.held`), for in recordings that were padded it is
most of what they have in common. The root of the mean is taken, for embeddings behind a ReLU are skewed. And the
covariance is shrunk (Chen et al. 2010), for 1024 numbers have more covariances than there are recordings.

Only sums are kept of the training recordings, so memory does not grow with them.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special
from scipy.sparse import csr_array

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import shown
from birdtune.evaluation.bootstrap import source_weights
from birdtune.runtime.files import write_bytes
from birdtune.runtime.parsing import finite
from birdtune.runtime.storage import read_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# Called with the numbers of recordings [n] and their mean embeddings [n, K].
Take = Callable[[Ints, Floats], None]

# With fewer validation sources no limit is set, as in calibration.
FEWEST_SOURCES = 10
_BLOCK = 256  # rows whose products are added at a time
_ARRAYS = ("origin", "whitening", "centres", "counts")


def signed_root(pooled: npt.NDArray[Any]) -> Floats:
    """Means of embeddings, less skewed: the root of each number, with its sign."""
    values = pooled.astype(np.float64)
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


class Pooler:
    """Windows in their order → the mean embedding of each recording, as soon as its last window was noted.

    Args:
        recording: [P] which recording each window is of, ascending.
        take: called with recordings as they are finished.
    """

    def __init__(self, recording: Ints, spec: FrontEnd, take: Take) -> None:
        self._recording, self._spec, self._take = recording, spec, take
        self._at = 0
        self._open: Floats | None = None  # [K + 1] sums of the recording that is not finished, its weight last

    def note(self, features: npt.NDArray[Any], embeddings: npt.NDArray[Any]) -> None:
        """Take in a batch; what is beyond the last window only fills it up."""
        count = min(len(features), self._recording.size - self._at)
        if not count:
            return
        numbers = self._recording[self._at : self._at + count]
        weight = self._spec.held(features[:count])[:, None]
        rows = np.hstack([weight * embeddings[:count].astype(np.float64), weight])  # [n, K + 1]
        first = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
        sums = np.add.reduceat(rows, first, axis=0)
        found = numbers[first]
        if self._open is not None:
            if found[0] == self._recording[self._at - 1]:
                sums[0] += self._open
            else:
                sums, found = np.vstack([self._open, sums]), np.append(self._recording[self._at - 1], found)
        self._at += count
        self._open = sums[-1]
        if self._at == self._recording.size:
            self._open = None
        else:
            sums, found = sums[:-1], found[:-1]
        if found.size:
            self._take(found, sums[:, :-1] / sums[:, -1:])


def centre_targets(positive: csr_array) -> tuple[csr_array, npt.NDArray[np.bool_]]:
    """What recordings count for in the statistics of the classes.

    A recording of several classes lies between their means: it would draw them together, and make the spread within
    classes as large as that between them. So those of one class count. Of a class that no recording has alone, the
    others do, and a recording of two such classes is half of each.

    Args:
        positive: [N, C] the classes of each recording.

    Returns:
        targets [N, C], none of a recording that does not count; the classes [C] that rest on recordings of several.
    """
    alone = positive.sum(axis=1) == 1
    covered = positive[alone].sum(axis=0) > 0
    row, column = positive.nonzero()
    counts = alone[row] | ~covered[column]
    targets = csr_array((np.ones(counts.sum(), np.bool_), (row[counts], column[counts])), positive.shape)
    return targets, (positive.sum(axis=0) > 0) & ~covered


class OodStatistics:
    """Sums over training recordings, from which the means and the covariance of their classes follow."""

    def __init__(self, n_classes: int) -> None:
        self.counts = np.zeros(n_classes)  # recordings of each class; one of two classes is half of each
        self._sums: Floats | None = None  # [C, K]
        self._products: Floats | None = None  # [K, K]

    def add(self, targets: npt.NDArray[Any], pooled: Floats) -> None:
        """Take in recordings: their targets [n, C] and mean embeddings [n, K]; those without a class do not count."""
        labelled = targets.sum(axis=1) > 0
        rows = signed_root(pooled[labelled])
        share = targets[labelled] / targets[labelled].sum(axis=1, keepdims=True, dtype=np.float64)
        if self._sums is None or self._products is None:
            width = rows.shape[1]
            self._sums, self._products = np.zeros((len(self.counts), width)), np.zeros((width, width))
        self.counts += share.sum(axis=0)
        self._sums += share.T @ rows
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            self._products += part.T @ part

    def model(self) -> "OodModel | None":
        """Means and shrunk covariance; None where recordings of a class never differ, or are one each."""
        present = self.counts > 0
        freedom = round(self.counts.sum() - present.sum())
        if self._sums is None or self._products is None or freedom < 2:
            return None
        means = np.where(present, self._sums.T / np.where(present, self.counts, 1.0), 0.0).T  # [C, K]
        scatter = self._products - (means.T * self.counts) @ means
        covariance = shrunk(scatter / freedom, freedom)
        if not np.isfinite(covariance).all() or np.trace(covariance) <= 1e-12:
            return None
        # Σ = L Lᵀ: rows times L⁻ᵀ have covariance 1.
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        origin = self._sums.sum(axis=0) / self.counts.sum()
        return OodModel(
            origin.astype(np.float32),
            whitening.astype(np.float32),
            ((means - origin) @ whitening).astype(np.float32),
            self.counts.copy(),
        )


def shrunk(covariance: Floats, n: int) -> Floats:
    """A covariance drawn towards a multiple of the unit matrix, as far as `n` samples make advisable. [K, K]

    Oracle approximating shrinkage (Chen, Wiesel, Eldar, Hero 2010), which needs no more than the covariance.
    """
    width = len(covariance)
    mean = np.trace(covariance) / width
    alpha = float(np.mean(covariance**2))
    denominator = (n + 1.0) * (alpha - mean**2 / width)
    share = 1.0 if denominator <= 0 else min((alpha + mean**2) / denominator, 1.0)
    return np.asarray((1.0 - share) * covariance + share * mean * np.eye(width))


@dataclass(frozen=True, eq=False)
class OodMeasures:
    """Of some recordings: distance from the nearest class, and energy of the logits. [N] each"""

    distance: Floats
    energy: Floats


@dataclass(frozen=True)
class OodScale:
    """How distance and energy become one score.

    Attributes:
        energy_weight: of the energy beside the distance.
        median: of distance - weight · energy on validation; limit: its quantile there at the target recall.
        target_recall: share of known recordings that are to be accepted.
        sources: source recordings of validation that it was fitted on.
    """

    energy_weight: float
    median: float
    limit: float
    target_recall: float
    sources: int

    def ood_score(self, measures: OodMeasures) -> npt.NDArray[np.float32]:
        """0 up to the median, 1 at the limit. [N]"""
        apart = measures.distance - self.energy_weight * measures.energy
        return np.asarray(np.maximum((apart - self.median) / (self.limit - self.median), 0.0), np.float32)

    def row(self) -> dict[str, Any]:
        """As in metrics.json and model.json."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "OodScale":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        numbers = {key: finite(row[key]) for key in ("energy_weight", "median", "limit", "target_recall")}
        return cls(**numbers, sources=int(finite(row["sources"])))


@dataclass(frozen=True, eq=False)
class OodModel:
    """Where the training recordings lie among embeddings.

    Attributes:
        origin: [K] mean of all; whitening: [K, K], behind which recordings of a class vary by 1 in every direction.
        centres: [C, K] whitened means of the classes.
        counts: [C] recordings behind each; a class without any is infinitely far.
    """

    origin: npt.NDArray[np.float32]
    whitening: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]
    counts: Floats

    @property
    def widening(self) -> npt.NDArray[np.float32]:
        """What squared distances are multiplied by: less for classes whose mean rests on few recordings. [C]

        A recording is √(1 + 1/n) as far from the mean of n others of its class as from the true one.
        """
        return np.where(self.counts > 0, self.counts / (self.counts + 1.0), np.inf).astype(np.float32)

    def distances(self, pooled: npt.NDArray[Any]) -> Floats:
        """Mean embeddings [N, K] → how far each is from its nearest class. [N]"""
        placed = (signed_root(pooled) - self.origin) @ self.whitening.astype(np.float64)  # [N, K]
        squared = [((placed - centre) ** 2).sum(axis=1) for centre in self.centres]  # a class at a time: [N]
        return np.asarray(np.sqrt(np.min(np.stack(squared) * self.widening[:, None], axis=0)))

    @property
    def _freedom(self) -> int:
        """Recordings that the covariance rests on, less one for each class's mean."""
        return round(float(self.counts.sum() - (self.counts > 0).sum()))

    def with_centres_of(self, before: "OodModel", columns: Ints) -> "OodModel":
        """With the means of an earlier model for classes that have no recordings now.

        Only its covariance says how much recordings of these differ: both are averaged, each by what it rests on.

        Args:
            before: of a model with the same embedding; its classes are the first here.
            columns: the classes; those unknown to it as well stay infinitely far.
        """
        # What whitening did is undone: placed = (mean - origin) W; W = L⁻ᵀ and Σ = L Lᵀ.
        roots = [np.linalg.inv(each.whitening.astype(np.float64)) for each in (self, before)]  # Lᵀ
        means, old = (each.centres @ root + each.origin for each, root in zip((self, before), roots, strict=True))
        means[columns] = old[columns]
        counts = self.counts.copy()
        counts[columns] = before.counts[columns]
        covariance = np.average(
            [root.T @ root for root in roots], axis=0, weights=[self._freedom, before._freedom]
        )
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        centres = (means - self.origin) @ whitening
        return OodModel(self.origin, whitening.astype(np.float32), centres.astype(np.float32), counts)

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: getattr(self, key) for key in _ARRAYS}
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "OodModel":
        """Read what `save` wrote. Raises InputError or RetryableError if it cannot be read."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return cls(**{key: archive[key] for key in _ARRAYS})
        except Exception as fault:  # whatever zipfile and numpy make of a damaged file
            message = f"{shown(path)}: cannot be read ({shown(str(fault)[:200])}). Delete it and run `evaluate` again."
            raise read_error(fault, path, message) from fault


class OodCollector:
    """Distance and energy of recordings as their means come out of a `Pooler`, to which `take` is given.

    Args:
        to_logits: mean embeddings [n, K] → the head's logits [n, C].
    """

    def __init__(self, model: OodModel, to_logits: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> None:
        self._model, self._to_logits = model, to_logits
        self._distance: list[Floats] = []
        self._energy: list[Floats] = []

    def take(self, numbers: Ints, pooled: Floats) -> None:
        """Measure recordings, which come in the order of their numbers."""
        self._distance.append(self._model.distances(pooled))
        self._energy.append(energy(self._to_logits(pooled.astype(np.float32))))

    def found(self) -> OodMeasures:
        """Those of all recordings."""
        none = np.zeros(0)
        return OodMeasures(np.concatenate([none, *self._distance]), np.concatenate([none, *self._energy]))


def energy(logits: npt.NDArray[Any]) -> Floats:
    """The energy of logits, without its sign: high where some class fits. [N, C] → [N]"""
    return np.asarray(scipy.special.logsumexp(logits.astype(np.float64), axis=1))


def fit_scale(measures: OodMeasures, groups: Sequence[str], target_recall: float) -> OodScale | None:
    """Median and limit of known recordings; None: too few sources to set a limit.

    Recordings of a source count as one together, and one more source is assumed to be farther than all: so the recall
    is kept on average of recordings to come as well (conformal prediction: Vovk et al. 2005).

    Args:
        measures: of validation recordings; groups: [N] their sources.
        target_recall: share of known recordings that are to be accepted.
    """
    weights = source_weights(groups)
    sources = len(set(groups))
    if sources < FEWEST_SOURCES:
        return None
    spread = float(measures.energy.std())
    energy_weight = float(measures.distance.std()) / spread if spread > 0 else 0.0
    apart = measures.distance - energy_weight * measures.energy
    order = np.argsort(apart, kind="stable")
    within = np.cumsum(weights[order])  # sources, as they lie farther away
    place = np.flatnonzero(within >= target_recall * (sources + 1) - 1e-9)
    median = float(apart[order[np.searchsorted(within, sources / 2)]])
    if not place.size or apart[order[place[0]]] <= median:
        return None
    return OodScale(energy_weight, median, float(apart[order[place[0]]]), target_recall, sources)
