"""Report data of a run → one page for people.

    ReportData ─▶ write_report ─▶ report.html   (one file; works offline; nothing is fetched)

The page is written for somebody who knows birds and no statistics: the first screen says in sentences what was trained
on what, and how far to trust it. Audio is asked for clip by clip through `listen`, so memory does not grow with the
data.

Everything from outside is hostile: all text that the template prints passes `shown` (no control or
bidirectional marks) and is escaped, and the page's own policy lets no script run but the one it came with.
"""

import base64
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from birdtune.data import row_books
from birdtune.data.scan import NO_FILE
from birdtune.errors import shown
from birdtune.evaluation import model_comparison, rare_classes
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic
from birdtune.evaluation.metrics import METRICS
from birdtune.evaluation.scores import Scores, clip_scores
from birdtune.reporting import (
    calibration_section,
    class_section,
    embedding_map,
    ensemble_section,
    event_section,
    figures,
    first_screen,
    listening,
    ood_section,
    published_section,
    shortcut_section,
)
from birdtune.reporting.event_section import RecordingEvents
from birdtune.reporting.listening import CLIP_S, Clip
from birdtune.reporting.verdict import Verdict
from birdtune.runtime.files import write_text
from birdtune.runtime.log import duration
from birdtune.runtime.text import NBSP, UNKNOWN, count, percent, some, span

Row = Mapping[str, Any]

MOST_CLIPS = 8
MOST_ROWS = 2_000
MOST_ISSUES = 200


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that the report shows.

    Attributes:
        version: number of the run.
        created: ISO time.
        command: how birdtune was called.
        settings: name → value, flat; `changed` names those that are not at their default.
        classes: names in the order of the scores.
        class_rows: per class `class`, `recordings`, `minutes`, `train`, `val`, `test` (recordings),
            `external_id` (None where the label map has none).
        metrics: "val" and "test" → as `part.evaluate_part`, or None.
        scores: "val" and "test" → scores; either may be missing.
        history: per epoch `epoch` (0: before the first update), `train_loss`, `val_loss`, `val_<metric>`,
            `learning_rate`, `seconds`; values may be None or missing (but not `epoch`).
        best_epoch: the epoch whose weights the model has.
        problems: rows of problems.csv: `recording`, `class`, `problem`, `used` (bool, or yes/no), `detail`,
            `advice`.
        books: `found`, `used`, and `left_out`: reason → number of files.
        label_rows: those of the rows of tables and annotation files, of `RowBooks.balanced`; empty: there are none.
        notices: sentences about the input that the reader must not miss.
        diagnostics: warnings about the model; `verdict` sums them up.
        hardware: name → value.
        stages: name → seconds.
        window_s: seconds of a window of the backbone.
        backbone: what it is and where its weights come from: name → text.
        licences: `attribution.by_licence`; empty: nothing is known of them.
        listen: (recording, start in s, length in s) → that clip, or None where it cannot be read.
        augmentation: picture of what was done to training windows, if anything was. PNG
        trust: `calibration`, `thresholds`, `ood` and `false_alarms` of metrics.json; None where it has none.
        label_issues: label_issues.json: `rows` of label_issues.csv, and what they rest on; None: not checked.
        embedding_map: embedding_map.json; None: the run has none.
        tuning: which settings come from tuning, as `tune_page.section`; None: none.
        promotion: `promoted` and `reason` of run.json, where there was a gate; None: there was none.
        model_comparison: that of metrics.json, where training began from a base model.
        rare_class_ablation: that of metrics.json; None: none was asked for, or nothing was set for rare classes.
        shortcuts, leak: those of metrics.json; None: not measured.
        events: annotated and detected events of the test recordings; None: labels have no times, or say too little.
        best_epoch_by: what of validation chose the best epoch, "recordings" or "windows".
        totals: `recordings`, `train` and `minutes` in all; None: each recording is of one class, so those of
            `class_rows` add up to them.
    """

    version: int
    created: str
    birdtune_version: str
    command: str
    settings: Mapping[str, str]
    changed: frozenset[str]
    classes: tuple[str, ...]
    class_rows: Sequence[Row]
    metrics: Mapping[str, dict[str, Any] | None]
    scores: Mapping[str, Scores]
    history: Sequence[Row]
    best_epoch: int | None
    problems: Sequence[Row]
    books: Row
    notices: Sequence[str]
    diagnostics: Sequence[Diagnostic]
    verdict: Verdict
    hardware: Mapping[str, str]
    stages: Mapping[str, float]
    window_s: float
    listen: Callable[[str, float, float], Clip | None]
    backbone: Sequence[tuple[str, str]] = ()
    licences: Sequence[Row] = ()
    augmentation: bytes | None = None
    trust: Row | None = None
    label_issues: Row | None = None
    embedding_map: Row | None = None
    tuning: Row | None = None
    promotion: Row | None = None
    model_comparison: Row | None = None
    rare_class_ablation: Row | None = None
    shortcuts: Row | None = None
    leak: Row | None = None
    events: RecordingEvents | None = None
    best_epoch_by: str = "recordings"
    totals: Row | None = None
    label_rows: Row = field(default_factory=dict)

    @property
    def split(self) -> str | None:
        """The part that the page shows: test if there is one, else validation, else None."""
        return next((part for part in ("test", "val") if self.metrics.get(part)), None)


def write_report(path: Path, data: ReportData) -> None:
    """Write the page, whole or not at all. Raises as `files.storage_faults`."""
    write_page(path, "report.html.j2", _context(data))


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write a page by one of our templates, whole or not at all. Raises as `files.storage_faults`."""
    write_text(path, _templates().get_template(template).render(context))


@functools.cache
def _templates() -> jinja2.Environment:
    """Our templates, each compiled when it is first asked for."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"name": name, "prose": prose, "percent": percent, "span": span, "duration": duration}
    environment.filters.update(filters, csp_hash=_csp_hash)
    return environment


def _printable(value: Any) -> Any:
    """What `{{ }}` prints: Markup is ours and passes; any other text is made safe, then escaped."""
    if value is None:
        return UNKNOWN
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _csp_hash(script: str) -> str:
    """The script's hash as a content security policy wants it: no other script will run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# ---- words --------------------------------------------------------------------------------------


def name(value: str | None) -> Markup:
    """A name from outside, made safe; long ones may break after _ and /."""
    safe = escape(_printable(value))
    return Markup(safe.replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>")))


def prose(text: str) -> Markup:
    """A sentence that logs have as well, made safe; flags and figures with their unit are not broken."""
    found = re.sub(r"(?<=\d) %", f"{NBSP}%", str(escape(_printable(text))))
    return Markup(re.sub(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", r'<code class="flag">\g<0></code>', found))


def remarks(metrics: Row) -> list[str]:
    """The weakest classes, in sentences: low recall, low precision. More of them are diagnostics.

    Where labels have times, of events: of whole recordings, thresholds of windows say little.
    """
    rows, what = metrics["per_class"], "predictions"
    if events := metrics.get("events"):
        own = events["events"]["per_class"]
        rows, what = [{**row, "support": row["events"], "predicted": row["detections"]} for row in own], "detections"
    tested = sorted((row for row in rows if row["support"]), key=_expected_recall)
    weakest = [row for row in tested if row["recall"] < 0.9][:5]
    missed = [f"{row['class']} ({_hits(row)} of {row['support']})" for row in weakest]
    predicted = sorted((row for row in rows if row["predicted"] > 2), key=lambda row: row["precision"])
    doubtful = [
        f"{row['class']} (right in {_hits(row)} of {row['predicted']} {what})"
        for row in predicted
        if row["precision"] < 0.8
    ]
    found = [f"Lowest recall: {', '.join(missed)}."] if missed else ["The recall of every class is at least 90 %."]
    if doubtful:
        found.append(f"Lowest precision: {', '.join(doubtful[:3])}.")
    return found


def _expected_recall(row: Row) -> float:
    # Laplace's rule of succession: 1 of 2 proves less weakness than 12 of 30.
    share: float = (_hits(row) + 1) / (row["support"] + 2)
    return share


def _hits(row: Row) -> int:
    hits: float = (row["recall"] or 0.0) * row["support"]
    return round(hits)


# ---- audio --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A recording to listen to, and the predicted class whose highest window is to be heard."""

    index: int  # row of the scores
    predicted: int  # column


def worst_errors(scores: Scores, pooled: npt.NDArray[np.float64]) -> list[Example]:
    """The most confident errors, at most one from a source recording. pooled: [N, C]"""
    predicted, confidence = pooled.argmax(axis=1), pooled.max(axis=1)
    shown_sources: set[str] = set()
    found = []
    for index in np.argsort(-confidence, kind="stable").tolist():
        if scores.has_class[index] and not scores.top1[index] and scores.groups[index] not in shown_sources:
            shown_sources.add(scores.groups[index])
            found.append(Example(index, int(predicted[index])))
    return found[:MOST_CLIPS]


def pair_errors(
    scores: Scores, pooled: npt.NDArray[np.float64], pairs: Sequence[Row], shown_already: set[int]
) -> list[tuple[Row, Example]]:
    """For each of the most confused pairs its most confident error, rather one that was not shown yet."""
    column = {name: c for c, name in enumerate(scores.classes)}
    highest = pooled.argmax(axis=1)
    found = []
    for pair in pairs[:MOST_CLIPS]:
        true, predicted = column[pair["true"]], column[pair["predicted"]]
        candidates = np.flatnonzero((scores.labels == true) & (highest == predicted)).tolist()
        if candidates:
            index = min(candidates, key=lambda k: (k in shown_already, -pooled[k, predicted]))
            found.append((pair, Example(index, predicted)))
    return found


def _best_example(scores: Scores, pooled: npt.NDArray[np.float64], wanted: int) -> Example | None:
    """The recording of a class that is predicted correctly with the highest confidence, if any is."""
    right = np.flatnonzero(scores.positive[:, wanted] & (pooled.argmax(axis=1) == wanted))
    return Example(int(right[np.argmax(pooled[right, wanted])]), wanted) if right.size else None


def _card(data: ReportData, scores: Scores, pooled: npt.NDArray[np.float64], example: Example) -> Row:
    """What the template shows of a recording: words, a spectrogram and a playable clip, or their lack."""
    windows = np.flatnonzero(scores.window_recording == example.index)
    starts = scores.window_start_s[windows]
    peak_s = float(starts[np.argmax(scores.window_scores[windows, example.predicted])])
    own = np.flatnonzero(scores.positive[example.index])
    recording = scores.recordings[example.index]
    return {
        "recording": recording,
        "true": ", ".join(scores.classes[c] for c in own) or "no class",
        "predicted": scores.classes[example.predicted],
        "right": example.predicted in own,
        "confidence": float(pooled[example.index, example.predicted]),
        "true_score": float(pooled[example.index, own].max(initial=0.0)),
        "label_issue": recording in {row["recording"] for row in _issues(data)},
        **listening.clip(
            data.listen, recording, peak_s, float(starts.max()) + data.window_s, data.window_s
        ),
    }


def _issues(data: ReportData) -> Sequence[Row]:
    return data.label_issues["rows"] if data.label_issues else ()


def _labels(data: ReportData) -> Row | None:
    """The section on label issues: what label_issues.json says, and the first of them to listen to."""
    found = data.label_issues
    if found is None:
        return None
    first = found["rows"][:MOST_CLIPS]
    cards = [
        {**row, **listening.clip(data.listen, row["recording"], row["start_s"], row["seconds"], data.window_s)}
        for row in first
    ]
    return {**found, "cards": cards, "few": found["rows"][:MOST_ISSUES]}


def _image(png: bytes | None) -> Markup | None:
    """A picture as a data URI."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}") if png else None


def _examples(data: ReportData) -> Row:
    """The cards of the part that the page shows: worst errors, and pairs with an example to compare."""
    scores = data.scores.get(data.split or "")
    metrics = data.metrics.get(data.split or "")
    if scores is None or metrics is None or metrics["window_answers"]:
        return {"worst": [], "pairs": [], "errors": None}
    pooled = clip_scores(scores)  # [N, C]
    worst = worst_errors(scores, pooled)
    pairs = pair_errors(scores, pooled, metrics["confusion_pairs"], {example.index for example in worst})
    best = {example.predicted: _best_example(scores, pooled, example.predicted) for _, example in pairs}
    compare = {column: found and _card(data, scores, pooled, found) for column, found in best.items()}
    return {
        "worst": [_card(data, scores, pooled, example) for example in worst],
        "pairs": [
            {**pair, "error": _card(data, scores, pooled, example), "example": compare[example.predicted]}
            for pair, example in pairs
        ],
        "errors": int((scores.has_class & ~scores.top1).sum()),
    }


def _clips(examples: Row, labels: Row | None) -> dict[str, int]:
    """Recording → number of its clip, of all that the page can play."""
    pairs = [pair[which] for pair in examples["pairs"] for which in ("error", "example")]
    cards = [*examples["worst"], *pairs, *(labels["cards"] if labels else [])]
    playable = dict.fromkeys(card["recording"] for card in cards if card and card["sound"])
    return {recording: number for number, recording in enumerate(playable)}


# ---- the page -----------------------------------------------------------------------------------


def _context(data: ReportData) -> dict[str, Any]:
    split = data.split
    part = {"test": "test", "val": "validation", None: ""}[split]
    metrics = data.metrics.get(split) if split else None
    # A sample_weights.csv in the input folder is on without being set.
    set_for_rare = data.changed | set(data.rare_class_ablation["on"] if data.rare_class_ablation else ())
    not_used = [row for row in data.problems if not _is_used(row)]
    of_rows, unused = (
        [row for row in not_used if (row["problem"] in NO_FILE) == is_row] for is_row in (True, False)
    )
    advice = {row["problem"]: row.get("advice", "") for row in not_used}
    left, bottom, width, height = (round(100 * side, 1) for side in figures.SPECTROGRAM_BOX)
    rare = metrics.get("rare_classes") if metrics else None
    with_times = bool(metrics and metrics["window_answers"])
    of_windows = data.best_epoch_by == "windows"
    examples, labels = _examples(data), _labels(data)
    clips = _clips(examples, labels)
    return {
        "data": data,
        "split": split,
        "metrics": metrics,
        "split_name": part,
        "with_times": with_times,
        "events_of": metrics.get("events") if metrics else None,
        "strong": [each for each in data.diagnostics if each.severity == STRONG],
        # What the verdict's own text says is not said twice.
        "mild": [
            each for each in data.diagnostics if each.severity == MILD and str(each) != data.verdict.text
        ],
        "remarks": [*_untrained(data), *(remarks(metrics) if metrics else [])],
        "recordings": _total(data, "recordings"),
        "trained": _learnt_from(data),
        "untrained": bool(_untrained(data)),
        "ensemble_sentence": ensemble_section.sentence(data.trust["ensemble"])
        if data.trust and data.trust.get("ensemble") else "",
        "hours": duration(60 * _total(data, "minutes")),
        "big": first_screen.big(metrics, part) if metrics else None,
        "without_near": _without_near(data),
        "headline": figures.headline(first_screen.rows(data.metrics, split, len(data.classes))) if metrics else None,
        "class_rows": class_section.rows(data.class_rows, metrics),
        "class_metrics": class_section.metrics_of(metrics),
        "has_ids": any(row["external_id"] is not None for row in data.class_rows),
        "confusion": class_section.confusion(metrics, data.classes) if metrics else None,
        "listening": examples,
        "events": event_section.section(data.events, data.scores["test"], data.listen) if data.events else None,
        "clips": clips,
        # Where labels have times, predictions for whole recordings are neither right nor wrong.
        "map": embedding_map.section(
            data.embedding_map, {} if with_times else data.scores, split, data.class_rows, _issues(data), clips
        ),
        "curves": data.history and figures.learning_curves(data.history, data.best_epoch, of_windows),
        "n_epochs": sum(row["epoch"] > 0 for row in data.history),
        "curve_metrics": figures.validation_metrics(data.history, of_windows=of_windows),
        "rarest": rare,
        "measures": rare_classes.measures(data.settings, set_for_rare),
        "times_more": rare_classes.unequal(rare, set_for_rare),
        "ablation": rare_classes.in_words(data.rare_class_ablation),
        "augmentation": _image(data.augmentation),
        "labels": labels,
        "shortcuts": shortcut_section.section(data.shortcuts),
        "published": published_section.section((data.trust or {}).get("published")),
        "tuning": data.tuning,
        "calibration": calibration_section.section(metrics, part, data.trust) if metrics else None,
        "decided": calibration_section.decided_sentence(metrics) if metrics else "",
        "thresholds": _thresholds(data),
        "comparison": model_comparison.sentences(data.model_comparison) if data.model_comparison else [],
        "ood": ood_section.section(data.trust, data.scores, data.metrics, split),
        "left_out": [(reason, n, advice.get(reason, "")) for reason, n in _by_count(data.books["left_out"])],
        "unused": unused[:MOST_ROWS],
        "n_unused": len(unused),
        "rows_said": row_books.words(data.label_rows) if data.label_rows else "",
        "unused_rows": of_rows[:MOST_ROWS],
        "n_unused_rows": len(of_rows),
        "used_with_remark": [row for row in data.problems if _is_used(row)][:MOST_ROWS],
        "box": {"left": left, "width": width, "top": round(100 - bottom - height, 1), "height": height},
        "clip_s": round(CLIP_S),
        "glossary": [each for each in METRICS.values() if each.name != "top3"],
        "count": count,
        "some": some,
    }


def _learnt_from(data: ReportData) -> int:
    """How many recordings the served model has learnt from: after a second training, of validation, too."""
    if found := (data.trust or {}).get("ensemble"):
        return int(found["recordings"])
    refit = (data.trust or {}).get("refit")
    return int(refit["recordings"]) if refit and refit["epochs"] else _total(data, "train")


def _untrained(data: ReportData) -> list[str]:
    """What is to be said where no epoch of training was kept."""
    found = (data.trust or {}).get("ensemble")
    if data.best_epoch != 0 or (found and any(member["best_epoch"] for member in found["members"])):
        return []
    return [
        "No epoch of training did better on validation than the published classifier that it began from: the model has "
        "that classifier's weights, for these classes."
    ]


def _without_near(data: ReportData) -> Row | None:
    """Accuracy without the test recordings that sound like training recordings, where that is a warning."""
    warned = any(each.code == "test-leak" for each in data.diagnostics)
    return data.leak if warned and data.split == "test" and data.leak and data.leak["far"] else None


def _thresholds(data: ReportData) -> Mapping[str, Row]:
    """By class: where labels have times, those of detections."""
    rows = calibration_section.thresholds_of(data.trust)["classes"] if data.trust else []
    return {row["class"]: row for row in rows}


def _is_used(row: Row) -> bool:
    return row["used"] in (True, "yes")


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common()


def _total(data: ReportData, key: str) -> Any:
    """Recordings, training recordings or minutes in all."""
    return sum(row[key] for row in data.class_rows) if data.totals is None else data.totals[key]
