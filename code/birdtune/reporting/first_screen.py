"""The figures of the report's first screen.

    metrics of validation and test ─▶ big, rows ─▶ the figure in large print, and all that lead with their baselines
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from birdtune.evaluation.headline import EVENTS, RECORDINGS, WINDOWS, headline_figures
from birdtune.evaluation.metrics import headline
from birdtune.runtime.text import count

Row = Mapping[str, Any]
# Of a figure: name, value, interval, whether it is a baseline.
Drawn = tuple[str, float, Sequence[float] | None, bool]
_TITLES = {"accuracy": "Top-1 accuracy", "macro_ap": "Mean average precision (mAP)", "f1": "F1"}


def big(metrics: Row, part: str) -> Row:
    """The figure in large print: `value`, `ci`, `text` and, for the sentence behind it, the others: `windows`.

    Args:
        metrics: of the part that the page shows; part: its name, for people.
    """
    rows = headline_figures(metrics)
    first: Row = rows[0] if rows else {"value": None, "ci": None, "metric": "accuracy", "of": RECORDINGS}
    recordings = count(metrics["n_recordings"], f"{part} recording")
    what = {RECORDINGS: f"on {recordings}", WINDOWS: f"of the windows of {recordings}"}
    if events := metrics.get("events"):
        inside = count(events["recordings"], f"{part} recording")
        what[EVENTS] = f"of {count(events['events']['events'], 'event')} in {inside}"
    others = [row for row in rows[1:] if row["of"] == WINDOWS]
    return {
        "value": first["value"], "ci": first["ci"], "text": f"{_TITLES[first['metric']]} {what[first['of']]}",
        "windows": others,
    }  # fmt: skip


def rows(metrics: Mapping[str, Row | None], shown: str | None, n_classes: int) -> list[Drawn]:
    """Every figure that leads, of the part that is shown with its baseline, and validation's beside test.

    Args:
        metrics: "val" and "test" → as `ReportData.metrics`.
        shown: the part that the page shows.
    """
    found: list[Drawn] = []
    for split, name in (("test", "test"), ("val", "validation")):
        own = metrics.get(split)
        if own and own["window_answers"]:
            found += _with_times(own, name, with_baseline=split == shown)
        elif own:
            found += _of_recordings(own, name, n_classes, is_shown=split == shown)
    return found


def _with_times(metrics: Row, name: str, *, with_baseline: bool) -> Iterator[Drawn]:
    for row in headline_figures(metrics):
        title = {"accuracy": "accuracy", "macro_ap": "mAP", "f1": "F1"}[row["metric"]]
        yield f"{title} of {row['of']}, {name}", row["value"], row["ci"], False
        if row["of"] == EVENTS:
            segments, length_s = metrics["events"]["segments"], metrics["events"]["segment_s"]
            yield f"F1 of segments of {length_s:g} s, {name}", segments["f1"], segments["f1_ci"], False
        elif with_baseline and row["baseline"] is not None:
            what = "majority baseline of windows" if row["majority"] is not None else "mAP in a random order"
            yield what, row["baseline"], row["baseline_ci"], True


def _of_recordings(metrics: Row, name: str, n_classes: int, *, is_shown: bool) -> Iterator[Drawn]:
    clip = metrics["clip"]
    for key, metric in headline(clip):
        is_first = key == "accuracy"
        if clip[key] is None or not (is_shown or is_first) or (metric.name == "top3" and n_classes <= 3):
            continue
        yield f"{metric.title}, {name}", clip[key], clip[f"{key}_ci"], False
        if is_first and is_shown:
            yield "majority baseline", metrics["majority_baseline"], metrics["majority_baseline_ci"], True
