"""The whole job on real sound, all five folds: accuracy, and whether its scores can be believed.

    `run` with the backbone frozen, and fine-tuned ─▶ test scores of five jobs ─▶ accuracy, calibration error, seconds
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench import learning
from bench.harness import Line, Result, Settings

FROZEN = {"model__freeze": "all-but-head"}
# The head by itself first, then all layers at a tenth of the usual rate.
GENTLE = {"train__head_warmup_epochs": 5, "train__learning_rate": 1e-5, "train__head_lr_multiplier": 100,
          "train__epochs": 12}
WAYS: Mapping[str, Mapping[str, Any]] = {"frozen": FROZEN, "fine-tuned": GENTLE}
TO_REACH = {"frozen": 0.973, "fine-tuned": 0.980}


def measure(settings: Settings) -> Result:
    """Lines of accuracy, of calibration, and of the time that a frozen job takes after preparation."""
    lines: list[Line] = []
    details: dict[str, Any] = {}
    folds = (1,) if settings.quick else range(1, learning.FOLDS + 1)
    for way, flags in list(WAYS.items())[: 1 if settings.quick else None]:
        judged = [learning.job(settings.folder / "out", fold, **flags) for fold in folds]
        lines += _lines(way, judged, learning.told(flags))
        details[way] = [{"stages": one.record["stages"], "clip": one.metrics["test"]["clip"]} for one in judged]
    return Result("learn_jobs", lines, details)


def _lines(way: str, judged: Sequence[learning.Judged], flags: str) -> list[Line]:
    from birdtune.evaluation import reliability

    scores, labels, groups = learning.clip_rows(judged)
    right = scores.argmax(axis=1) == labels
    each = _each([one.metrics["test"]["clip"]["accuracy"] for one in judged])
    errors = {
        when: [one.metrics["test"]["calibration"][when]["ece"] for one in judged] for when in ("before", "after")
    }

    def error(rows: Any) -> float:
        sure = scores[rows].max(axis=1).astype(np.float64)
        return reliability.calibration_error(sure, right[rows], reliability.equal_mass(sure))

    seconds = [sum(took for name, took in one.record["stages"].items() if name != "prepare") for one in judged]
    return [
        learning.reach(f"{way}: test accuracy", learning.shares(right, groups), at_least=TO_REACH.get(way),
                       note=f"folds: {each}; {len(labels)} clips; three folds to train on, one to validate; {flags}"),
        learning.reach(f"{way}: expected calibration error", learning.drawn(error, groups), at_most=0.03,
                       note=f"of all folds together; fold by fold {_each(errors['after'])}, "
                       f"before calibration {_each(errors['before'])}"),
        Line(f"{way}: a job after preparation", f"{statistics.median(seconds):.0f} s",
             note=f"median of {len(seconds)}; train, evaluate, export, report"),
    ]  # fmt: skip


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
