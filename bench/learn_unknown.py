"""Sounds of classes that were never trained on: how often the answer is `none`, and what that costs the known ones.

    two of ESC-10's classes left out, in turns ─▶ `run` on the other eight ─▶ `predict` on test recordings and strangers
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Result, Settings
from bench.learn_jobs import GENTLE

PER_FOLD = 2  # classes that are left out; each is in one fold
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"model__freeze": "all-but-head", "evaluate__label_issues": "false"},
    "fine-tuned": GENTLE | {"evaluate__label_issues": "false"},
}
KEPT = 0.9  # of known sounds, at the second pair of lines


def measure(settings: Settings) -> Result:
    """Lines of the strangers rejected and of the known recognised, by answers as they are served."""
    folds = range(1, learning.FOLDS + 1)
    lines = []
    for way, flags in list(WAYS.items())[: 1 if settings.quick else None]:
        rows = [row for fold in folds for row in _fold(settings.folder, way, fold, flags)]
        groups = [row["group"] for row in rows]
        strange = np.array([row["strange"] for row in rows])
        none = np.array([row["decision"] == "unknown" for row in rows], float)
        right = np.array([row["decision"] == row["label"] for row in rows], float)
        kept = learning.shares(np.where(strange, np.nan, 1 - none), groups)
        known = learning.shares(np.where(strange, np.nan, right), groups)
        at_limit = _silent(rows, strange)
        lines += [
            learning.reach(
                f"{way}: of sounds of classes never trained on, answered `none`",
                learning.shares(np.where(strange, none, np.nan), groups), at_least=0.8,
                note=f"{int(strange.sum())} clips, each class in turn; limits as the jobs chose them, on validation",
            ),
            learning.reach(
                f"{way}: of known sounds, answered with a name", kept, at_least=0.9,
                note=f"with the right one {learning.text(known)}; {int((~strange).sum())} test clips",
            ),
            learning.reach(
                f"{way}: the same, where {KEPT:.0%} of the known sounds are answered",
                learning.shares(np.where(strange, at_limit, np.nan), groups), at_least=0.8,
                note="one limit for all jobs, set on these very sounds, which answers "
                f"{1 - at_limit[~strange].mean():.3f} of the known ones",
            ),
        ]  # fmt: skip
    return Result("learn_unknown", lines)


def _silent(rows: list[dict[str, Any]], strange: Any) -> Any:
    """Whether each sound has no answer under the lowest limit that keeps enough known ones. [n] 0 or 1"""
    passes = np.array([row["passes"] for row in rows])
    strangeness = np.where(passes, [row["ood_score"] for row in rows], np.inf)  # a score too low is no answer anyway
    known = np.sort(strangeness[~strange])
    limit = known[int(np.ceil(KEPT * len(known))) - 1]
    return (strangeness > limit).astype(float)


def _fold(folder: Path, way: str, fold: int, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers of one job: to the test fold of the classes it knows, and to all clips of those it does not."""
    clips = made_sets.clips_of(learning.esc10())
    classes = sorted({clip.label for clip in clips})
    strange = set(classes[(fold - 1) * PER_FOLD : fold * PER_FOLD])
    home = folder / f"{way}-{fold}"
    made_sets.lay_out([clip for clip in clips if clip.label not in strange], home / "data")
    asked = [clip for clip in clips if clip.label in strange or learning.fold_of(clip.path.name) == fold]
    made_sets.lay_out(asked, home / "asked")
    learning.job(home / "out", fold, home / "data", **flags)
    answers = learning.answers(home / "out", home / "asked")
    model = max((home / "out" / "model" / "birdtune").glob("*/labels.csv"))
    least = {row["class"]: float(row["threshold"]) for row in learning.table(model) if row["threshold"]}
    shutil.rmtree(home)
    return [
        {
            "label": clip.label, "strange": clip.label in strange, "decision": answer["decision"],
            "ood_score": float(answer["ood_score"]), "group": clip.path.name.split("-")[1],
            "passes": any(float(answer[f"score:{name}"]) >= value for name, value in least.items()),
        }
        for clip in asked
        for answer in [answers[clip.path.stem]]
    ]  # fmt: skip

