"""The sections on classes: a row of figures each, and which is taken for which.

    class rows, figures of a part ─▶ metrics_of, rows, confusion ─▶ what the templates show
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from birdtune.evaluation.metrics import METRICS, Metric
from birdtune.reporting import figures

Row = Mapping[str, Any]

MOST_ZOOMED = 15  # classes in the close-up of a large confusion matrix


def metrics_of(metrics: Row | None) -> list[Metric]:
    """Metrics that the table of classes has a column of: all that have a value per class."""
    row = metrics["per_class"][0] if metrics else {}
    return [each for name, each in METRICS.items() if name in row and name != "recall"]


def rows(class_rows: Sequence[Row], metrics: Row | None) -> list[Row]:
    """Per class: its recordings, its figures, and what it is most often confused with.

    Where labels have times, its figures are also those of windows (`windows`) and of events (`events`).
    """
    if not metrics:
        return [{**row, "metrics": None, "confused_with": None} for row in class_rows]
    confused: dict[str, str] = {}
    for pair in metrics["confusion_pairs"]:
        confused.setdefault(pair["true"], f"{pair['predicted']} ({pair['count']})")
    found = metrics.get("events")
    figures_of = {
        "metrics": _by_class(metrics["per_class"]), "windows": _by_class(metrics["windows_per_class"] or []),
        "events": _by_class(found["events"]["per_class"] if found else []),
    }  # fmt: skip
    return [
        {
            **row,
            **{what: by_class.get(row["class"]) for what, by_class in figures_of.items()},
            "confused_with": confused.get(row["class"]),
        }
        for row in class_rows
    ]


def _by_class(found: Sequence[Row]) -> dict[str, Row]:
    return {row["class"]: row for row in found}


def confusion(metrics: Row, classes: tuple[str, ...]) -> Row:
    """The matrix; and, where it is too large for numbers, a close-up of the classes most confused."""
    counts = np.asarray(metrics["confusion"], np.int64)  # [C, C]
    whole = figures.confusion(counts, classes, classes)
    if len(classes) <= figures.NUMBERED_CLASSES:
        return {"whole": whole, "zoom": None}
    wrong = counts - np.diag(np.diag(counts))
    most = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_ZOOMED]
    kept = np.sort(most)
    inside = counts[np.ix_(kept, kept)]
    others = counts[kept].sum(axis=1) - inside.sum(axis=1)
    names = [classes[c] for c in kept]
    zoom = figures.confusion(np.column_stack([inside, others]), names, [*names, "any other class"])
    return {"whole": whole, "zoom": zoom}
