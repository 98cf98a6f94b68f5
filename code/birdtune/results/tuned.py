"""What tuning found, told: its page, and what the report of a run says of it.

tune.json ─▶ tune/report.html;  tune.json + settings of a run ─▶ what of them was tuned, with importances
"""

from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, FiniteFloat

from birdtune.config import Config
from birdtune.files import read_json, value_sha256
from birdtune.results.words import count

FOLDER, RESULT_NAME = "tune", "tune.json"

Value = str | int | float


class Again(BaseModel):
    """The best and the settings as they are, judged anew: by other folds, from other first weights."""

    model_config = ConfigDict(strict=True)

    times: int
    best: FiniteFloat  # mean scores
    defaults: FiniteFloat
    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None

    @property
    def is_better(self) -> bool:
        """Whether the difference is more than luck would make, on these recordings."""
        return self.low is not None and self.low > 0


class Tuned(BaseModel):
    """What tune.json holds."""

    model_config = ConfigDict(strict=True)

    study: str
    created: str
    on: Literal["embeddings", "training"]
    how: str
    recordings: int
    sources: int
    wanted: int  # trials
    command: str
    space: list[dict[str, Any]]
    left_out: dict[str, str]
    defaults: dict[str, Value]
    settings: dict[str, Value]  # of the best, that `run` takes; those at their default left out
    best: int
    importance: dict[str, FiniteFloat]
    importance_lacks: str | None
    again: Again | None
    trials: list[dict[str, Any]]


def read(output: Path) -> Tuned | None:
    """What was found last in an output folder; None: nothing, or nothing readable."""
    try:
        return Tuned.model_validate(read_json(output / FOLDER / RESULT_NAME))
    except pydantic.ValidationError:
        return None


def verdict(found: Tuned) -> str:
    """Whether tuning has gained anything, in sentences that do not flatter it."""
    best = found.trials[found.best]
    if found.again is None:
        return f"None of the {count(len(found.trials), 'trial')} was better than the settings as they are: keep them."
    again = found.again
    anew = (
        f"Judged anew ({_anew(found)}), it scores {again.best:.3f} and the settings as they are "
        f"{again.defaults:.3f}: {again.difference:+.3f}"
    )
    if again.low is not None and again.high is not None:
        anew += f" (95 %: {again.low:+.3f} to {again.high:+.3f})"
    word = "That is more than luck." if again.is_better else (
        "That may be luck: no better than the settings as they are, on these recordings."
    )  # fmt: skip
    return (
        f"Trial {found.best} did best with {best['score']:.3f}, which flatters it: it was chosen from "
        f"{count(len(found.trials), 'trial')} by the same recordings. {anew}. {word}"
    )


def _anew(found: Tuned) -> str:
    assert found.again is not None
    if found.on == "training":
        return "from other first weights, on the validation recordings that chose it"
    return (
        f"{count(found.again.times, 'time')}, by other folds of the same recordings, from other first weights"
    )


def of_run(config: Config) -> dict[str, Any] | None:
    """What a run's settings owe to the tuning in its output folder; None: nothing."""
    found = read(config.output)
    if found is None:
        return None
    flat = config.flat()
    used = {name: value for name, value in found.settings.items() if flat.get(name) == value}
    if not used:
        return None
    other = [
        {"setting": name, "tuned": value, "here": flat.get(name)}
        for name, value in found.settings.items()
        if name not in used
    ]
    return {"used": used, "other": other, "verdict": verdict(found), "found": found}


def digest(config: Config) -> str | None:
    """Changes with what `of_run` says."""
    told = of_run(config)
    return value_sha256(told["found"].model_dump(mode="json")) if told else None
