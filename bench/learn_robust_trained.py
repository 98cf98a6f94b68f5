"""What augmentation of sound brings a network that is fine-tuned whole, where test recordings sound otherwise.

    `run` on ESC-10, YAMNet, two folds, with and without noise ─▶ `predict` test recordings as they are, in noise,
    dulled ─▶ top-1 of each, and the difference
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Line, Result, Settings
from bench.learn_elsewhere import WAYS as PLACES
from bench.learn_jobs import GENTLE
from bench.learn_robust import NOISE

FOLDS = (1, 2)
# Training with noise is not done twice, so neither is that without.
FLAGS = GENTLE | {"train__refit": "false", "evaluate__label_issues": "false", "evaluate__rare_class_ablation": "false"}
WAYS: Mapping[str, Mapping[str, Any]] = {"without augmentation": {}, "noise": NOISE}


def measure(settings: Settings) -> Result:
    """A line for each way of training and each kind of test sound."""
    clips = made_sets.clips_of(learning.esc10())
    right: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    groups: list[str] = []
    for fold in FOLDS[: 1 if settings.quick else None]:
        asked = [clip for clip in clips if learning.fold_of(clip.path.name) == fold]
        groups += [clip.path.name.split("-")[1] for clip in asked]
        folders = {place: settings.folder / f"asked-{fold}-{number}" for number, place in enumerate(PLACES)}
        for place, change in PLACES.items():
            made_sets.write_changed(asked, folders[place], change)
        for way, flags in WAYS.items():
            learning.job(settings.folder / "out", fold, **FLAGS, **flags)
            for place, folder in folders.items():
                answers = learning.answers(settings.folder / "out", folder)
                right[way, place] += [answers[clip.path.stem]["class"] == clip.label for clip in asked]
    return Result("learn_robust_trained", [_line(way, place, right, groups) for way in WAYS for place in PLACES])


def _line(way: str, place: str, right: Mapping[tuple[str, str], list[float]], groups: list[str]) -> Line:
    own, plain = np.array(right[way, place], float), np.array(right[next(iter(WAYS)), place], float)
    beside = f"{learning.text(learning.shares(own - plain, groups), sign=True)} beside none" if WAYS[way] else ""
    return learning.reach(
        f"YAMNet fine-tuned, {way}, test sounds {place}: top-1", learning.shares(own, groups), beside=beside,
        note=learning.told(FLAGS | WAYS[way]),
    )  # fmt: skip
