"""Heads on a frozen backbone, and scikit-learn's baselines: ESC-10's five folds, several seeds.

    embeddings of 400 clips ─▶ each head, trained on four folds and judged on the fifth ─▶ accuracy, average precision
"""

import numpy as np
from sklearn.metrics import average_precision_score

from bench import learning
from bench.harness import Result, Settings

KINDS = ("linear", "mlp", "attention", "prototype", "logistic regression", "k-NN", "random forest")


def measure(settings: Settings) -> Result:
    """One line a head, the difference to logistic regression beside it."""
    kinds = KINDS[:1] if settings.quick else KINDS
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else 3))
    bench = learning.embed(learning.esc10(), settings.folder)
    labels, groups = bench.embedded.labels, bench.embedded.groups
    right, precision = {}, {}
    for kind in kinds:
        scores = [bench.out_of_fold(kind, seed=seed) for seed in seeds]
        right[kind] = np.array([table.argmax(axis=1) == labels for table in scores], float)
        precision[kind] = np.mean([
            [average_precision_score(labels == c, table[:, c]) for c in np.unique(labels)] for table in scores
        ])  # fmt: skip
    lines = [
        learning.reach(
            f"accuracy, frozen YAMNet and {kind}", learning.shares(right[kind], groups),
            at_least=0.973 if kind == "linear" else None,
            beside=_beside(kind, right, groups),
            note=f"macro average precision {precision[kind]:.3f}; {len(seeds)} seeds: "
            + ", ".join(f"{value:.4f}" for value in right[kind].mean(axis=1)),
        )
        for kind in kinds
    ]  # fmt: skip
    return Result("learn_heads", lines, {kind: right[kind].mean(axis=1).tolist() for kind in kinds})


def _beside(kind: str, right: dict[str, np.ndarray], groups: tuple[str, ...]) -> str:
    other = "logistic regression"
    if kind == other or other not in right:
        return ""
    difference = learning.shares(right[kind].mean(axis=0) - right[other].mean(axis=0), groups)
    return f"{learning.text(difference, sign=True)} beside {other}"


