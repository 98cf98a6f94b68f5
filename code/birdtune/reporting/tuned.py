"""What tuning found, told: its page, and what the report of a run says of it.

tune.json ─▶ tune/report.html, best.yaml;  tune.json + settings of a run ─▶ what of them was tuned, with importances

tune.json counts trials from 0; people are told them from 1.
"""

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, FiniteFloat

from birdtune.config import Config
from birdtune.runtime.files import read_json, value_sha256
from birdtune.runtime.text import count

FOLDER, RESULT_NAME = "tune", "tune.json"

Value = str | int | float


class Again(BaseModel):
    """The best and the settings as they are, evaluated again: by other folds, from other first weights."""

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
    chosen = (
        f"Trial {from_one(found.best)} did best with {best['score']:.3f}, which flatters it: it was chosen from "
        f"{count(len(found.trials), 'trial')} by the same recordings."
    )
    if found.best == 0:
        return f"None of the {count(len(found.trials), 'trial')} was better than the settings as they are: keep them."
    if found.again is None:
        return f"{chosen} Training with the settings as they are went astray: there is nothing to compare it with."
    again = found.again
    anew = (
        f"Evaluated again ({_anew(found)}), it scores {again.best:.3f} and the settings as they are "
        f"{again.defaults:.3f}: {again.difference:+.3f}"
    )
    if again.low is not None and again.high is not None:
        anew += f" (95 %: {again.low:+.3f} to {again.high:+.3f})"
    word = "That may be luck: no better than the settings as they are, on these recordings."
    if again.is_better:
        word = "That is more than luck."
    elif keeps(found):
        word = "Keep your settings: what did best is no better when evaluated again."
    return f"{chosen} {anew}. {word}"


def from_one(number: int | None) -> int | None:
    """The number of a trial as people are told it."""
    return None if number is None else number + 1


def keeps(found: Tuned) -> bool:
    """Whether the settings as they are should be kept: nothing was better, or not when evaluated again."""
    return found.best == 0 or (found.again is not None and found.again.difference <= 0)


def advice(found: Tuned) -> str:
    """What the command that follows is for."""
    if found.best == 0:
        return "keep your settings; to train with them"
    if keeps(found):
        return f"keep your settings; to try those of trial {from_one(found.best)} all the same"
    if found.again is not None and not found.again.is_better:
        return (
            "nothing found is clearly better, so keep your settings; "
            f"to try those of trial {from_one(found.best)}, which did best"
        )
    return "to train with the best settings"


def fragment(found: Tuned) -> str:
    """The settings of the best as job.yaml has them."""
    tree: dict[str, dict[str, Value]] = {}
    for name, value in found.settings.items():
        section, key = name.split(".")
        tree.setdefault(section, {})[key] = value
    if not tree:
        return "# the defaults did best\n"
    remark = ""
    if found.best != 0 and keeps(found):
        remark = "# keep your settings: evaluated again, these were no better; to try them all the same:\n"
    elif found.best != 0 and found.again is not None and not found.again.is_better:
        remark = "# keep your settings: evaluated again, these were not clearly better; to try them:\n"
    return remark + yaml.safe_dump(tree, sort_keys=False)


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
