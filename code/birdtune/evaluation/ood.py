"""How unlike everything that was trained on a recording sounds.

    patches, their embeddings ─▶ Pooler ─▶ mean of each recording, silence left out [K]
    those of training ─▶ Moments ─▶ Novelty: the mean of each class, one covariance within all of them
    those of validation ─▶ scale ─▶ Scale: what is usual among known recordings, and what is a limit
    of another, distance and loudness ─▶ Scale.strangeness: 0 as usual, 1 the limit; above it, the answer is `none`

A softmax cannot say "none of these": it tells classes apart, and what it never heard falls on one side as well. So two
other questions are asked of the recording's mean embedding. How far is it from the nearest class, as measured by how
far recordings of a class are from each other (Mahalanobis distance: Lee et al. 2018)? And how loudly does any class
answer at all (energy: Liu et al. 2020)? Both are brought to the spread that they have on validation, and subtracted.

Three things make the distance work. Silence is left out (`FrontEnd.held`), for in recordings that were filled up it
is most of what they have in common. The root of the mean is taken, for embeddings behind a ReLU are skewed. And the
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

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import shown
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


def eased(pooled: npt.NDArray[Any]) -> Floats:
    """Means of embeddings, less skewed: the root of each number, with its sign."""
    values = pooled.astype(np.float64)
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


class Pooler:
    """Patches in their order → the mean embedding of each recording, as soon as its last patch was noted.

    Args:
        recording: [P] which recording each patch is of, ascending.
        take: called with recordings as they are finished.
    """

    def __init__(self, recording: Ints, spec: FrontEnd, take: Take) -> None:
        self._recording, self._spec, self._take = recording, spec, take
        self._at = 0
        self._open: Floats | None = None  # [K + 1] sums of the recording that is not finished, its weight last

    def note(self, patches: npt.NDArray[Any], embeddings: npt.NDArray[Any]) -> None:
        """Take in a batch; what is beyond the last patch only fills it up."""
        count = min(len(patches), self._recording.size - self._at)
        if not count:
            return
        numbers = self._recording[self._at : self._at + count]
        weight = self._spec.held(patches[:count])[:, None]
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


class Moments:
    """Sums over training recordings: what the means and the covariance of their classes follow from."""

    def __init__(self, n_classes: int) -> None:
        self.counts = np.zeros(n_classes, np.int64)
        self._sums: Floats | None = None  # [C, K]
        self._products: Floats | None = None  # [K, K]

    def add(self, labels: Ints, pooled: Floats) -> None:
        """Take in recordings: their classes [n] and mean embeddings [n, K]."""
        rows = eased(pooled)
        if self._sums is None or self._products is None:
            width = rows.shape[1]
            self._sums, self._products = np.zeros((len(self.counts), width)), np.zeros((width, width))
        np.add.at(self.counts, labels, 1)
        np.add.at(self._sums, labels, rows)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            self._products += part.T @ part

    def novelty(self) -> "Novelty | None":
        """Means and shrunk covariance; None where recordings of a class never differ, or are one each."""
        present = self.counts > 0
        freedom = int(self.counts.sum() - present.sum())
        if self._sums is None or self._products is None or freedom < 2:
            return None
        means = self._sums / np.maximum(self.counts, 1)[:, None]  # [C, K]
        scatter = self._products - (means.T * self.counts) @ means
        covariance = shrunk(scatter / freedom, freedom)
        if not np.isfinite(covariance).all() or np.trace(covariance) <= 1e-12:
            return None
        # Σ = L Lᵀ: rows times L⁻ᵀ have covariance 1.
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        origin = self._sums.sum(axis=0) / self.counts.sum()
        return Novelty(
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
class Measured:
    """What was measured of some recordings: distance to the nearest class, and loudness of the classes. [N] each"""

    distance: Floats
    loudness: Floats


@dataclass(frozen=True)
class Scale:
    """What makes a distance and an energy one number.

    Attributes:
        energy: how much of a distance a unit of energy outweighs.
        usual: the middle of distance - energy on validation; limit: what the wished share of it stays within.
        keep: that share; sources: of validation, that it was found on.
    """

    energy: float
    usual: float
    limit: float
    keep: float
    sources: int

    def strangeness(self, heard: Measured) -> npt.NDArray[np.float32]:
        """0 for what is usual or more than that, 1 for what is at the limit. [N]"""
        apart = heard.distance - self.energy * heard.loudness
        return np.asarray(np.maximum((apart - self.usual) / (self.limit - self.usual), 0.0), np.float32)

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.json and model.json."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Scale":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        numbers = {key: finite(row[key]) for key in ("energy", "usual", "limit", "keep")}
        return cls(**numbers, sources=int(finite(row["sources"])))


@dataclass(frozen=True, eq=False)
class Novelty:
    """What training recordings sound like.

    Attributes:
        origin: [K] mean of all; whitening: [K, K], behind which recordings of a class vary by 1 in every direction.
        centres: [C, K] whitened means of the classes.
        counts: [C] recordings behind each; a class without any is infinitely far.
    """

    origin: npt.NDArray[np.float32]
    whitening: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]
    counts: Ints

    @property
    def widening(self) -> npt.NDArray[np.float32]:
        """What squared distances are multiplied by: less for classes whose mean few recordings tell. [C]

        A recording is √(1 + 1/n) as far from the mean of n others of its class as from the true one.
        """
        return np.where(self.counts > 0, self.counts / (self.counts + 1.0), np.inf).astype(np.float32)

    def distances(self, pooled: npt.NDArray[Any]) -> Floats:
        """Mean embeddings [N, K] → how far each is from its nearest class. [N]"""
        placed = (eased(pooled) - self.origin) @ self.whitening.astype(np.float64)  # [N, K]
        squared = [((placed - centre) ** 2).sum(axis=1) for centre in self.centres]  # a class at a time: [N]
        return np.asarray(np.sqrt(np.min(np.stack(squared) * self.widening[:, None], axis=0)))

    @property
    def _freedom(self) -> int:
        """Recordings that the covariance rests on, less one for each class's mean."""
        return int(self.counts.sum() - (self.counts > 0).sum())

    def with_centres_of(self, before: "Novelty", columns: Ints) -> "Novelty":
        """With the means of an earlier model for classes that no recordings tell of now.

        How much recordings of these differ, its covariance alone knows: both are averaged, each by what it rests on.

        Args:
            before: of a model with the same embedding; its classes are the first here.
            columns: the classes; those that it knows nothing of, either, stay infinitely far.
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
        return Novelty(self.origin, whitening.astype(np.float32), centres.astype(np.float32), counts)

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: getattr(self, key) for key in _ARRAYS}
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Novelty":
        """Read what `save` wrote. Raises InputError or RetryableError if it cannot be read."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return cls(**{key: archive[key] for key in _ARRAYS})
        except Exception as fault:  # whatever zipfile and numpy make of a damaged file
            message = f"{shown(path)}: cannot be read ({shown(str(fault)[:200])}). Delete it and run `evaluate` again."
            raise read_error(fault, path, message) from fault


class Measures:
    """Measures recordings as their means come out of a `Pooler`, to which `take` is given.

    Args:
        to_logits: mean embeddings [n, K] → what the head makes of them [n, C].
    """

    def __init__(self, novelty: Novelty, to_logits: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> None:
        self._novelty, self._to_logits = novelty, to_logits
        self._distance: list[Floats] = []
        self._loudness: list[Floats] = []

    def take(self, numbers: Ints, pooled: Floats) -> None:
        """Measure recordings, which come in the order of their numbers."""
        self._distance.append(self._novelty.distances(pooled))
        self._loudness.append(loudness(self._to_logits(pooled.astype(np.float32))))

    def found(self) -> Measured:
        """What was measured of all of them."""
        none = np.zeros(0)
        return Measured(np.concatenate([none, *self._distance]), np.concatenate([none, *self._loudness]))


def loudness(logits: npt.NDArray[Any]) -> Floats:
    """How loudly any class answers: the energy of logits, without its sign. [N, C] → [N]"""
    return np.asarray(scipy.special.logsumexp(logits.astype(np.float64), axis=1))


def scale(heard: Measured, groups: Sequence[str], keep: float) -> Scale | None:
    """What is usual among known recordings, and the limit that a share of them stay within; None: too few to say.

    Recordings of a source count as one together, and one more source is thought to be stranger than all: so the share
    is kept on average of recordings to come as well (conformal prediction: Vovk et al. 2005).

    Args:
        heard: validation recordings; groups: [N] their sources.
        keep: the share.
    """
    _, source, size = np.unique(np.asarray(groups, object), return_inverse=True, return_counts=True)
    if len(size) < FEWEST_SOURCES:
        return None
    spread = float(heard.loudness.std())
    weight = float(heard.distance.std()) / spread if spread > 0 else 0.0
    apart = heard.distance - weight * heard.loudness
    order = np.argsort(apart, kind="stable")
    within = np.cumsum((1.0 / size[source])[order])  # sources, as they become stranger
    place = np.flatnonzero(within >= keep * (len(size) + 1) - 1e-9)
    usual = float(apart[order[np.searchsorted(within, len(size) / 2)]])
    if not place.size or apart[order[place[0]]] <= usual:
        return None
    return Scale(weight, usual, float(apart[order[place[0]]]), keep, len(size))
