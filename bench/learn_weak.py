"""Learning from labels that are true of a fifth of each sound only: heads and remedies beside each other.

    ESC-10's loudest two seconds in ten of background ─▶ embeddings ─▶ heads, five folds ─▶ accuracy on sounds as weak
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench import learning, made_sets
from bench.harness import Line, Result, Settings

WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear (plain)": ("linear", {}),
    "attention": ("attention", {}),
    "mlp": ("mlp", {}),
}


# Whole jobs on the first seed's set: each window keeps what other sources leave it of its label, or all.
FROZEN = {"model__freeze": "all-but-head", "evaluate__label_issues": "false"}
SHARE = {"train__label_refinement": True}


def measure(settings: Settings) -> Result:
    """One line a way, with the paired difference to plain training."""
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else 2))
    right: dict[str, list[Any]] = {way: [] for way in WAYS}
    precision: dict[str, list[float]] = {way: [] for way in WAYS}
    groups: tuple[str, ...] = ()
    for seed in seeds:
        home = settings.folder / str(seed)
        made_sets.write_weak(made_sets.clips_of(learning.esc10()), home / "data", seed)
        bench = learning.embed(home / "data", home / "out")
        labels, groups = bench.embedded.labels, bench.embedded.groups
        for way, (kind, train) in WAYS.items():
            table = bench.out_of_fold(kind, seed=seed, **train)
            right[way].append((table.argmax(axis=1) == labels).astype(float))
            precision[way].append(
                float(np.mean([average_precision_score(labels == c, table[:, c]) for c in np.unique(labels)]))
            )
    plain = np.array(right["linear (plain)"])
    lines = []
    for way, values in right.items():
        gain = learning.shares(np.array(values) - plain, groups)
        lines.append(
            learning.reach(
                f"{way}: accuracy", learning.shares(np.array(values), groups),
                beside=f"{learning.text(gain, sign=True)} beside plain" if way != "linear (plain)" else "",
                note=f"macro average precision {np.mean(precision[way]):.3f}; {len(seeds)} seeds",
            )
        )  # fmt: skip
    if not settings.quick:
        lines.append(_shared(settings.folder / str(settings.seed)))
    return Result("learn_weak", lines)


def _shared(home: Path) -> Line:
    """Whole jobs with shares of labels, beside whole jobs without; the same folds."""
    right, groups = [], ()
    folds = range(1, learning.FOLDS + 1)
    for flags in ({}, SHARE):
        jobs = [learning.job(home / "jobs", fold, home / "data", **FROZEN, **flags) for fold in folds]
        scores, labels, groups = learning.clip_rows(jobs)
        right.append((scores.argmax(axis=1) == labels).astype(float))
    gain = learning.text(learning.shares(right[1] - right[0], groups), sign=True)
    return learning.reach(
        f"whole jobs, linear, {learning.told(SHARE)}: accuracy", learning.shares(right[1], groups),
        beside=f"{gain} beside {learning.text(learning.shares(right[0], groups))} without",
        note="five folds, three of them to train on; the first seed's set",
    )  # fmt: skip
