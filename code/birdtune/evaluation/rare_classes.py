"""How well the classes do that had least to learn from, and what was set for their sake.

Scores + training recordings per class ─▶ rarest_third;  settings ─▶ measures, rows of the report's table
scores of the same recordings with a measure and without ─▶ standing of each ─▶ gains
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from birdtune.data.sampling import QUALITY_NAME
from birdtune.evaluation.metrics import Draws, difference_interval, interval, ranking_replicates
from birdtune.evaluation.scores import Floats, Ints, Scores, pool_mean
from birdtune.runtime.text import UNKNOWN

_QUALITY = "train.sample-weights"
# Setting → what it does, for people; where it has its default, nothing is done.
MEASURES = {
    "train.sampling-power": "how often classes come: 0 as they were found, 1 all alike",
    "train.class-weight-alpha": "a patch counts by its class's frequency to the power of minus this",
    "train.focal-gamma": "patches that are known already count less",
    "train.min-samples-per-class": "patches that each class has in an epoch at least",
    "train.min-samples-action": "classes with fewer patches than that",
    _QUALITY: "how much each recording counts",
}


# What each measure is judged by: of the rarest third, and of all classes.
FIGURES = ("rare_recall", "rare_ap", "accuracy", "macro_ap")
# From here on classes are so unequal that a reader should know what there is against it.
_UNEQUAL = 10
# Who has this share of what the others have in the middle is not rare beside them.
_ALIKE = 0.8


def rarest_third(
    scores: Scores,
    train_counts: Ints,
    *,
    n_bootstrap: int,
    seed: int,
    background: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """Macro average precision of the classes with fewest training recordings, up to a third, and of the others.

    Only classes that the scores hold recordings of are counted. Rare are those that have clearly fewer than the others;
    equals are rare together, or not at all.

    Args:
        train_counts: [C] training recordings of each class.
        background: classes that are no answer, and not counted.
        n_bootstrap, seed: as `metrics.judge`, of whose draws these are.

    Returns:
        `classes` (names; [] where none is rarer than others), `untested` (`class`, `recordings`: as rare, and not
        counted), `times` (the largest class's recordings by the smallest's), `most_recordings` (that one of the classes
        has), and `macro_ap`, `others_macro_ap`, each with `_ci`, None where no class is rare; None where there are
        fewer than three classes.
    """
    counts = np.asarray(train_counts)
    found_rare = choose(scores.classes, scores.labels, counts, background)
    if found_rare is None:
        return None
    order, n_rare, absent = found_rare
    untested = [{"class": scores.classes[c], "recordings": int(counts[c])} for c in absent]
    own = counts[(counts > 0) & ~np.isin(scores.classes, background)]
    times = int(own.max() // own.min()) if own.size else 1
    if not n_rare:
        none = dict.fromkeys(("most_recordings", "macro_ap", "macro_ap_ci", "others_macro_ap", "others_macro_ap_ci"))
        return {"classes": [], "untested": untested, "times": times, **none}
    draws = Draws(scores.groups, n_bootstrap, seed)
    pooled = pool_mean(scores)  # [N, C]
    found: dict[str, Any] = {
        "classes": [scores.classes[c] for c in order[:n_rare]],
        "untested": untested,
        "times": times,
        "most_recordings": int(counts[order[n_rare - 1]]),
    }
    for name, chosen in (("macro_ap", order[:n_rare]), ("others_macro_ap", order[n_rare:])):
        value = float(np.mean([average_precision_score(scores.labels == c, pooled[:, c]) for c in chosen]))
        drawn = [ranking_replicates(pooled[:, c], scores.labels == c, draws.index, draws)[0] for c in chosen]
        found[name] = value
        found[f"{name}_ci"] = interval(_mean_of_drawn(np.stack(drawn)), draws.n_groups, centre=value)
    return found


def choose(
    classes: Sequence[str], labels: Ints, counts: Ints, background: Sequence[str] = ()
) -> tuple[Ints, int, Ints] | None:
    """Which classes are rare beside the others, of those that some recordings are of.

    Args:
        labels: [N] of the recordings that are judged.
        counts: [C] training recordings of each class.

    Returns:
        columns, the rarest first; how many of them are rare; columns of those as rare that no recording is of, the
        rarest first. None: there are fewer than three classes.
    """
    named = np.array([name not in background for name in classes])
    present = np.unique(labels)
    present = present[named[present]]
    if present.size < 3:
        return None
    order = present[np.argsort(counts[present], kind="stable")]
    third = -(-present.size // 3)
    limit = min(float(counts[order[third]]), _ALIKE * float(np.median(counts[order[third:]])))
    absent = np.setdiff1d(np.flatnonzero(named & (counts > 0) & (counts < limit)), present)
    return order, int((counts[order] < limit).sum()), absent[np.argsort(counts[absent], kind="stable")]


@dataclass(frozen=True, eq=False)
class Standing:
    """Figures of some scores: name → the figure, and what it is in each replicate [n]."""

    figures: dict[str, float]
    drawn: dict[str, Floats]


def standing(scores: Floats, labels: Ints, rare: Ints, draws: Draws) -> Standing:
    """What rare classes reach, and all.

    Args:
        scores: [N, C] of recordings with labels [N].
        rare: columns of the rare classes; each has a recording.
        draws: of the sources of these recordings.

    Returns:
        `rare_recall`, `rare_ap`: of the rare classes, the mean of each one's; `accuracy`, `macro_ap`: of all.
    """
    right = scores.argmax(axis=1) == labels
    present = np.unique(labels)
    own = {int(c): labels == c for c in present}
    ap = {c: float(average_precision_score(inside, scores[:, c])) for c, inside in own.items()}
    ap_drawn = {c: ranking_replicates(scores[:, c], own[c], draws.index, draws)[0] for c in own}

    def share(inside: npt.NDArray[np.bool_]) -> Floats:
        return draws.ratio(draws.per_group(right & inside, draws.index), draws.per_group(inside, draws.index))

    chosen = [int(c) for c in rare]
    return Standing(
        {
            "rare_recall": float(np.mean([right[own[c]].mean() for c in chosen])),
            "rare_ap": float(np.mean([ap[c] for c in chosen])),
            "accuracy": float(right.mean()),
            "macro_ap": float(np.mean(list(ap.values()))),
        },
        {
            "rare_recall": _mean_of_drawn(np.stack([share(own[c]) for c in chosen])),
            "rare_ap": _mean_of_drawn(np.stack([ap_drawn[c] for c in chosen])),
            "accuracy": share(np.ones(len(labels), bool)),
            "macro_ap": _mean_of_drawn(np.stack(list(ap_drawn.values()))),
        },
    )


def gains(with_it: Standing, without: Standing, n_sources: Mapping[str, int] | None) -> dict[str, Any]:
    """How much better some scores are than others, of the same recordings, in pairs.

    Args:
        n_sources: name → from how many sources that figure is drawn; None: it is the same scores, and nothing is open.

    Returns:
        name → `with`, `without`, `gain` and its 95 % interval `ci`, source by source (None: there is none).
    """
    found = {}
    for name, value in with_it.figures.items():
        gain = value - without.figures[name]
        drawn = with_it.drawn[name] - without.drawn[name]
        ci = difference_interval(drawn, n_sources[name], centre=gain) if n_sources is not None else [0.0, 0.0]
        found[name] = {"with": value, "without": without.figures[name], "gain": gain, "ci": ci}
    return found


def _mean_of_drawn(replicates: Floats) -> Floats:
    """Mean over the classes that a replicate holds; NaN where it holds none. [classes, n] → [n]"""
    known = np.isfinite(replicates)
    count = known.sum(axis=0)
    total = np.where(known, replicates, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))


def measures(settings: Mapping[str, str], on: Collection[str]) -> list[dict[str, str]]:
    """What was set for rare classes, and what is `on` of it: rows of `setting`, `value`, `words`, and `is_on`."""
    return [
        {
            "setting": name,
            "value": settings.get(name) or (QUALITY_NAME if name == _QUALITY and name in on else UNKNOWN),
            "words": words,
            "is_on": "yes" if name in on else "",
        }
        for name, words in MEASURES.items()
    ]


def unequal(found: Mapping[str, Any] | None, on: Iterable[str]) -> int | None:
    """How many times the smallest class's recordings the largest has; None: not many, or something was set.

    Args:
        found: what `rarest_third` returned.
        on: names of settings that are not at their default.
    """
    times: int = found.get("times", 1) if found else 1
    return times if times >= _UNEQUAL and not MEASURES.keys() & set(on) else None


def told(remedies: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`remedies` of metrics.json, each figure with its difference in `words` and whether that is `sure`."""
    if remedies is None:
        return None
    rows = [
        {name: _in_words(value) if name in FIGURES else value for name, value in row.items()}
        for row in remedies.get("rows", ())
    ]
    return {**remedies, "rows": rows}


def _in_words(figure: Mapping[str, Any]) -> dict[str, Any]:
    low_high = figure["ci"]
    words = _points(figure["gain"])
    if low_high is None:
        return {**figure, "words": words, "sure": False}
    words += f" ({_points(low_high[0])} to {_points(low_high[1])})"
    return {**figure, "words": words, "sure": low_high[0] > 0 or low_high[1] < 0}


def _points(difference: float) -> str:
    rounded = round(100 * difference)
    return f"{rounded:+d}" if rounded else "0"
