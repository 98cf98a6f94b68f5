"""One draw of held-out classes: learn from seen classes, recognise unseen ones by their vectors.

    Recordings, seen and unseen classes, vectors or a number of shots ─▶ one trial ─▶ Found

Strengths and the constant of calibrated stacking are chosen by classes held out within the seen ones, or by the
validation classes of a partition, so that nothing of the unseen classes plays a part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from birdtune.tuning.class_maps import (
    MAPS,
    Bools,
    ClassMap,
    Floats,
    Generalised,
    Ints,
    Scorer,
    ceiling,
    generalised,
    stacking,
    top1,
)

_INNER_FOLDS = 3  # of seen classes, to choose by
_SCORED_SHARE = 0.25  # of the source recordings of a seen class, at least one where there are two
_FEWEST_SEEN = 2


# From embeddings [N, K], labels [N], positions of what is learnt from and a seed to embeddings [N, L].
Trained = Callable[[Floats, Ints, Ints, int], Floats]


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of one class each, of sources of one class each: two at least of a class.

    Attributes:
        embeddings: [N, K]; labels: [N] columns of classes; sources: [N] numbers of source recordings.
        trained: makes embeddings of these by what is learnt from; None: they are as the backbone makes them.
    """

    embeddings: Floats
    labels: Ints
    sources: Ints
    trained: Trained | None = None

    def some(self, chosen: Bools | Ints) -> "Recordings":
        """Some of them."""
        return Recordings(self.embeddings[chosen], self.labels[chosen], self.sources[chosen])


@dataclass(frozen=True)
class Draw:
    """Which classes are learnt from and which are not, by their columns.

    Attributes:
        seen, unseen: columns.
        validation: classes to choose by; (): by folds of the seen ones.
        seed: of what is drawn within.
    """

    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    validation: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a trial found: figures of 0 to 1.

    Attributes:
        unseen: recognised among the unseen classes alone; ceiling: the most that the vectors allow.
        both: among seen and unseen together, calibrated; plain: the same without calibration.
        learnt: positions of the recordings that were learnt from. [n]
        n_scored: recordings of unseen classes that were scored.
    """

    unseen: float
    ceiling: float
    both: Generalised
    plain: Generalised
    learnt: Ints
    n_scored: int


def trial(recordings: Recordings, draw: Draw, name: str, vectors: Floats | None, shots: int) -> Found:
    """Learn from the seen classes and recognise the unseen ones.

    Args:
        name: of the map, a key of MAPS.
        vectors: [C, D] of all classes; None: prototypes of `shots` recordings each.
    """
    way = MAPS[name]
    strength, taken_off = _choose(recordings, draw, way, vectors, shots)
    scores, labels, learnt = _scores(recordings, draw, way, vectors, shots, strength)
    columns = [*draw.seen, *draw.unseen]
    is_unseen = np.isin(columns, draw.unseen)
    rows = is_unseen[labels]
    own = scores[rows][:, is_unseen]
    among = labels[rows] - len(draw.seen)
    both = [generalised(scores, labels, is_unseen, value) for value in (taken_off, 0.0)]
    return Found(
        top1(own, among, range(len(draw.unseen))),
        1.0 if vectors is None else ceiling(vectors[list(draw.seen)], vectors[list(draw.unseen)]),
        both[0], both[1], learnt, int(rows.sum()),
    )  # fmt: skip


def _choose(
    recordings: Recordings, draw: Draw, way: ClassMap, vectors: Floats | None, shots: int
) -> tuple[float, float]:
    """The strength that recognises most held-out classes, and the constant of calibrated stacking with it."""
    inner = _inner(draw)
    found = []
    for strength in way.strengths:
        trials, figures = [], []
        for one in inner:
            scores, labels, _ = _scores(recordings, one, way, vectors, shots, strength)
            is_unseen = np.arange(scores.shape[1]) >= len(one.seen)
            rows = is_unseen[labels]
            figures.append(top1(scores[rows][:, is_unseen], labels[rows] - len(one.seen), range(len(one.unseen))))
            trials.append((scores, labels, is_unseen))
        found.append((float(np.mean(figures)) if figures else 0.0, trials))
    best = int(np.argmax([figure for figure, _ in found]))
    return way.strengths[best], stacking(found[best][1])


def _inner(draw: Draw) -> list[Draw]:
    """Draws within the seen classes."""
    if draw.validation:
        return [replace(draw, unseen=draw.validation, validation=())]
    if len(draw.seen) < _INNER_FOLDS + _FEWEST_SEEN:
        return []
    order = np.random.default_rng(draw.seed).permutation(draw.seen).tolist()
    folds = [tuple(order[number::_INNER_FOLDS]) for number in range(_INNER_FOLDS)]
    return [replace(draw, seen=tuple(sorted(set(order) - set(fold))), unseen=fold) for fold in folds]


def _scores(
    recordings: Recordings, draw: Draw, way: ClassMap, vectors: Floats | None, shots: int, strength: float
) -> tuple[Floats, Ints, Ints]:
    """Scores of held-out recordings of the seen classes and of the unseen ones, by all of these classes.

    Returns:
        scores [n, seen + unseen], columns among these [n], positions of what was learnt from.
    """
    generator = np.random.default_rng(draw.seed)
    labels = recordings.labels
    apart = _some_sources(recordings, draw.seen, None, generator)
    learnt = np.flatnonzero(np.isin(labels, draw.seen) & ~apart)
    scored = (np.isin(labels, draw.seen) & apart) | np.isin(labels, draw.unseen)
    seen, unseen = list(draw.seen), list(draw.unseen)
    place = np.full(int(labels.max()) + 1, -1)
    place[[*seen, *unseen]] = np.arange(len(seen) + len(unseen))
    if recordings.trained is not None:
        embeddings = recordings.trained(recordings.embeddings, labels, learnt, draw.seed)
        recordings = replace(recordings, embeddings=embeddings)
    own = recordings.some(learnt)
    if vectors is None:
        support = _some_sources(recordings, draw.unseen, shots, generator)
        scored &= ~support
        support &= _first_of_each_source(recordings, support)
        known = _means(own, seen)
        asked = np.concatenate([known, _means(recordings.some(support), unseen)])
    else:
        known, asked = vectors[seen], vectors[[*seen, *unseen]]
    scorer: Scorer = way.fit(own.embeddings, place[own.labels], known, strength, draw.seed)
    # Scores grow and shrink with the number of seen classes: in units of their spread, one constant fits all draws.
    unit = max(float(scorer(own.embeddings, known).std()), 1e-12)
    return scorer(recordings.embeddings[scored], asked) / unit, place[labels[scored]], learnt


def _some_sources(
    recordings: Recordings, columns: Sequence[int], n: int | None, generator: np.random.Generator
) -> Bools:
    """Recordings of some source recordings of each class, so many or a share; never of all. [N]"""
    chosen = np.zeros(len(recordings.labels), np.bool_)
    for column in columns:
        own = recordings.labels == column
        sources = generator.permutation(np.unique(recordings.sources[own]))
        wanted = max(1, round(_SCORED_SHARE * len(sources))) if n is None else n
        chosen |= own & np.isin(recordings.sources, sources[: min(wanted, len(sources) - 1)])
    return chosen


def _first_of_each_source(recordings: Recordings, chosen: Bools) -> Bools:
    """One recording of each source and class among some. [N]"""
    positions = np.flatnonzero(chosen)
    pairs = np.stack([recordings.labels[positions], recordings.sources[positions]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    found = np.zeros_like(chosen)
    found[positions[first]] = True
    return found


def _means(recordings: Recordings, columns: Sequence[int]) -> Floats:
    """Mean embedding of each class. [M, K]"""
    return np.stack([recordings.embeddings[recordings.labels == column].mean(axis=0) for column in columns])
