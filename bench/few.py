"""Fine-tuning on few recordings: one way of it beside another, with the same seed and the same few.

    four clips of each class to train on ─▶ `run`, plainly and otherwise ─▶ accuracy on a fold, and the difference
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Line, Settings
from bench.learn_jobs import GENTLE

PER_CLASS = 4
# As many updates as forty clips need; the rest is the recipe that learn_jobs fine-tunes with.
RECIPE = GENTLE | {"train__epochs": 24, "train__head_warmup_epochs": 12, "evaluate__label_issues": "false"}
FOLDS = (1, 2, 3)


def beside(plain_name: str, ways: Mapping[str, Mapping[str, Any]], settings: Settings) -> list[Line]:
    """A line each: accuracy on the folds together, and the difference to the plain recipe.

    Args:
        ways: what differs from RECIPE.
    """
    folds = FOLDS[: 1 if settings.quick else None]
    data = {fold: _few(settings.folder / f"few-{fold}", fold, settings.seed) for fold in folds}

    def right(flags: Mapping[str, Any]) -> Any:
        jobs = [learning.job(settings.folder / "out", fold, data[fold], **(RECIPE | flags)) for fold in folds]
        scores, labels, groups = learning.clip_rows(jobs)
        return (scores.argmax(axis=1) == labels).astype(float), groups

    plain, groups = right({})
    lines = [
        learning.reach(
            f"{plain_name}: test accuracy", learning.shares(plain, groups),
            note=f"{len(plain)} clips; {PER_CLASS} of each class to train on; {learning.told(RECIPE)}",
        )
    ]  # fmt: skip
    for way, flags in list(ways.items())[: 1 if settings.quick else None]:
        found, _ = right(flags)
        gain = learning.text(learning.shares(found - plain, groups), sign=True)
        lines.append(
            learning.reach(f"{way}: test accuracy", learning.shares(found, groups), note=learning.told(flags),
                           beside=f"{gain} beside {plain_name}")
        )  # fmt: skip
    return lines


def _few(folder: Path, fold: int, seed: int) -> Path:
    """The fold for test, the next for validation, and a few clips of each class, each of its own source."""
    generator = np.random.default_rng([seed, fold])
    clips = made_sets.clips_of(learning.esc10())
    judged = (fold, fold % learning.FOLDS + 1)
    chosen = [clip for clip in clips if learning.fold_of(clip.path.name) in judged]
    for label in sorted({clip.label for clip in clips}):
        rest = [clip for clip in clips if clip.label == label and learning.fold_of(clip.path.name) not in judged]
        of_source = {rest[k].path.name.split("-")[1]: rest[k] for k in generator.permutation(len(rest))}
        chosen += list(of_source.values())[:PER_CLASS]
    made_sets.lay_out(chosen, folder)
    return folder
