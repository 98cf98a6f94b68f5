"""Recordings whose noise floors are far nearer to each other than recordings mostly are: of one source?

    recordings with fingerprints ─▶ Cohort (all of one sample rate) ─▶ score of a pair ─▶ links | near_training

The score is a log-likelihood ratio in nats: how much likelier two noise floors are if they are of one source recording
than if they are of two. How far clips of one source are apart is taken from the halves of each recording, and how far
sources are apart from all recordings together, so that nothing but the data itself says what "near" is: where all
recordings are alike, as of one recorder or of one noise generator, no pair scores high.

What it cannot see: clips that were filtered, denoised, mixed or encoded each in its own way. What it has been seen to
reach, and where it fails, stands in docs/acoustic-evidence.md.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.fingerprint import N_BANDS, floors_of
from birdtune.data.scan import Recording
from birdtune.data.sources import Link

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RULE = "nearly the same noise floor"
# Nats, chosen on warblers cut up; docs/acoustic-evidence.md has what they reach on what they were not chosen on.
JOINS, WARNS = 14.0, 10.0
# Recordings of one sample rate that it takes to say what is usual among them.
LEAST_RECORDINGS = 40
# What more than this share of a class has in common is of the class (its call, its recorder), not of a source.
MOST_OF_CLASS = 0.5
# Nats from which on others of the class are like a group; and so many of them are asked.
_LIKE_CLASS, _MOST_OF_A_CLASS = 0.0, 64
# Below this, decibels of full scale, is the rounding of 16-bit samples and the silence of noise gates.
_LOWEST_DB = -98.0
# Of each recording, so many of the nearest are looked at; of groups, so many members to compare them by.
_MOST_NEAR, _MOST_MEMBERS = 24, 16
_ROWS_AT_ONCE = 512
# Variance of clips of one source, of that of halves of a recording: chosen with the thresholds, as is the shrinkage.
_WITHIN_OF_HALVES, _SHRINKAGE = 0.7, 0.15
_LEAST_BETWEEN = 0.05
# How steady a recording is, compared with most, counts between these.
_STEADIEST, _UNSTEADIEST = 0.3, 10.0
_ROUNDING_DB = 0.15  # of the fingerprint's text, standard deviation
_TURNS = 6  # of the scatter's fixed point, which is near after three


@dataclass(frozen=True, eq=False)
class Cohort:
    """Recordings of one sample rate, and what is usual among them.

    Attributes:
        index: [n] where they stand among all recordings.
        vectors: [n, 64] noise floors in which clips of one steady source differ by 1, and sources by `between`.
        within: [n] how unsteady each is: variance of its halves, 1 of most.
    """

    index: Ints
    vectors: Floats
    within: Floats
    between: Floats  # [64] variance

    def scores(self, rows: Ints, columns: Ints) -> Floats:
        """Log-likelihood ratio of pairs of members, nats. [a], [b] → [a, b]"""
        b = self.between
        found = np.empty((len(rows), len(columns)))
        for k, row in enumerate(rows.tolist()):
            w = np.sqrt(self.within[row] * self.within[columns])[:, None]
            apart = np.square(self.vectors[columns] - self.vectors[row])
            together = np.square(self.vectors[columns] + self.vectors[row])
            found[k] = (
                apart / 4 * (1 / (w + b) - 1 / w)
                + together / 4 * (1 / (w + b) - 1 / (w + 2 * b))
                + 0.5 * np.log((w + b) ** 2 / (w * (w + 2 * b)))
            ).sum(axis=1)
        return found

    def candidates(self, rows: Ints, columns: Ints) -> Iterator[tuple[int, Ints]]:
        """Of members, those that may be nearest, as if all were equally steady: one product of matrices."""
        b = self.between
        own = 0.5 / (1 + b) - 0.25 / (1 + 2 * b) - 0.25
        right = self.vectors[columns]
        of_columns = (right**2 @ own).astype(np.float32)
        right = right.astype(np.float32)
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[begin : begin + _ROWS_AT_ONCE]
            left = (self.vectors[part] * (b / (1 + 2 * b))).astype(np.float32)
            rough = left @ right.T + of_columns  # but for what is the same for all of a row
            rough[part[:, None] == columns[None]] = -np.inf
            most = min(_MOST_NEAR, len(columns))
            near = np.argpartition(rough, -most, axis=1)[:, -most:]
            for row, chosen in zip(part.tolist(), near, strict=True):
                yield row, columns[chosen[columns[chosen] != row]]


def cohorts(recordings: Sequence[Recording]) -> list[Cohort]:
    """Recordings that can be compared, by sample rate; rates with too few of them are left out."""
    by_rate: dict[int, list[tuple[int, Floats]]] = defaultdict(list)
    for number, recording in enumerate(recordings):
        halves = _halves(recording)
        if halves is not None:
            by_rate[recording.facts.rate_hz].append((number, halves))
    return [
        _cohort(np.array([number for number, _ in found], np.int64), np.stack([halves for _, halves in found]))
        for _, found in sorted(by_rate.items())
        if len(found) >= LEAST_RECORDINGS
    ]


def _halves(recording: Recording) -> Floats | None:
    """Noise floors of both halves [2, 64]; None where there is none to speak of."""
    measures = recording.facts.measures
    if measures is None or not measures.fingerprint:
        return None
    halves = np.maximum(floors_of(measures.fingerprint).astype(np.float64), _LOWEST_DB)
    # Equal silence is of no recorder.
    return None if (halves.mean(axis=0) <= _LOWEST_DB + 2).mean() > 0.5 else halves


def _cohort(index: Ints, halves: Floats) -> Cohort:
    halves = halves - halves.mean(axis=2, keepdims=True)  # clips may have been made equally loud
    apart = (halves[:, 0] - halves[:, 1]) / np.sqrt(2)
    scatter, unsteadiness = _scatter(apart)
    usual = float(np.median(unsteadiness))
    values, vectors = np.linalg.eigh(_WITHIN_OF_HALVES * usual * scatter)
    whitened = (halves.mean(axis=1) - halves.mean(axis=(0, 1))) @ (vectors / np.sqrt(values))
    total, axes = np.linalg.eigh(np.cov(whitened.T))
    within = np.clip(unsteadiness / usual, _STEADIEST, _UNSTEADIEST)
    return Cohort(index, whitened @ axes, within, np.maximum(total - 1, _LEAST_BETWEEN))


def _scatter(apart: Floats) -> tuple[Floats, Floats]:
    """Shape [d, d] of a cloud of vectors by Tyler's estimator, for which one wild vector is one; size [n] of each.

    Tyler, "A distribution-free M-estimator of multivariate scatter", Annals of Statistics 15, 1987.
    """
    shape = np.eye(N_BANDS)
    for _ in range(_TURNS):
        size = _sizes(apart, shape)
        weighted = apart / np.sqrt(size)[:, None]
        shape = weighted.T @ weighted
        shape *= N_BANDS / np.trace(shape)
        shape = (1 - _SHRINKAGE) * shape + _SHRINKAGE * np.eye(N_BANDS)
    return shape, _sizes(apart, shape)


def _sizes(apart: Floats, shape: Floats) -> Floats:
    inverse = np.linalg.inv(shape)
    return np.asarray(np.einsum("ij,jk,ik->i", apart, inverse, apart, optimize=True) / N_BANDS + _ROUNDING_DB**2)


def links(recordings: Sequence[Recording], how: str = "warn") -> list[Link]:
    """Pairs of recordings that sound like one source recording.

    Args:
        how: "join": strong evidence joins sources; "warn": none does; "off": there is none.
    """
    if how == "off":
        return []
    found: dict[tuple[str, str], Link] = {}
    for cohort in cohorts(recordings):
        pairs = near_pairs(cohort)
        labels = np.array([recordings[number].label for number in cohort.index.tolist()], object)
        for threshold in (JOINS, WARNS):
            for group in groups(cohort, pairs, threshold):
                if _is_of_class(cohort, np.array(group, np.int64), labels):
                    continue
                first, *others = (recordings[cohort.index[member]].name for member in group)
                for other in others:
                    link = Link(first, other, RULE, how == "join" and threshold == JOINS)
                    found.setdefault((first, other), link)
    return list(found.values())


def near_pairs(cohort: Cohort, least: float = WARNS) -> list[tuple[float, int, int]]:
    """Scores of pairs of members from `least` on, the highest first."""
    everyone = np.arange(len(cohort.index))
    pairs = set()
    for row, near in cohort.candidates(everyone, everyone):
        scores = cohort.scores(np.array([row]), near)[0]
        for k in np.flatnonzero(scores >= least).tolist():
            other = int(near[k])
            pairs.add((round(float(scores[k]), 6), min(row, other), max(row, other)))
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def groups(cohort: Cohort, pairs: Sequence[tuple[float, int, int]], threshold: float) -> list[list[int]]:
    """Members that belong together: any two groups are joined where their pairs score so much on average."""
    head = list(range(len(cohort.index)))
    members = {number: [number] for number in head}
    apart: set[tuple[int, int, int]] = set()
    for score, first, second in pairs:
        if score < threshold:
            break
        a, b = sorted((head[first], head[second]))
        tried = (a, b, len(members[a]) + len(members[b]))
        if a == b or tried in apart:
            continue
        if _average(cohort, members[a], members[b]) < threshold:
            apart.add(tried)
            continue
        for member in members[b]:
            head[member] = a
        members[a] += members.pop(b)
    return [sorted(group) for group in members.values() if len(group) > 1]


def _average(cohort: Cohort, first: Sequence[int], second: Sequence[int]) -> float:
    a, b = (_some(np.array(group, np.int64), _MOST_MEMBERS) for group in (first, second))
    return float(cohort.scores(a, b).mean())


def _is_of_class(cohort: Cohort, group: Ints, labels: npt.NDArray[Any]) -> bool:
    """Whether most of a class is near to a group of recordings, so that it is no source that they have in common.

    Args:
        labels: [n] class of each member; "" of those that do not count.
    """
    for label in set(labels[group]) - {""}:
        members = np.flatnonzero(labels == label)
        inside = np.isin(members, group)
        others = _some(members[~inside], _MOST_OF_A_CLASS)
        near = (cohort.scores(_some(group, 8), others) >= _LIKE_CLASS).any(axis=0)
        outside = near.mean() * (~inside).sum() if others.size else 0.0
        if inside.sum() + outside > MOST_OF_CLASS * len(members):
            return True
    return False


def _some(members: Ints, most: int) -> Ints:
    """At most so many of them, evenly."""
    return members[:: max(1, -(-len(members) // most))]


def near_training(
    train: Sequence[Recording], test: Sequence[Recording]
) -> tuple[dict[str, tuple[str, float]], int]:
    """Test recordings that sound like a training recording of their class, each with that and its score.

    What most training recordings of the class are near to counts for nothing: it is the sound of the class.

    Returns:
        the nearest of each; how many test recordings could be compared.
    """
    everyone = [*train, *test]
    found: dict[str, tuple[str, float]] = {}
    compared = 0
    for cohort in cohorts(everyone):
        learnt = np.flatnonzero(cohort.index < len(train))
        tested = np.flatnonzero(cohort.index >= len(train))
        if not len(learnt):
            continue
        compared += len(tested)
        labels = np.array([everyone[number].label for number in cohort.index.tolist()], object)
        of_training = np.where(cohort.index < len(train), labels, "")
        for row, near in cohort.candidates(tested, learnt):
            same = near[labels[near] == labels[row]]
            scores = cohort.scores(np.array([row]), same)[0]
            if not scores.size or scores.max() < JOINS:
                continue
            best = int(same[scores.argmax()])
            if not _is_of_class(cohort, np.array([best, row]), of_training):
                name = everyone[cohort.index[row]].name
                found[name] = everyone[cohort.index[best]].name, float(scores.max())
    return found, compared
