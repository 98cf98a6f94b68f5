"""Which figures of a part of the split lead: in the log, on the first screen of the report and in metrics.json.

    a part of metrics.json ─▶ headline_figures ─▶ rows, the first to be read first

Where labels have times, a recording may hold every class, so figures of whole recordings say little: those of windows
and of events lead.
"""

from collections.abc import Mapping
from typing import Any

from birdtune.runtime.text import count

EVENTS, WINDOWS, RECORDINGS, SEGMENTS = "events", "windows", "recordings", "segments"
Row = dict[str, Any]


def units(compared: Mapping[str, Any], which: str = "") -> str:
    """How many recordings, or segments that hold a class, two models were compared on.

    Args:
        compared: as `model_comparison.compare`.
        which: said of them, with a blank behind it.
    """
    n = compared["n_recordings"]
    if compared.get("unit") == SEGMENTS:
        return f"{n:,} {which}segments of a second"
    return count(n, f"{which}recording")


def headline_figures(figures: Mapping[str, Any]) -> list[Row]:
    """The figures that lead.

    Args:
        figures: as `part.evaluate_part`, with `events` where they were measured.

    Returns:
        rows of `metric` ("accuracy", "macro_ap" or "f1"), `of` (`EVENTS`, `WINDOWS` or `RECORDINGS`), `n` (how many),
        `value`, `ci`, `baseline`, `baseline_ci` and `majority`: of accuracy that of the constant prediction `majority`,
        of average precision that of a random order; None where there is none. Undefined figures are left out.
    """
    rows = list(_of_windows(figures) if figures["window_answers"] else _of_recordings(figures))
    return [row for row in rows if row["value"] is not None]


def _of_windows(figures: Mapping[str, Any]) -> list[Row]:
    answers, window, events = figures["window_answers"], figures["window"], figures.get("events")
    n = answers["windows"]
    rows = [
        _row("macro_ap", WINDOWS, n, window, baseline=figures["window_macro_ap_chance"]),
        _row("accuracy", WINDOWS, n, answers, answers["majority_baseline"], answers["majority_baseline_ci"],
             answers["majority"]),
    ]  # fmt: skip
    return [_row("f1", EVENTS, events["events"]["events"], events["events"]), *rows] if events else rows


def _of_recordings(figures: Mapping[str, Any]) -> list[Row]:
    n, clip = figures["n_recordings"], figures["clip"]
    ends, majority = figures["majority_baseline_ci"], figures["majority_class"]
    rows = [
        _row("accuracy", RECORDINGS, n, clip, figures["majority_baseline"], ends, majority),
        _row("macro_ap", RECORDINGS, n, clip, baseline=figures["macro_ap_chance"]),
    ]
    return rows[::-1] if figures["multi_label"] else rows


def _row(
    metric: str, of: str, n: int, figures: Mapping[str, Any], baseline: float | None = None,
    baseline_ci: list[float] | None = None, majority: str | None = None,
) -> Row:  # fmt: skip
    return {
        "metric": metric, "of": of, "n": n, "value": figures[metric], "ci": figures[f"{metric}_ci"],
        "baseline": baseline, "baseline_ci": baseline_ci, "majority": majority,
    }  # fmt: skip
