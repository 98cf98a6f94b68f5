"""The model card: what a model is, how far to trust it and what its licence asks, for whoever gets the model alone.

    model.json, reports/<v>/metrics.json, Dataset ─▶ card ─▶ README.md beside the model

Its head is YAML as the Hugging Face Hub reads it. All text from outside is escaped.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml
from markupsafe import Markup

from birdtune.data.dataset import Dataset
from birdtune.errors import shown
from birdtune.models.known import Origin
from birdtune.reporting import attribution
from birdtune.reporting.report_data import backbone_rows, class_rows, diagnose
from birdtune.runtime.files import read_json
from birdtune.runtime.runs import Run
from birdtune.runtime.text import number

CARD_NAME: Final = "README.md"
_MOST_ROWS = 500  # of classes; labels.csv has all
_TITLES = {"accuracy": "accuracy", "macro_ap": "mean average precision", "f1": "F1"}
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")
_Row = Mapping[str, Any]


def card(run: Run, dataset: Dataset, facts: _Row) -> str:
    """The model card of an evaluated run as Markdown.

    Args:
        facts: what stands in model.json.
    """
    metrics = read_json(run.reports / "metrics.json") or {}
    is_test = bool(metrics.get("test"))
    part = metrics.get("test") or metrics.get("val")
    warnings, verdict = diagnose(run, metrics)
    origin, reasons = Origin(**facts["backbone_origin"]), [facts["calibration"], facts["thresholds"] or {}]
    figures, rows = list(_figures(part)) if part else [], list(_class_rows(dataset, facts, part))
    context = {
        "head": Markup(_head(facts, figures, part, "test" if is_test else "validation")),
        "name": Markup(facts["name"]),  # letters, digits and . _ - alone
        "facts": facts,
        "verdict": verdict,
        "background": dataset.background,
        "reasons": [each["reason"].rstrip(".") for each in reasons if each.get("reason")],
        "part": part,
        "is_test": is_test,
        "figures": figures,
        "warnings": warnings,
        "rows": rows,
        "shown_rows": rows[:_MOST_ROWS],
        "has_sound": any(name.startswith("sound.") for name in facts["verification"]["differences"]),
        "is_trained": run.config.model.freeze_point != "all-but-head",
        "backbone": backbone_rows(run, origin),
        "licence": origin.licence,
        "licences": attribution.by_licence(attribution.rows_of(run.config, dataset)),
    }
    return _template().render(context)


def _figures(part: _Row) -> Iterator[dict[str, Any]]:
    """The figures that lead, each with its title and what reaches its baseline."""
    for row in part["headline"]:
        without = f"always {row['majority']}" if row["majority"] is not None else "a random order"
        yield {**row, "title": f"{_TITLES[row['metric']]} of {row['of']}", "without": without}


def _class_rows(dataset: Dataset, facts: _Row, part: _Row | None) -> Iterator[dict[str, Any]]:
    """Of each class: recordings, recall, precision, threshold."""
    measured = {row["class"]: row for row in part["per_class"]} if part else {}
    thresholds = {row["class"]: row["threshold"] for row in (facts["thresholds"] or {"classes": []})["classes"]}
    for row in class_rows(dataset):
        own = measured.get(row["class"], {})
        found = {name: own.get(name) for name in ("recall", "precision")}
        yield {**row, **found, "threshold": thresholds.get(row["class"])}


def _head(facts: _Row, figures: list[dict[str, Any]], part: _Row | None, split: str) -> str:
    """The YAML at the top."""
    licence = facts["backbone_origin"]["licence"]
    title = f"{facts['name']} {facts['version']}"
    head: dict[str, Any] = {
        "license": "unknown" if licence is None else licence.lower(),
        "library_name": "tensorflow",
        "pipeline_tag": "audio-classification",
        "tags": ["birdtune", "bioacoustics", "birds", facts["backbone"]],
    }
    values = [
        {"type": each["metric"], "name": each["title"], "value": round(each["value"], 4)} for each in figures
    ]
    if part and values:
        data = {"type": "audiofolder", "name": f"{split} recordings of {title}", "split": split}
        task = {"type": "audio-classification", "name": "Audio Classification"}
        head["model-index"] = [{"name": title, "results": [{"task": task, "dataset": data, "metrics": values}]}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, ends=_ends)
    return environment.get_template("model_card.md.j2")


def _escaped(value: Any) -> Any:
    """What `{{ }}` prints: Markup is ours and passes; in any other text, nothing is Markdown or HTML."""
    return _MARKS.sub(r"\\\1", shown(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _ends(ends: list[float] | None) -> str:
    return number(None) if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
