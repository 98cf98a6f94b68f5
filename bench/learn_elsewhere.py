"""Known sounds as another place, recorder or microphone has them: how many still get an answer, and the right one.

    `run`, frozen, on five folds ─▶ test recordings as they are, in noise, without high sounds ─▶ `predict`
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Line, Result, Settings
from bench.learn_jobs import FROZEN
from bench.made_sets import Clip

WAYS: Mapping[str, Callable[..., made_sets.Wave]] = {
    "as they are": lambda sound, generator: sound,
    "in pink noise, 20 dB fainter": partial(made_sets.in_noise, snr_db=20.0),
    "in pink noise, 10 dB fainter": partial(made_sets.in_noise, snr_db=10.0),
    "without what is above 4 kHz": partial(made_sets.dulled, above_hz=4000.0),
}


def measure(settings: Settings) -> Result:
    """A line each: with an answer, with the right one, and with the right best guess, whether it is answered or not."""
    clips = made_sets.clips_of(learning.esc10())
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for fold in range(1, 2 if settings.quick else learning.FOLDS + 1):
        learning.job(settings.folder / "out", fold, **FROZEN, evaluate__label_issues="false")
        asked = [clip for clip in clips if learning.fold_of(clip.path.name) == fold]
        for number, (way, change) in enumerate(WAYS.items()):
            folder = settings.folder / f"asked-{fold}-{number}"
            made_sets.write_changed(asked, folder, change)
            rows[way] += _judged(asked, learning.answers(settings.folder / "out", folder))
    return Result("learn_elsewhere", [_line(way, found) for way, found in rows.items()])


def _judged(asked: list[Clip], answers: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "group": clip.path.name.split("-")[1], "answered": row["decision"] not in ("unknown", ""),
            "right": row["decision"] == clip.label, "guessed": row["class"] == clip.label,
        }
        for clip in asked
        for row in [answers[clip.path.stem]]
    ]  # fmt: skip


def _line(way: str, rows: list[dict[str, Any]]) -> Line:
    groups = [row["group"] for row in rows]
    answered, right, guessed = (
        learning.shares(np.array([row[key] for row in rows], float), groups)
        for key in ("answered", "right", "guessed")
    )
    return learning.reach(
        f"test sounds {way}: answered with a name", answered,
        note=f"with the right one {learning.text(right)}; the best guess is right {learning.text(guessed)}; "
        f"{len(rows)} clips, five folds",
    )  # fmt: skip
