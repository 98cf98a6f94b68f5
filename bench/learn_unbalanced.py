"""Learning from classes as unlike as 100 : 1: what each remedy does for the rarest third of them.

    pieces of clips ─▶ embeddings ─▶ of four folds, fewer and fewer pieces from class to class ─▶ heads
                    ─▶ average precision on the fifth

ESC-10 has 32 clips of a class in four folds; in pieces they are enough for 100 to 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench import learning, made_sets
from bench.harness import Line, Result, Settings

RATIO = 100.0
PIECE_S = 1.25  # one window
WAYS: Mapping[str, Mapping[str, Any]] = {
    "--train.sampling-power 0.5": {"sampling_power": 0.5},
    "--train.sampling-power 1": {"sampling_power": 1.0},
    "--train.class-weight-alpha 0.5": {"class_weight_alpha": 0.5},
    "--train.class-weight-alpha 1": {"class_weight_alpha": 1.0},
    "--train.focal-gamma 2": {"focal_gamma": 2.0},
    "--train.min-samples-per-class 100": {"min_samples_per_class": 100},
    "--train.sampling-power 1 --train.class-weight-alpha 0.5": {"sampling_power": 1.0, "class_weight_alpha": 0.5},
    "--train.sampling-power 1 --train.focal-gamma 2": {"sampling_power": 1.0, "focal_gamma": 2.0},
}


def measure(settings: Settings) -> Result:
    """One line a remedy: its figure, plain training's, and the ratio of both with an interval."""
    made_sets.write_stretches(made_sets.clips_of(learning.esc10()), settings.folder / "data", PIECE_S)
    bench = learning.embed(settings.folder / "data", settings.folder / "out")
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else 3))
    ways = dict(list(WAYS.items())[: 1 if settings.quick else None])
    sets = {seed: chosen(bench, seed) for seed in seeds}
    rare = {seed: rarest(bench, rows) for seed, rows in sets.items()}

    def scores(train: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        return [(bench.out_of_fold("linear", rows=sets[seed], seed=seed, **train), rare[seed]) for seed in seeds]

    plain = scores({})
    lines = [_line(bench, name, scores(train), plain) for name, train in ways.items()]
    counts = ", ".join(str(n) for n in sorted(_counts(bench, sets[settings.seed][1]), reverse=True))
    note = f"{len(seeds)} seeds draw which class is which"
    lines.append(Line(f"pieces of {PIECE_S} s of each class that are trained on", counts, note=note))
    return Result("learn_unbalanced", lines)


def chosen(bench: learning.Bench, seed: int) -> dict[int, Any]:
    """Of each fold's training pieces, those that an unbalanced set leaves."""
    clips = bench.clips()
    place = {clip.path: number for number, clip in enumerate(clips)}
    found = {}
    for fold in np.unique(bench.fold):
        inside = [clip for clip, number in zip(clips, bench.fold, strict=True) if number != fold]
        found[int(fold)] = np.array([place[clip.path] for clip in made_sets.unbalanced(inside, seed, ratio=RATIO)])
    return {fold: np.sort(rows) for fold, rows in found.items()}


def _counts(bench: learning.Bench, rows: Any) -> Any:
    return np.bincount(bench.embedded.labels[rows], minlength=len(bench.embedded.classes))


def rarest(bench: learning.Bench, rows: Mapping[int, Any]) -> Any:
    """The third of the classes with the fewest recordings to train on."""
    counts = sum(_counts(bench, of_fold) for of_fold in rows.values())
    return np.argsort(counts, kind="stable")[: len(counts) // 3]


def _line(bench: learning.Bench, name: str, found: list[Any], plain: list[Any]) -> Line:
    labels = bench.embedded.labels

    def precision(runs: list[Any], rows: Any) -> float:
        return float(np.mean([
            [average_precision_score(labels[rows] == c, table[rows, c]) for c in rare] for table, rare in runs
        ]))  # fmt: skip

    def ratio(rows: Any) -> float:
        return precision(found, rows) / precision(plain, rows)

    def recall(runs: list[Any]) -> float:
        """Of the rarest classes' recordings, the share that is recognised."""
        return float(np.mean([
            (table.argmax(axis=1) == labels)[np.isin(labels, rare)].mean() for table, rare in runs
        ]))  # fmt: skip

    everything = np.arange(len(labels))
    got = learning.drawn(ratio, bench.embedded.groups, 200)
    right = [np.mean([(table.argmax(axis=1) == labels).mean() for table, _ in runs]) for runs in (found, plain)]
    return Line(
        f"{name}: macro average precision of the rarest third", f"{precision(found, everything):.3f}",
        f"plain: {precision(plain, everything):.3f}", got[0], "≥ 1.2×", got[0] >= 1.2,
        f"ratio {learning.text(got)}; recognised of the rarest third {recall(found):.3f}, plain {recall(plain):.3f}; "
        f"accuracy over all classes {right[0]:.3f}, plain {right[1]:.3f}",
    )  # fmt: skip
