"""The gate: whether a new model takes the place of the one in service.

    --gate.champion ─▶ find ─▶ ServedModel ─▶ comparison.py ─▶ `gate` of metrics.json ─▶ decide ─▶ Decision

Champion (in service) and challenger (this run's model) score the same test recordings: those of the champion's classes
that neither has learnt from or was chosen by. The champion is loaded as it is served, whatever network it is. What
decides is the difference of the mean of accuracy and macro average precision over the champion's classes, with a 95 %
interval over source recordings, in pairs. Where labels have times, segments of a second stand for recordings.

docs/gate.md explains the rule.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtune.config import LATEST, Config
from birdtune.errors import InputError, shown
from birdtune.evaluation.diagnostics import STRONG
from birdtune.evaluation.headline import units
from birdtune.runtime.files import read_json
from birdtune.runtime.runs import Run
from birdtune.runtime.text import count, some
from birdtune.training.served_model import (
    ServedModel,
    is_number,
    of_folder,
    of_number,
    read,
    served_models,
    under_way,
)

_SETTING = "--gate.champion"


# ---- the champion --------------------------------------------------------------------------------


def find(config: Config, current: Run | None = None) -> ServedModel | None:
    """The model in service; None where there is no gate, or `latest` finds none yet.

    Args:
        current: the run itself, once it has a number: no model is its own champion.

    Raises:
        InputError: there is no such model, or it is this run's own.
        CheckpointError: it is damaged.
    """
    wanted, own = config.gate.champion, current and current.version
    if wanted is None:
        return None
    if wanted == LATEST:
        return _latest(config, current)
    number = is_number(wanted)
    found = of_number(config, _SETTING, int(wanted)) if number else of_folder(config, _SETTING, Path(wanted))
    if found.is_own and found.version == own:
        raise InputError(
            f"{_SETTING} {shown(wanted)}: version {own} is this run's own model. Give an earlier version, or {LATEST}."
        )
    return found


def _latest(config: Config, current: Run | None) -> ServedModel | None:
    """The newest promoted model but that of a run; if that itself is promoted, what it was promoted against."""
    name, own = config.export.name, current and current.version
    numbers = [
        number for number, folder in served_models(config).items()
        if folder.parent.name == name and number != own and not under_way(config, number)
    ]  # fmt: skip
    newest = max(numbers, default=None)
    if current is not None and current.record["promoted"]:
        beaten = current.record["gate"]["champion"]
        newest = beaten["version"] if beaten is not None and beaten["folder"] is None else None
    return read(config.output / "model" / name / str(newest), is_own=True) if newest in numbers else None


# ---- the decision --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Whether a model is promoted, and why.

    Attributes:
        champion: the row of the model it was compared with; None: there was none.
    """

    promoted: bool
    reason: str
    champion: dict[str, Any] | None = None

    def row(self) -> dict[str, Any]:
        """`gate` of run.json."""
        return {"champion": self.champion, "reason": self.reason}


def decide(config: Config, reports: Path, record: Mapping[str, Any]) -> Decision:
    """Whether the model of a run is promoted, by its metrics.json, its verdict, and what was decided before.

    Args:
        record: of the run, as run.json has it.
    """
    if config.gate.champion is None:
        return Decision(True, "no gate was set")
    if config.gate.champion == LATEST and record["promoted"]:  # it is in service: a schedule takes nothing back
        return Decision(True, record["gate"]["reason"], record["gate"]["champion"])
    figures = read_json(reports / "metrics.json") or {}
    row = figures.get("gate")
    if row is None and record["verdict"] == "poor":
        strong = dict.fromkeys(each["code"] for each in figures["warnings"] if each["severity"] == STRONG)
        return Decision(
            False, f"the verdict is poor ({', '.join(strong)}), and there is no model in service to compare it with"
        )
    if row is None:
        return Decision(True, "there was no model in service yet")
    champion = {name: row[name] for name in ("version", "folder", "weights_sha256")}
    if objections := list(_objections(row, figures.get("warnings", []), config.gate.margin)):
        return Decision(False, "; ".join(objections), champion)
    score, margin = row["comparison"]["score"], config.gate.margin
    word = "better" if score["difference_ci"][0] > 0 else f"no worse by {margin:g}"
    return Decision(True, f"{word} than {row['title']}: {_change(score)}", champion)


def _objections(row: Mapping[str, Any], warnings: Sequence[Mapping[str, Any]], margin: float) -> Iterator[str]:
    title, found = row["title"], row["comparison"]
    if row["lost_classes"]:
        yield f"it does not know {count(len(row['lost_classes']), 'class')} of {title}: {some(row['lost_classes'])}"
    if found is None:
        yield row["reason"]
        return
    score = found["score"]
    if score["difference_ci"] is None:
        yield f"the {count(found['n_recordings'], 'shared test recording')} come from a single source recording"
        return
    low, high = score["difference_ci"]
    if not (low > 0 or (margin and low >= -margin)):
        if high < 0:
            words = f"worse than {title}"
        elif margin:
            words = f"neither significantly better than {title} nor surely less than {margin:g} worse"
        else:
            words = f"not significantly better than {title}"
        yield f"{words}: {_change(score)}, on {count(found['n_sources'], 'source recording')}"
    losses = [
        each["class"] for each in found["per_class"]
        if each["change"] == "worse" and each["recall"]["difference"] < -margin
    ]  # fmt: skip
    if losses:
        yield f"classes got significantly worse: {some(losses)}"
    new = [each["code"] for each in warnings if each["severity"] == STRONG and each["code"] not in row["strong"]]
    if new:
        yield f"strong warnings that {title} did not have: {', '.join(dict.fromkeys(new))}"


def _change(score: Mapping[str, Any]) -> str:
    low, high = score["difference_ci"]
    return (
        f"score {score['before']:.3f} → {score['after']:.3f}, {score['difference']:+.3f} "
        f"(95 %: {low:+.3f} to {high:+.3f})"
    )


def sentence(row: Mapping[str, Any]) -> str:
    """What the comparison found, for people."""
    found = row["comparison"]
    if found is None:
        return f"gate: not compared with {row['title']}: {row['reason']}"
    score = found["score"]
    change = _change(score) if score["difference_ci"] else f"score {score['before']:.3f} → {score['after']:.3f}"
    return (
        f"gate: against {row['title']} on {units(found, 'test ')} that neither has learnt from "
        f"({count(found['n_sources'], 'source recording')}): {change}"
    )
