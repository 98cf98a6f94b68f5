"""Recordings that sound like parts of one source recording: by their noise floors, and by samples that run on.

    recordings with fingerprints ─▶ Cohort (all of one sample rate) ─▶ compare ─▶ seams, groups ─▶ links | near_training

The score of noise floors is a log-likelihood ratio in nats: how much likelier two of them are if they are of one source
recording than if they are of two. How far clips of one source are apart is taken from the halves of each recording, and
how far sources are apart from all recordings together, so that "near" depends on the data alone: where
all recordings are alike, as of one recorder or of one noise generator, no pair scores high.

It misses clips that were filtered, denoised, mixed or encoded each in its own way. Measured recall, and where it
fails: docs/acoustic-evidence.md.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.fingerprint import N_BANDS, floors_of
from birdtune.audio.seams import Seams
from birdtune.data.scan import Recording
from birdtune.data.sources import Link
from birdtune.runtime.files import read_json, value_sha256, write_json

Floats = npt.NDArray[np.float64]
Pair = tuple[float, int, int]  # score, first and second
Ints = npt.NDArray[np.int64]

RULE = "nearly the same noise floor"
SEAM_RULE = "samples that run on from one to the other"
_VERSION = 3  # of the rules here and in audio/seams.py: links kept by other versions are computed anew
# Nats, chosen on warblers cut up; docs/acoustic-evidence.md has what they reach on what they were not chosen on.
JOINS, WARNS = 14.0, 10.0
# Nats from which a seam counts, and counts in the leak test, where no noise floor of a whole group supports it; and the
# least of them without the noise floors.
SEAM, SEAM_NEAR = 3.0, 8.0
_SEAM_ALONE = 3.0
# How much of the score of noise floors counts beside that of a seam, and between which bounds.
_FLOOR_COUNTS, _FLOOR_BOUNDS = 0.25, (-2.0, 4.0)
# A seam has this share of the likelihood of all that may be at that end.
_LIKELIEST = 0.7
# Recordings of one sample rate that it takes to say what is usual among them.
LEAST_RECORDINGS = 40
# What more than this share of a class has in common is of the class (its call, its recorder), not of a source.
MOST_OF_CLASS = 0.5
# Nats from which on others of the class are like a group; and so many of them are asked.
_LIKE_CLASS, _MOST_OF_A_CLASS = 0.0, 64
# Below this, decibels of full scale, is the rounding of 16-bit samples and the silence of noise gates.
_LOWEST_DB = -98.0
# Of each recording, so many of the nearest are looked at; of groups, so many members to compare them by.
_MOST_NEAR, _MOST_MEMBERS = 32, 16
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
        seams: their ends.
    """

    index: Ints
    vectors: Floats
    within: Floats
    between: Floats  # [64] variance
    seams: Seams

    def scores(self, rows: Ints, columns: Ints) -> Floats:
        """Log-likelihood ratio of pairs of members, nats. [a], [b] → [a, b]"""
        b = self.between
        scores = np.empty((len(rows), len(columns)))
        for k, row in enumerate(rows.tolist()):
            w = np.sqrt(self.within[row] * self.within[columns])[:, None]
            apart = np.square(self.vectors[columns] - self.vectors[row])
            together = np.square(self.vectors[columns] + self.vectors[row])
            scores[k] = (
                apart / 4 * (1 / (w + b) - 1 / w)
                + together / 4 * (1 / (w + b) - 1 / (w + 2 * b))
                + 0.5 * np.log((w + b) ** 2 / (w * (w + 2 * b)))
            ).sum(axis=1)
        return scores

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
        _cohort(recordings, [number for number, _ in members], np.stack([halves for _, halves in members]))
        for _, members in sorted(by_rate.items())
        if len(members) >= LEAST_RECORDINGS
    ]


def _halves(recording: Recording) -> Floats | None:
    """Noise floors of both halves [2, 64]; None where there is none."""
    measures = recording.facts.measures
    if measures is None or not measures.fingerprint:
        return None
    halves = np.maximum(floors_of(measures.fingerprint).astype(np.float64), _LOWEST_DB)
    # Equal silence is of no recorder.
    return None if (halves.mean(axis=0) <= _LOWEST_DB + 2).mean() > 0.5 else halves


def _cohort(recordings: Sequence[Recording], index: Sequence[int], halves: Floats) -> Cohort:
    halves = halves - halves.mean(axis=2, keepdims=True)  # clips may have been made equally loud
    apart = (halves[:, 0] - halves[:, 1]) / np.sqrt(2)
    scatter, unsteadiness = _scatter(apart)
    usual = float(np.median(unsteadiness))
    values, vectors = np.linalg.eigh(_WITHIN_OF_HALVES * usual * scatter)
    whitened = (halves.mean(axis=1) - halves.mean(axis=(0, 1))) @ (vectors / np.sqrt(values))
    total, axes = np.linalg.eigh(np.cov(whitened.T))
    within = np.clip(unsteadiness / usual, _STEADIEST, _UNSTEADIEST)
    measured = [recordings[number].facts.measures for number in index]
    seams = Seams([measures.ends if measures else "" for measures in measured])
    return Cohort(np.array(index), whitened @ axes, within, np.maximum(total - 1, _LEAST_BETWEEN), seams)


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


@dataclass(frozen=True, eq=False)
class Compared:
    """Pairs of members of a cohort, first < second, and the scores of their noise floors. [pairs] each"""

    first: Ints
    second: Ints
    scores: Floats


def compare(cohort: Cohort, rows: Ints | None = None, columns: Ints | None = None) -> Compared:
    """Each of some members with those of others that may be nearest; of all with all by default."""
    everyone = np.arange(len(cohort.index))
    rows, columns = (everyone if chosen is None else chosen for chosen in (rows, columns))
    near = [np.stack([np.full_like(others, row), others]) for row, others in cohort.candidates(rows, columns)]
    first, second = np.unique(np.sort(np.concatenate(near, axis=1), axis=0), axis=1)
    bounds = np.searchsorted(first, np.arange(len(everyone) + 1))
    scores = [
        cohort.scores(np.array([row]), second[begin:end])[0]
        for row, (begin, end) in enumerate(pairwise(bounds.tolist()))
    ]
    return Compared(first, second, np.concatenate(scores))


def seams(cohort: Cohort, compared: Compared, least: float = SEAM) -> list[Pair]:
    """Pairs of members of which the second begins where the first ends, with their scores.

    Of all that may follow on a member one is by far the likeliest, and of all that it may follow on.
    """
    firsts = np.concatenate([compared.first, compared.second])
    seconds = np.concatenate([compared.second, compared.first])
    alone = cohort.seams.scores(firsts, seconds)
    scores = alone + np.clip(_FLOOR_COUNTS * np.tile(compared.scores, 2), *_FLOOR_BOUNDS)
    chosen = (alone >= _SEAM_ALONE) & (scores >= least)
    for side in (firsts, seconds):
        total = np.full(len(cohort.index), -np.inf)
        np.logaddexp.at(total, side, scores)
        chosen &= scores >= total[side] + np.log(_LIKELIEST)
    return [(float(scores[k]), int(firsts[k]), int(seconds[k])) for k in np.flatnonzero(chosen)]


def near_pairs(compared: Compared, least: float = WARNS) -> list[Pair]:
    """Pairs whose noise floors score at least so much, the highest first."""
    pairs = [
        (round(float(compared.scores[k]), 6), int(compared.first[k]), int(compared.second[k]))
        for k in np.flatnonzero(compared.scores >= least)
    ]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def groups(cohort: Cohort, pairs: Sequence[Pair], threshold: float, seams: Sequence[Pair] = ()) -> list[list[int]]:
    """Members of one source recording: chains by seams, and any two of these whose pairs score so much on average.

    Args:
        pairs: by noise floor, the highest score first.
    """
    head = list(range(len(cohort.index)))
    members = {number: [number] for number in head}

    def join(a: int, b: int) -> None:
        for member in members[b]:
            head[member] = a
        members[a] += members.pop(b)

    for _, first, second in seams:
        if head[first] != head[second]:
            join(*sorted((head[first], head[second])))
    apart: set[tuple[int, int, int]] = set()
    for score, first, second in pairs:
        if score < threshold:
            break
        a, b = sorted((head[first], head[second]))
        tried = (a, b, len(members[a]) + len(members[b]))
        if a == b or tried in apart:
            continue
        if _average(cohort, members[a], members[b]) >= threshold:
            join(a, b)
        else:
            apart.add(tried)
    return [sorted(group) for group in members.values() if len(group) > 1]


def links(recordings: Sequence[Recording], how: str = "warn") -> list[Link]:
    """Pairs of recordings that sound like one source recording.

    Args:
        how: "join": strong evidence joins sources; "warn": none does; "off": there is none.
    """
    if how == "off":
        return []
    linked: dict[tuple[str, str], Link] = {}
    for cohort in cohorts(recordings):
        names = [recordings[number].name for number in cohort.index.tolist()]
        labels = np.array([recordings[number].label for number in cohort.index.tolist()], object)
        compared = compare(cohort)
        chained, pairs = seams(cohort, compared), near_pairs(compared)
        chains = {member: group for group in groups(cohort, [], 0.0, chained) for member in group}
        chain_of = {member: group[0] for member, group in chains.items()}
        for _, first, second in chained:
            # One seam between two classes and no other: among all pairs of recordings, chance makes some.
            if labels[first] != labels[second] and len(chains[first]) == 2:
                continue
            pair = names[first], names[second]
            linked[pair] = Link(*pair, SEAM_RULE, how == "join")
        for threshold in (JOINS, WARNS):
            for group in groups(cohort, pairs, threshold, chained):
                first, *others = sorted({chain_of.get(member, member) for member in group})
                if others and not _is_of_class(cohort, np.array(group, np.int64), labels):
                    for other in others:
                        pair = names[first], names[other]
                        linked.setdefault(pair, Link(*pair, RULE, how == "join" and threshold == JOINS))
    return list(linked.values())


def kept_links(recordings: Sequence[Recording], how: str, path: Path | None) -> list[Link]:
    """As `links`; those of the last time if the same recordings were compared then.

    Args:
        path: the file that keeps them, or None.
    """
    if path is None or how == "off" or len(recordings) < LEAST_RECORDINGS:
        return links(recordings, how)
    compared = [[r.name, r.label, r.content, r.facts.rate_hz] for r in recordings]
    constants = [_VERSION, JOINS, WARNS, SEAM, _FLOOR_COUNTS, _FLOOR_BOUNDS, _SEAM_ALONE, _LIKELIEST]
    digest = value_sha256([how, constants, compared])
    with contextlib.suppress(ValueError, TypeError, KeyError):  # of another birdtune, or damaged
        kept = read_json(path)
        if kept["digest"] == digest:
            return [Link(*link) for link in kept["links"]]
    computed = links(recordings, how)
    write_json(path, {"digest": digest, "links": [astuple(link) for link in computed]}, durable=False)
    return computed


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


def near_training(train: Sequence[Recording], test: Sequence[Recording]) -> tuple[dict[str, tuple[str, float]], int]:
    """Test recordings that sound like a training recording of their class, each with that and its score.

    What most training recordings of the class are near to counts for nothing: it is the sound of the class.

    Returns:
        the nearest of each; how many test recordings could be compared.
    """
    everyone = [*train, *test]
    nearest: dict[str, tuple[str, float]] = {}
    n_compared = 0
    for cohort in cohorts(everyone):
        learnt = np.flatnonzero(cohort.index < len(train))  # all before those of the test
        tested = np.flatnonzero(cohort.index >= len(train))
        if not len(learnt) or not len(tested):
            continue
        n_compared += len(tested)
        names = [everyone[number].name for number in cohort.index.tolist()]
        labels = np.array([everyone[number].label for number in cohort.index.tolist()], object)
        of_training = np.where(cohort.index < len(train), labels, "")
        compared = compare(cohort, tested, learnt)
        chained = [(score, min(a, b), max(a, b)) for score, a, b in seams(cohort, compared, SEAM_NEAR)]
        near = [
            (score, first, second)
            for score, first, second in near_pairs(compared, JOINS)
            if labels[first] == labels[second] and not _is_of_class(cohort, np.array([first, second]), of_training)
        ]
        for score, first, second in [*near, *chained]:
            if labels[first] == labels[second]:
                nearest.setdefault(names[second], (names[first], score))
    return nearest, n_compared
