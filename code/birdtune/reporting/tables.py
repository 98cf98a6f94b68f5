"""Facts of a run → tables for machines.

    ReportFacts ─▶ write_tables ─▶ per_class.csv, predictions.csv, confusion.csv

They are written by `files.write_csv`, with all names as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from birdtune.evaluation.decision import NO_ANSWER, NONE, Thresholds
from birdtune.evaluation.metrics import ranks
from birdtune.evaluation.scores import Scores, clip_scores
from birdtune.reporting.report import ReportFacts, Row
from birdtune.runtime.files import write_csv

_CLASS_COLUMNS = ("class", "external_id", "recordings", "minutes", "train", "val", "test")
_THRESHOLD_COLUMNS = ("threshold", "threshold_from")
_JUDGED_COLUMNS = (
    "support", "groups", "predicted", "recall", "recall_lo", "recall_hi", "precision", "f1", "ap", "ap_lo",
    "ap_hi", "roc_auc", "answers", "answers_precision", "answers_recall",
)  # fmt: skip
_PREDICTION_COLUMNS = (
    "recording", "class", "group", "split", "predicted", "score", "correct", "rank", "second", "second_score",
    "third", "third_score", "answer", "strangeness",
)  # fmt: skip


def write_tables(folder: Path, facts: ReportFacts) -> None:
    """Write per_class.csv, predictions.csv and confusion.csv into an existing folder.

    predictions.csv has a row per recording and part of the split (`rank` is the place of the true class, 1 =
    first). confusion.csv has a row per pair that occurred rather than a column per class, of which there may be
    a thousand.

    Raises:
        RetryableError, InputError: as `files.storage_faults`.
    """
    judged = (f"{split}_{name}" for split in ("val", "test") for name in _JUDGED_COLUMNS)
    columns = [*_CLASS_COLUMNS, *_THRESHOLD_COLUMNS, *judged]
    write_csv(folder / "per_class.csv", columns, _per_class_table(facts))
    thresholds = Thresholds.of(facts.trust["thresholds"]) if facts.trust else None
    rows = (row for split, scores in facts.scores.items() for row in _prediction_table(split, scores, thresholds))
    write_csv(folder / "predictions.csv", _PREDICTION_COLUMNS, rows)
    write_csv(
        folder / "confusion.csv", ("split", "true", "predicted", "count", "share"), _confusion_table(facts)
    )


def _per_class_table(facts: ReportFacts) -> Iterator[Row]:
    judged = {
        (split, row["class"]): row
        for split, found in facts.metrics.items()
        for row in (found or {"per_class": []})["per_class"]
    }
    thresholds = {row["class"]: row for row in (facts.trust["thresholds"]["classes"] if facts.trust else [])}
    answers = {
        (split, row["class"]): {
            "answers": row["answers"], "answers_precision": row["precision"], "answers_recall": row["recall"],
        }
        for split, found in facts.metrics.items()
        for row in ((found or {}).get("answers") or {"per_class": []})["per_class"]
    }  # fmt: skip
    for row in facts.class_rows:
        line = {name: row[name] for name in _CLASS_COLUMNS}
        if (chosen := thresholds.get(row["class"])) is not None:
            line |= {"threshold": chosen["threshold"], "threshold_from": chosen["from"]}
        for split in ("val", "test"):
            found = judged.get((split, row["class"]))
            if found is not None:
                ends = {
                    f"{name}_{end}": (found[f"{name}_ci"] or (None, None))[k]
                    for name in ("recall", "ap")
                    for k, end in enumerate(("lo", "hi"))
                }
                known = {**found, **ends, **answers.get((split, row["class"]), {})}
                line |= {f"{split}_{name}": known.get(name) for name in _JUDGED_COLUMNS}
        yield line


def _prediction_table(split: str, scores: Scores, thresholds: Thresholds | None) -> Iterator[Row]:
    pooled = clip_scores(scores)  # [N, C]
    place = ranks(pooled, scores.labels)
    answers = thresholds.answers(pooled, scores.strangeness) if thresholds else None  # [N]
    for index, recording in enumerate(scores.recordings):
        order = np.argsort(-pooled[index], kind="stable")[:3].tolist()  # equals in class order, as argmax
        top: list[Any] = [cell for c in order for cell in (scores.classes[c], f"{pooled[index, c]:.6f}")]
        top += [None] * (6 - len(top))
        yield {
            "recording": recording,
            "class": scores.classes[scores.labels[index]],
            "group": scores.groups[index],
            "split": split,
            "predicted": top[0],
            "score": top[1],
            "correct": "yes" if place[index] == 0 else "no",
            "rank": int(place[index]) + 1,
            "second": top[2],
            "second_score": top[3],
            "third": top[4],
            "third_score": top[5],
            "answer": _answer(None if answers is None else int(answers[index]), scores.classes),
            "strangeness": None if scores.strangeness is None else round(float(scores.strangeness[index]), 4),
        }


def _answer(column: int | None, classes: tuple[str, ...]) -> str | None:
    """The class whose score passes, or `none`; nothing where there are no thresholds."""
    if column is None:
        return None
    return NO_ANSWER if column == NONE else classes[column]


def _confusion_table(facts: ReportFacts) -> Iterator[Row]:
    for split, judged in facts.metrics.items():
        for name, row in zip(facts.classes, judged["confusion"] if judged else [], strict=False):
            for predicted, n in zip(facts.classes, row, strict=True):
                if n:
                    share = f"{n / sum(row):.6f}"
                    yield {"split": split, "true": name, "predicted": predicted, "count": n, "share": share}
