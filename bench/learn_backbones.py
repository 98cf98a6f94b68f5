"""What the backbone is worth: warblers and ESC-10, each backbone, by few and by all recordings.

    five folds ─▶ `run` with a frozen backbone ─▶ accuracy, macro AP; logistic regression on k recordings a class

BirdNET's weights lie where BENCH_BIRDNET says (BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench import learning
from bench.harness import Line, Result, Settings
from bench.learning import birdnet, macro_ap

FROZEN = {"model__freeze": "all-but-head", "evaluate__label_issues": "false"}
FEW, SEEDS = (4, 8, 16), (0, 1, 2)
TO_REACH = {"accuracy": 0.76, "macro AP": 0.83}


def measure(settings: Settings) -> Result:
    """Lines of accuracy and average precision."""
    lines: list[Line] = []
    details: dict[str, Any] = {}
    for name, data, backbone, path in sets():
        what = f"{name}, {backbone}"
        output = settings.folder / f"{name}-{backbone}"
        flags = {"model__backbone": backbone, "model__checkpoint": path}
        to_reach = TO_REACH if (name, backbone) == ("warblers", "birdnet") else {}
        lines += jobs(f"{what}, frozen", output, data, FROZEN | flags, settings, to_reach)
        few, details[what] = _few(what, output, data, flags, settings)
        lines += few
    return Result("learn_backbones", lines, details)


def sets() -> list[tuple[str, Path, str, Path]]:
    """Each set of recordings with each backbone: name, folder, backbone, its weights."""
    weights = {"birdnet": birdnet(), "yamnet": learning.yamnet()}
    data = {"warblers": learning.place("warblers"), "ESC-10": learning.esc10()}
    return [(name, folder, *one) for name, folder in data.items() for one in weights.items()]


def jobs(
    what: str, output: Path, data: Path, flags: Mapping[str, Any], settings: Settings, to_reach: Mapping[str, float]
) -> list[Line]:
    """Accuracy and macro AP of `run` on five folds, three of them to train on and one to validate."""
    folds = (1,) if settings.quick else range(1, learning.FOLDS + 1)
    jobs = [learning.job(output, fold, data, **flags) for fold in folds]
    scores, labels, groups = learning.clip_rows(jobs)
    right = scores.argmax(axis=1) == labels
    shown = {name: value for name, value in flags.items() if name != "model__checkpoint"}
    note = f"{len(labels)} recordings of five folds; three to train on, one to validate; {learning.told(shown)}"
    found = learning.drawn(lambda rows: macro_ap(scores[rows], labels[rows]), groups)
    accuracy = learning.shares(right, groups)
    return [
        learning.reach(f"{what}: accuracy", accuracy, at_least=to_reach.get("accuracy"), note=note),
        learning.reach(f"{what}: macro AP", found, at_least=to_reach.get("macro AP")),
    ]


def _few(
    what: str, output: Path, data: Path, flags: Mapping[str, Any], settings: Settings
) -> tuple[list[Line], dict[str, Any]]:
    """Logistic regression on mean embeddings of k recordings a class, tested on all others."""
    plain = {name.removeprefix("model__"): str(value) for name, value in flags.items()}
    bench = learning.embed(data, output, **plain)
    embeddings, labels = bench.embedded.averages, bench.embedded.labels
    lines, details = [], {}
    counts = np.bincount(labels)
    for k in FEW[: 1 if settings.quick else None]:
        if (counts > k).mean() < 0.5:  # of most classes none would be left to test on
            continue
        draws = [_by_k(embeddings, labels, k, seed) for seed in SEEDS]
        details[str(k)] = draws
        low, high = min(draws), max(draws)
        lines.append(
            Line(f"{what}, {k} recordings a class: macro AP of logistic regression",
                 f"{np.mean(draws):.3f} ({low:.3f} to {high:.3f})", note="mean and range of three draws")
        )  # fmt: skip
    return lines, details


def _by_k(embeddings: learning.Floats, labels: Sequence[int], k: int, seed: int) -> float:
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = np.concatenate(
        [generator.permutation(np.flatnonzero(labels == column))[:k] for column in np.unique(labels)]
    )
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    center, spread = embeddings[chosen].mean(axis=0), embeddings[chosen].std(axis=0) + 1e-6
    model = LogisticRegression(C=0.1, max_iter=2000).fit((embeddings[chosen] - center) / spread, labels[chosen])
    scores = model.predict_proba((embeddings[rest] - center) / spread)
    return macro_ap(scores, np.searchsorted(model.classes_, labels[rest]))
