"""What tuning found, drawn: its own page, and its section in the report of a run.

Tuned ─▶ tune/report.html;  what of a run was tuned ─▶ the same with a figure, for report.html
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import birdtune
from birdtune.reporting import figures, report
from birdtune.reporting.tuned import Tuned, advice, keeps, verdict
from birdtune.runtime.text import count

MOST_SLICES = 6


def section(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the report of a run shows of it."""
    if told is None:
        return None
    found: Tuned = told["found"]
    drawn = figures.importances(found.importance) if found.importance else None
    return {**told, "importance": drawn, "lacks": found.importance_lacks}


def write_page(path: Path, found: Tuned) -> None:
    """Write the page of a tuning, whole or not at all. Raises as `files.storage_faults`."""
    names = [row["setting"] for row in found.space]
    logs = {row["setting"]: row["log"] for row in found.space}
    done = [row for row in found.trials if row["state"] == "done"]
    order = [*found.importance, *(name for name in names if name not in found.importance)]
    report.write_page(
        path,
        "tune.html.j2",
        {
            "found": found,
            "birdtune_version": birdtune.__version__,
            "verdict": verdict(found),
            "best": found.trials[found.best],
            "usual": found.trials[0],
            "keeps": keeps(found),
            "advice": advice(found),
            "names": names,
            "rows": _ranked(found.trials),
            "history": figures.tuning_history(found.trials),
            "importance": figures.importances(found.importance) if found.importance else None,
            "slices": [
                figures.tuned_setting(
                    [(row["settings"][name], row["score"]) for row in done if name in row["settings"]],
                    name,
                    log=logs[name],
                )
                for name in order
                if any(name in row["settings"] for row in done)
            ][:MOST_SLICES],
            "count": count,
        },
    )


def _ranked(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best first; those without a score last."""
    return sorted(trials, key=lambda row: (row["state"] != "done", -(row["score"] or 0.0), row["number"]))
