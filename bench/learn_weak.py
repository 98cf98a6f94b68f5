"""Learning from labels that are true of a fifth of each sound only: heads and remedies beside each other.

    ESC-10's loudest two seconds in ten of background ─▶ embeddings ─▶ heads, five folds ─▶ accuracy on sounds as weak
                                                      ─▶ whole jobs, with labels shared out to patches and without
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench import learning, made_sets
from bench.harness import Line, Result, Settings

FROZEN = {"model__freeze": "all-but-head", "evaluate__suspects": "false"}
JOBS: Mapping[str, Mapping[str, Any]] = {
    "plain": FROZEN,
    "--train.weak-labels share": {**FROZEN, "train__weak_labels": "share"},
    "--model.head attention": {**FROZEN, "model__head": "attention"},
}
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear (plain)": ("linear", {}),
    "attention": ("attention", {}),
    "mlp": ("mlp", {}),
    "logistic regression": ("logistic regression", {}),
}


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
        lines += _jobs(settings)
    return Result("learn_weak", lines)


def _jobs(settings: Settings) -> list[Line]:
    """Whole jobs on the first of the sets."""
    home = settings.folder / str(settings.seed)
    right: dict[str, Any] = {}
    lines = []
    for way, flags in JOBS.items():
        judged = [
            learning.job(home / "jobs", fold, home / "data", **flags) for fold in range(1, learning.FOLDS + 1)
        ]
        scores, labels, groups = learning.clip_rows(judged)
        right[way] = (scores.argmax(axis=1) == labels).astype(float)
        gain = learning.shares(right[way] - right["plain"], groups)
        lines.append(
            learning.reach(
                f"whole job, {way}: test accuracy", learning.shares(right[way], groups),
                beside="" if way == "plain" else f"{learning.text(gain, sign=True)} beside plain",
                note="frozen trunk; three folds to train on, one to validate",
            )
        )  # fmt: skip
    return lines
