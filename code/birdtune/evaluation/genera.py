"""A genus or family where no species passes: `Setophaga sp.` in place of `unknown`.

    classes, their scientific names ─▶ find ─▶ Genera;  held-out scores ─▶ choose ─▶ from which score on each is decided
    scores of a recording that no class passes ─▶ Genera.decide ─▶ a genus, or none; then likewise a family

Families are Genera of another rank. The score of a genus is what its classes have together: where they exclude each
other their sum, else the probability that at least one is there if they were independent. Thresholds are chosen as
those of classes are, for the same precision, and evaluated on test.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation import thresholds
from birdtune.evaluation.bootstrap import Bootstrap, Floats, interval
from birdtune.evaluation.decision import UNKNOWN, Thresholds
from birdtune.evaluation.scores import Scores, clip_scores

# As in BirdNET's list: `Setophaga coronata_Yellow-rumped Warbler`.
_WITH_COMMON = re.compile(r"[A-Z][a-z]+ [a-z]+( [a-z]+)?_[A-Z].*")
# `Setophaga coronata`, alone or before a common name as in BirdNET's list.
_BINOMIAL = re.compile(r"([A-Z][a-z]{2,})[ _][a-z]{2,}(?![a-z])")
_FEWEST = 2  # classes of a genus: of one alone, the genus says no more than the class
GENUS, FAMILY = "genus", "family"


@dataclass(frozen=True)
class Genera:
    """Genera, or families, with several of the classes.

    Attributes:
        names: [G] of the genera.
        columns: [G] which classes are of each.
        exclusive: whether classes exclude each other (softmax).
        thresholds: of the genera; None: they are not chosen yet.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    exclusive: bool
    thresholds: Thresholds | None = None
    rank: str = GENUS

    def scores(self, class_scores: npt.NDArray[Any]) -> Floats:
        """Scores of the genera. [N, C] → [N, G]"""
        inside = [np.asarray(class_scores, np.float64)[:, list(own)] for own in self.columns]
        if self.exclusive:
            return np.stack([np.minimum(own.sum(axis=1), 1.0) for own in inside], axis=1)
        return np.stack([1.0 - np.prod(1.0 - own, axis=1) for own in inside], axis=1)

    def decide(self, class_scores: npt.NDArray[Any], ood_score: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The genus that passes, or `UNKNOWN`; of recordings that no class passes. [N, C] → [N]"""
        assert self.thresholds is not None
        return self.thresholds.decide(self.scores(class_scores), ood_score)

    def title(self, number: int) -> str:
        """What stands in tables."""
        return f"{self.names[number]} sp."

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """As in metrics.json and model.json."""
        members = [[classes[column] for column in own] for own in self.columns]
        return {
            "rank": self.rank, "genera": dict(zip(self.names, members, strict=True)), "exclusive": self.exclusive,
            "thresholds": self.thresholds and self.thresholds.row(self.names),
        }  # fmt: skip

    @classmethod
    def of(cls, row: Mapping[str, Any], classes: Sequence[str]) -> "Genera":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        names = tuple(str(name) for name in row["genera"])
        columns = tuple(tuple(classes.index(name) for name in members) for members in row["genera"].values())
        found = Thresholds.of(row["thresholds"])
        if not names or len(found.values) != len(names) or not all(columns):
            raise ValueError("genera without classes, or without thresholds")
        return cls(names, columns, bool(row["exclusive"]), found, str(row.get("rank", GENUS)))


def find(classes: Sequence[str], scientific: Mapping[str, str], background: Sequence[str], kind: str) -> Genera | None:
    """The genera of which several classes are; None: there is none.

    Args:
        scientific: class → its name as somebody wrote it who knows such names; others are of no genus, as `Song thrush`
            and `Song sparrow` would be of one.
        kind: "softmax" or "sigmoid".
    """
    matches = {name: _BINOMIAL.match(scientific.get(name, "")) for name in classes if name not in background}
    several = _several(classes, {name: match[1] for name, match in matches.items() if match is not None})
    return Genera(tuple(several), tuple(several.values()), kind == "softmax") if several else None


def families(classes: Sequence[str], family: Mapping[str, str], genera: Genera | None, kind: str) -> Genera | None:
    """The families of which several classes are, unless these are those of a genus; None: there is none.

    Args:
        family: class → family, as far as it is known.
        kind: as `find`.
    """
    known = () if genera is None else genera.columns
    several = {name: own for name, own in _several(classes, family).items() if own not in known}
    return Genera(tuple(several), tuple(several.values()), kind == "softmax", rank=FAMILY) if several else None


def _several(classes: Sequence[str], taxon: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Taxa with several classes, in alphabetical order, and their columns."""
    found: dict[str, list[int]] = {}
    for column, name in enumerate(classes):
        if taxon.get(name):
            found.setdefault(taxon[name], []).append(column)
    return {name: tuple(own) for name, own in sorted(found.items()) if len(own) >= _FEWEST}


def scientific_names(
    classes: Sequence[str], published: Mapping[str, str], *, are_scientific: bool | None
) -> Mapping[str, str]:
    """Which classes have scientific names, for `find`.

    Args:
        published: class → label in the list that was published with the backbone.
        are_scientific: whether the classes' own names are such; None: as far as a published list or a common name
            behind them says so.
    """
    if are_scientific is not None:
        return {name: name for name in classes} if are_scientific else {}
    return {name: name for name in classes if _WITH_COMMON.fullmatch(name)} | dict(published)


def choose(genera: Genera, held_out: Scores | None, *, precision: float, window_s: float) -> Genera:
    """With thresholds, as those of classes are chosen; `held_out` as `thresholds.choose`."""
    of_genera = None if held_out is None else _of_genera(held_out, genera)
    chosen = thresholds.choose(
        of_genera, genera.names, (), precision=precision, alarms_per_hour=None, window_s=window_s
    )
    return replace(genera, thresholds=chosen)


def _of_genera(scores: Scores, genera: Genera) -> Scores:
    """The same recordings, with genera in place of classes."""
    n = len(genera.names)
    targets, known = np.zeros((2, len(scores.recordings), n), np.float32)
    for number, own in enumerate(genera.columns):
        inside, certain = scores.positive[:, list(own)], scores.known[:, list(own)]
        targets[:, number] = inside.any(axis=1)
        known[:, number] = inside.any(axis=1) | certain.all(axis=1)
    pooled = genera.scores(clip_scores(scores)).astype(np.float32)
    windows = np.zeros((len(scores.window_recording), n), np.float32)
    return replace(
        scores, classes=genera.names, targets=targets, mask=known > 0, window_scores=windows, pooled=pooled,
        window_targets=None, window_mask=None,
    )  # fmt: skip


def evaluate(
    genera: Genera, scores: Scores, of_classes: Thresholds, before: Genera | None = None, *, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """What genera add to the decisions on some recordings.

    Args:
        before: the genera that are decided for first, where these are families.

    Returns:
        `decided` (recordings with a genus), `right` of them, `decided_share` (of all recordings) and `precision`, each
        with `_ci`; `of_classes_share`: recordings with a class. None where nothing is decided.
    """
    pooled = clip_scores(scores)
    with_class = of_classes.passing(pooled, scores.ood_score).any(axis=1)
    over = with_class if before is None else with_class | (before.decide(pooled, scores.ood_score) != UNKNOWN)
    given = np.where(over, UNKNOWN, genera.decide(pooled, scores.ood_score))
    decided = given != UNKNOWN
    targets = _of_genera(scores, genera).positive
    right = decided & targets[np.arange(len(given)), np.maximum(given, 0)]
    bootstrap, everything = Bootstrap(scores.groups, n_bootstrap, seed), np.ones(len(given), np.int64)
    share, share_ci = bootstrap.share(decided, everything > 0)
    found: dict[str, Any] = {
        "decided": int(decided.sum()), "right": int(right.sum()), "recordings": len(given),
        "decided_share": share, "decided_share_ci": share_ci, "of_classes_share": float(with_class.mean()),
        "precision": None, "precision_ci": None,
    }  # fmt: skip
    if decided.any():
        found["precision"] = float(right.sum() / decided.sum())
        found["precision_ci"] = interval(bootstrap.ratio(right, decided), bootstrap.n_groups_of(decided))
    return found
