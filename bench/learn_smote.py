"""SMOTE on embeddings: what made recordings of rare classes do, beside nothing and beside heavier real ones.

    embeddings, fewer and fewer of each class ─▶ logistic regression, plainly, weighed by class, and with SMOTE
                                              ─▶ average precision of the rarest third, accuracy

Made recordings lie between recordings that are trained on: of the fold that is judged, none is made and none is used.
ESC-10's pieces are as unlike as 100 : 1, as in learn_unbalanced; warblers as they are found, 6 to 18 of a species.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench import learning, made_sets
from bench.harness import Line, Result, Settings
from bench.learn_unbalanced import PIECE_S, chosen, rarest

PLAIN = "logistic regression"


def measure(settings: Settings) -> Result:
    """Of each set a line a way."""
    from birdtune.training.probes import SMOTE

    made_sets.write_stretches(made_sets.clips_of(learning.esc10()), settings.folder / "data", PIECE_S)
    sets = {"ESC-10, 100 : 1, YAMNet": learning.embed(settings.folder / "data", settings.folder / "esc10")}
    if not settings.quick:
        sets["warblers, 3 : 1, BirdNET"] = learning.embed(
            learning.place("warblers"), settings.folder / "warblers", backbone="birdnet",
            checkpoint=str(learning.birdnet()),
        )  # fmt: skip
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        PLAIN: (PLAIN, {}),
        "logistic regression, --train.class-weight-alpha 1": (PLAIN, {"class_weight_alpha": 1.0}),
        "logistic regression with SMOTE": (SMOTE, {}),
        "linear head": ("linear", {}),
        "linear head, --train.sampling-power 1": ("linear", {"sampling_power": 1.0}),
    }
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else 3))
    lines = [
        line for name, bench in sets.items()
        for line in _lines(name, bench, ways, seeds, unbalanced=name.startswith("ESC"))
    ]  # fmt: skip
    return Result("learn_smote", lines)


def _lines(
    name: str, bench: learning.Bench, ways: Mapping[str, tuple[str, Mapping[str, Any]]], seeds: range, *,
    unbalanced: bool,
) -> list[Line]:  # fmt: skip
    everything = {int(fold): np.flatnonzero(bench.fold != fold) for fold in np.unique(bench.fold)}
    rows = {seed: chosen(bench, seed) if unbalanced else everything for seed in seeds}
    rare = {seed: rarest(bench, rows[seed]) for seed in seeds}
    labels, groups = bench.embedded.labels, bench.embedded.groups
    scores = {
        way: [bench.out_of_fold(kind, rows=rows[seed], seed=seed, **train) for seed in seeds]
        for way, (kind, train) in ways.items()
    }

    def precision(way: str, drawn: Any) -> float:
        """Macro average precision of the rarest third, over seeds."""
        return float(np.nanmean([
            [_ap(labels[drawn] == c, table[drawn, c]) for c in rare[seed]]
            for seed, table in zip(seeds, scores[way], strict=True)
        ]))  # fmt: skip

    lines = []
    for way, tables in scores.items():
        own = learning.drawn(lambda drawn, way=way: precision(way, drawn), groups, 200)
        gain = learning.drawn(lambda drawn, way=way: precision(way, drawn) - precision(PLAIN, drawn), groups, 200)
        right = learning.shares([table.argmax(axis=1) == labels for table in tables], groups)
        beside = "" if way == PLAIN else f"{learning.text(gain, sign=True)} beside {PLAIN}"
        note = f"accuracy over all classes {learning.text(right)}; {len(seeds)} seeds"
        lines.append(learning.reach(f"{name}: {way}: macro AP, rarest third", own, beside=beside, note=note))
    return lines


def _ap(positive: Any, scores: Any) -> float:
    """Average precision; NaN where a replicate holds none of the class."""
    return float(average_precision_score(positive, scores)) if positive.any() else np.nan
