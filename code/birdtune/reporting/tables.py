"""Report data → tables for machines.

    ReportData ─▶ write_tables ─▶ per_class.csv, predictions.csv, confusion.csv

They are written by `files.write_csv`, with all names as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from birdtune.evaluation.decision import UNKNOWN_NAME, Thresholds
from birdtune.evaluation.metrics import METRICS, ranks
from birdtune.evaluation.scores import Bools, Scores, clip_scores
from birdtune.evaluation.thresholds import decided
from birdtune.reporting.report import ReportData, Row
from birdtune.runtime.files import write_csv

_CLASS_COLUMNS = ("class", "external_id", "recordings", "minutes", "train", "val", "test")
# Of each part, where labels have times.
_WITH_TIMES = (
    "windows", "window_ap", "window_ap_lo", "window_ap_hi", "events", "detections", "event_precision", "event_recall",
    "event_f1",
)  # fmt: skip
_THRESHOLD_COLUMNS = ("threshold", "threshold_from", "detection_threshold")
_PREDICTION_COLUMNS = (
    "recording", "class", "source_recording", "split", "predicted", "score", "correct", "rank", "second",
    "second_score", "third", "third_score", "decision", "ood_score",
)  # fmt: skip


def write_tables(folder: Path, data: ReportData) -> None:
    """Write per_class.csv, predictions.csv and confusion.csv into an existing folder.

    predictions.csv has a row per recording and part of the split (`class`: all of its classes, joined by `;`; `rank`:
    the place of the best-ranked of them, 1 = first). confusion.csv has a row per pair that occurred rather than a
    column per class, of which there may be a thousand.

    Raises:
        RetryableError, InputError: as `files.storage_faults`.
    """
    of_split = (f"{split}_{name}" for split in ("val", "test") for name in _metric_columns(data))
    columns = [*_CLASS_COLUMNS, *_THRESHOLD_COLUMNS, *of_split]
    write_csv(folder / "per_class.csv", columns, _per_class_table(data))
    thresholds = Thresholds.of(data.trust["thresholds"]) if data.trust else None
    rows = (row for split, scores in data.scores.items() for row in _prediction_table(split, scores, thresholds))
    write_csv(folder / "predictions.csv", _PREDICTION_COLUMNS, rows)
    write_csv(
        folder / "confusion.csv", ("split", "true", "predicted", "count", "share"), _confusion_table(data)
    )


def _metric_columns(data: ReportData) -> list[str]:
    """Columns of a part of the split: every registered metric that has a value per class, with its interval."""
    parts = [found for found in data.metrics.values() if found]
    rows = [row for found in parts for row in found["per_class"]]
    named = [name for name in METRICS if any(name in row for row in rows)]
    ends = [column for name in named for column in (name, f"{name}_lo", f"{name}_hi")]
    columns = ["support", "n_sources", "predicted", *ends, "decided", "decided_precision", "decided_recall"]
    if any(found["window_answers"] for found in parts):
        columns += _WITH_TIMES
    return columns


def _per_class_table(data: ReportData) -> Iterator[Row]:
    thresholds = {row["class"]: row for row in (data.trust["thresholds"]["classes"] if data.trust else [])}
    of_detections = (data.trust or {}).get("detection_thresholds") or {"classes": []}
    detected_from = {row["class"]: row["threshold"] for row in of_detections["classes"]}
    found = {split: _by_class(metrics) for split, metrics in data.metrics.items()}
    columns = _metric_columns(data)
    for row in data.class_rows:
        line = {name: row[name] for name in _CLASS_COLUMNS}
        if (chosen := thresholds.get(row["class"])) is not None:
            line |= {"threshold": chosen["threshold"], "threshold_from": chosen["from"]}
        line["detection_threshold"] = detected_from.get(row["class"])
        for split, by_class in found.items():
            own = by_class.get(row["class"], {})
            line |= {f"{split}_{name}": own.get(name) for name in columns}
        yield line


def _by_class(metrics: Row | None) -> dict[str, dict[str, Any]]:
    """Class → its figures, with the ends of the intervals as `_lo` and `_hi`."""
    if metrics is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in metrics["per_class"]:
        ends = {
            f"{key.removesuffix('_ci')}_{end}": value[k]
            for key, value in row.items()
            if key.endswith("_ci") and value is not None
            for k, end in enumerate(("lo", "hi"))
        }
        found[row["class"]] = {**row, **ends}
    for row in metrics["windows_per_class"] or []:
        low, high = row["ap_ci"] or (None, None)
        own = {"windows": row["windows"], "window_ap": row["ap"], "window_ap_lo": low, "window_ap_hi": high}
        found[row["class"]] |= own
    for row in metrics["events"]["events"]["per_class"] if metrics.get("events") else []:
        found[row["class"]] |= {"events": row["events"], "detections": row["detections"]}
        found[row["class"]] |= {f"event_{name}": row[name] for name in ("precision", "recall", "f1")}
    for row in (metrics.get("decisions") or {"per_class": []})["per_class"]:
        found[row["class"]] |= {
            "decided": row["decided"], "decided_precision": row["precision"], "decided_recall": row["recall"],
        }  # fmt: skip
    return found


def _prediction_table(split: str, scores: Scores, thresholds: Thresholds | None) -> Iterator[Row]:
    pooled = clip_scores(scores)  # [N, C]
    place = ranks(pooled, scores.positive)
    decisions = decided(scores, thresholds) if thresholds else None  # [N, C]
    for index, recording in enumerate(scores.recordings):
        order = np.argsort(-pooled[index], kind="stable")[:3].tolist()  # equals in class order, as argmax
        top: list[Any] = [cell for c in order for cell in (scores.classes[c], f"{pooled[index, c]:.6f}")]
        top += [None] * (6 - len(top))
        yield {
            "recording": recording,
            "class": _joined(scores.classes, scores.positive[index]),
            "source_recording": scores.groups[index],
            "split": split,
            "predicted": top[0],
            "score": top[1],
            "correct": "yes" if place[index] == 0 else "no",
            "rank": int(place[index]) + 1,
            "second": top[2],
            "second_score": top[3],
            "third": top[4],
            "third_score": top[5],
            "decision": None if decisions is None else _joined(scores.classes, decisions[index]) or UNKNOWN_NAME,
            "ood_score": None if scores.ood_score is None else round(float(scores.ood_score[index]), 4),
        }


def _joined(classes: tuple[str, ...], chosen: Bools) -> str:
    return ";".join(classes[c] for c in np.flatnonzero(chosen))


def _confusion_table(data: ReportData) -> Iterator[Row]:
    for split, metrics in data.metrics.items():
        for name, row in zip(data.classes, metrics["confusion"] if metrics else [], strict=False):
            for predicted, n in zip(data.classes, row, strict=True):
                if n:
                    share = f"{n / sum(row):.6f}"
                    yield {"split": split, "true": name, "predicted": predicted, "count": n, "share": share}
