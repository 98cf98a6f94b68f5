"""How well the classes do that had least to learn from, and what was set for their sake.

Scores + training recordings per class ─▶ rarest_third;  settings ─▶ measures, rows of the report's table
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from birdtune.results.metrics import Draws, interval, ranking_replicates
from birdtune.results.scores import Floats, Ints, Scores, pool_mean
from birdtune.results.words import UNKNOWN

# Setting → what it does, for people; where it has its default, nothing is done.
MEASURES = {
    "train.balance": "how often classes come: 0 as they were found, 1 all alike",
    "train.class-weight-alpha": "a patch counts by its class's frequency to the power of minus this",
    "train.focal-gamma": "patches that are known already count less",
    "train.min-per-class": "patches that each class has in an epoch at least",
    "train.rare": "classes with fewer patches than that",
    "train.quality": "how much each recording counts",
}


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
        counted), `most_recordings` (that one of the classes has), and `macro_ap`, `others_macro_ap`, each with `_ci`,
        None where no class is rare; None where there are fewer than three classes.
    """
    named = np.array([name not in background for name in scores.classes])
    present = np.unique(scores.labels)
    present = present[named[present]]
    if present.size < 3:
        return None
    counts = np.asarray(train_counts)
    order = present[np.argsort(counts[present], kind="stable")]
    third = -(-present.size // 3)
    limit = min(float(counts[order[third]]), _ALIKE * float(np.median(counts[order[third:]])))
    n_rare = int((counts[order] < limit).sum())
    absent = np.setdiff1d(np.flatnonzero(named & (counts > 0) & (counts < limit)), present)
    absent = absent[np.argsort(counts[absent], kind="stable")]
    untested = [{"class": scores.classes[c], "recordings": int(counts[c])} for c in absent]
    if not n_rare:
        none = dict.fromkeys(("most_recordings", "macro_ap", "macro_ap_ci", "others_macro_ap", "others_macro_ap_ci"))
        return {"classes": [], "untested": untested, **none}
    draws = Draws(scores.groups, n_bootstrap, seed)
    pooled = pool_mean(scores)  # [N, C]
    found: dict[str, Any] = {
        "classes": [scores.classes[c] for c in order[:n_rare]],
        "untested": untested,
        "most_recordings": int(counts[order[n_rare - 1]]),
    }
    for name, chosen in (("macro_ap", order[:n_rare]), ("others_macro_ap", order[n_rare:])):
        value = float(np.mean([average_precision_score(scores.labels == c, pooled[:, c]) for c in chosen]))
        drawn = [ranking_replicates(pooled[:, c], scores.labels == c, draws.index, draws)[0] for c in chosen]
        found[name] = value
        found[f"{name}_ci"] = interval(_mean_of_drawn(np.stack(drawn)), draws.n_groups, centre=value)
    return found


def _mean_of_drawn(replicates: Floats) -> Floats:
    """Mean over the classes that a replicate holds; NaN where it holds none. [classes, n] → [n]"""
    known = np.isfinite(replicates)
    count = known.sum(axis=0)
    total = np.where(known, replicates, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))


def measures(settings: Mapping[str, str], changed: frozenset[str]) -> list[dict[str, str]]:
    """What was set for rare classes: rows of `setting`, `value`, `words`, and `is_on`."""
    return [
        {
            "setting": name,
            "value": settings.get(name) or UNKNOWN,
            "words": words,
            "is_on": "yes" if name in changed else "",
        }
        for name, words in MEASURES.items()
    ]
