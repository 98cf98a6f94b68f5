"""Rare classes: how well the classes with fewest training recordings do, and what was set for their sake.

    Scores + training recordings per class ─▶ rarest_third;  settings ─▶ measures, rows of the report's table
    scores of the same recordings with a measure and without ─▶ standing of each ─▶ paired.gains
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from birdtune.data.sampling import QUALITY_NAME
from birdtune.evaluation.bootstrap import Bools, Bootstrap
from birdtune.evaluation.metrics import METRICS, Estimate, estimate, windows_of
from birdtune.evaluation.paired import view
from birdtune.evaluation.scores import Floats, Ints, Scores, pool_mean
from birdtune.runtime.text import UNKNOWN

_QUALITY = "train.sample-weights"
# Setting → what it does, for people; where it has its default, nothing is done.
MEASURES = {
    "train.sampling-power": "how often classes come: 0 as they were found, 1 all alike",
    "train.class-weight-alpha": "a window counts by its class's frequency to the power of minus this",
    "train.focal-gamma": "windows that are already scored well count less",
    "train.min-samples-per-class": "windows that each class has in an epoch at least",
    "train.min-samples-action": "classes with fewer windows than that",
    _QUALITY: "how much each recording counts",
}


# What each measure is evaluated by: of the rarest third, and of all classes.
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
        background: classes that are never a decision, and not counted.
        n_bootstrap, seed: as `part.evaluate_part`.

    Returns:
        `classes` (names; [] where none is rarer than others), `untested` (`class`, `recordings`: as rare, and not
        counted), `times` (the largest class's recordings by the smallest's), `most_recordings` (that one of the classes
        has), and `macro_ap`, `others_macro_ap`, each with `_ci`, None where no class is rare; None where there are
        fewer than three classes.
    """
    counts = np.asarray(train_counts)
    found_rare = choose(scores.classes, scores.positive, counts, background)
    if found_rare is None:
        return None
    order, n_rare, absent = found_rare
    untested = [{"class": scores.classes[c], "recordings": int(counts[c])} for c in absent]
    own = counts[(counts > 0) & ~np.isin(scores.classes, background)]
    times = int(own.max() // own.min()) if own.size else 1
    found: dict[str, Any] = {
        "classes": [scores.classes[c] for c in order[:n_rare]],
        "untested": untested,
        "times": times,
        "most_recordings": int(counts[order[n_rare - 1]]) if n_rare else None,
        "of": "recordings" if scores.window_targets is None else "windows",
    }
    if not n_rare:
        return found | dict.fromkeys(("macro_ap", "macro_ap_ci", "others_macro_ap", "others_macro_ap_ci"))
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    items = view(pool_mean(scores), scores.positive, bootstrap, scores.known)
    if scores.window_targets is not None:
        items, _ = windows_of(scores, bootstrap)
    ap = estimate(METRICS["ap"], items)
    for name, chosen in (("macro_ap", order[:n_rare]), ("others_macro_ap", order[n_rare:])):
        found |= ap.mean(bootstrap.n_groups, chosen).row(name)
    return found


def choose(
    classes: Sequence[str], positive: Bools, counts: Ints, background: Sequence[str] = ()
) -> tuple[Ints, int, Ints] | None:
    """Which classes are rare beside the others, of those that some recordings are of.

    Args:
        positive: [N, C] of the recordings that are evaluated.
        counts: [C] training recordings of each class.

    Returns:
        columns, the rarest first; how many of them are rare; columns of those as rare that no recording is of, the
        rarest first. None: there are fewer than three classes.
    """
    named = np.array([name not in background for name in classes])
    present = np.flatnonzero(positive.any(axis=0) & named)
    if present.size < 3:
        return None
    order = present[np.argsort(counts[present], kind="stable")]
    third = -(-present.size // 3)
    limit = min(float(counts[order[third]]), _ALIKE * float(np.median(counts[order[third:]])))
    absent = np.setdiff1d(np.flatnonzero(named & (counts > 0) & (counts < limit)), present)
    return order, int((counts[order] < limit).sum()), absent[np.argsort(counts[absent], kind="stable")]


def standing(
    scores: Floats, positive: Bools, rare: Ints, bootstrap: Bootstrap, known: Bools | None = None
) -> dict[str, Estimate]:
    """What rare classes reach, and all.

    Args:
        scores, positive: [N, C] of the recordings.
        rare: columns of the rare classes; each has a recording.
        known: [N, C]; None: all targets are.

    Returns:
        `rare_recall`, `rare_ap`: mean over the rare classes; `accuracy`, `macro_ap`: of all.
    """
    seen = view(scores, positive, bootstrap, known)
    of_rare = bootstrap.n_groups_of(np.asarray(positive[:, rare].any(axis=1)))
    ap = estimate(METRICS["ap"], seen)
    return {
        "rare_recall": estimate(METRICS["recall"], seen).mean(of_rare, rare),
        "rare_ap": ap.mean(of_rare, rare),
        "accuracy": estimate(METRICS["accuracy"], seen),
        "macro_ap": ap.mean(bootstrap.n_groups),
    }


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


def in_words(ablation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`rare_class_ablation` of metrics.json, each difference also in `words`, and whether it is `significant`."""
    if ablation is None:
        return None
    rows = [
        {name: _in_words(value) if name in FIGURES else value for name, value in row.items()}
        for row in ablation.get("rows", ())
    ]
    return {**ablation, "rows": rows}


def _in_words(figure: Mapping[str, Any]) -> dict[str, Any]:
    low_high = figure["ci"]
    words = _points(figure["gain"])
    if low_high is None:
        return {**figure, "words": words, "significant": False}
    words += f" ({_points(low_high[0])} to {_points(low_high[1])})"
    return {**figure, "words": words, "significant": low_high[0] > 0 or low_high[1] < 0}


def _points(difference: float) -> str:
    rounded = round(100 * difference)
    return f"{rounded:+d}" if rounded else "0"
