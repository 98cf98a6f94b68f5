"""Facts of a run → one page for people.

    ReportFacts ─▶ write_report ─▶ report.html   (one file; works offline; nothing is fetched)

The page is written for somebody who knows birds and no statistics: the first screen says in sentences
what was trained on what, and how far to trust it. Sound is asked for clip by clip through `listen`, so
memory does not grow with the data.

Everything from outside is hostile: all text that the template prints passes `shown` (no control or
bidirectional marks) and is escaped, and the page's own policy lets no script run but the one it came with.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from birdtune.errors import shown
from birdtune.evaluation import model_comparison, rare_classes
from birdtune.evaluation.diagnostics import MILD, STRONG, Doubt
from birdtune.evaluation.scores import Scores, clip_scores
from birdtune.reporting import figures, ood_section, reliability_section, shortcut_section
from birdtune.reporting.listening import CLIP_S, Clip, heard
from birdtune.reporting.verdict import Verdict
from birdtune.runtime.files import write_text
from birdtune.runtime.log import duration
from birdtune.runtime.text import UNKNOWN, count, percent, span

Row = Mapping[str, Any]

MOST_CLIPS = 8
MOST_ROWS = 2_000
MOST_SUSPECTS = 200
MOST_ZOOMED = 15  # classes in the close-up of a large confusion matrix


@dataclass(frozen=True, eq=False)
class ReportFacts:
    """All that the report tells.

    Attributes:
        version: number of the run.
        created: ISO time.
        command: how birdtune was called.
        settings: name → value, flat; `changed` names those that are not at their default.
        classes: names in the order of the scores.
        class_rows: per class `class`, `recordings`, `minutes`, `train`, `val`, `test` (recordings),
            `external_id` (None where the label map has none).
        metrics: "val" and "test" → what `judge` returned, or None.
        scores: "val" and "test" → scores; either may be missing.
        history: per epoch `epoch`, `train_loss`, `val_loss`, `val_accuracy`, `val_macro_ap`,
            `learning_rate`, `seconds`; values may be None or missing (but not `epoch`).
        best_epoch: the epoch whose weights were kept.
        problems: rows of problems.csv: `recording`, `class`, `problem`, `used` (bool, or yes/no), `detail`,
            `advice`.
        books: `found`, `used`, and `left_out`: reason → number of files.
        notices: sentences about the input that the reader must not miss.
        doubts: what speaks against trusting the model; `verdict` is the sum of it.
        hardware: name → value.
        stages: name → seconds.
        trust: `calibration`, `thresholds` and `false_alarms` of metrics.json; None where it has none.
        window_s: seconds of a window of the backbone.
        listen: (recording, start in s, length in s) → that stretch, or None when it cannot be had.
        promotion: `promoted` and `reason` of run.json, where there was a gate; None: there was none.
        succession: `init_from` of metrics.json, where the run began from a served model.
        suspects: suspects.json: `rows` of suspect_labels.csv, and what they rest on; None: labels were not checked.
        augmentation: picture of what was done to training patches, if anything was. PNG
        remedies: that of metrics.json: what each measure for rare classes did; None: none was on, or nobody asked.
        shortcuts: that of metrics.json: how well the classes are told by what is no song; None: nobody measured.
        tuning: what the settings owe to tuning, as `tune_page.section`; None: nothing.
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
    doubts: Sequence[Doubt]
    verdict: Verdict
    hardware: Mapping[str, str]
    stages: Mapping[str, float]
    window_s: float
    listen: Callable[[str, float, float], Clip | None]
    augmentation: bytes | None = None
    trust: Row | None = None
    suspects: Row | None = None
    tuning: Row | None = None
    succession: Row | None = None
    promotion: Row | None = None
    remedies: Row | None = None
    shortcuts: Row | None = None

    @property
    def split(self) -> str | None:
        """The part that the page speaks of: test if there is one, else validation, else None."""
        return next((part for part in ("test", "val") if self.metrics.get(part)), None)


def write_report(path: Path, facts: ReportFacts) -> None:
    """Write the page, whole or not at all. Raises as `files.storage_faults`."""
    write_page(path, "report.html.j2", _context(facts))


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write a page of this house, whole or not at all. Raises as `files.storage_faults`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(name=name, percent=percent, span=span, duration=duration, csp_hash=_csp_hash)
    write_text(path, environment.get_template(template).render(context))


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


def remarks(judged: Row) -> list[str]:
    """The weak sides, in sentences: what it misses, what it says wrongly. More of them are doubts."""
    rows = judged["per_class"]
    tested = sorted((row for row in rows if row["support"]), key=_expected_recall)
    weakest = [row for row in tested if row["recall"] < 0.9][:5]
    missed = [f"{row['class']} ({_hits(row)} of {row['support']} found)" for row in weakest]
    said = sorted((row for row in rows if row["predicted"] > 2), key=lambda row: row["precision"])
    doubtful = [
        f"“{row['class']}” (right {_hits(row)} of {row['predicted']} times)"
        for row in said
        if row["precision"] < 0.8
    ]
    found = [f"Weakest: {', '.join(missed)}."] if missed else ["No class was found less than 9 times in 10."]
    if doubtful:
        found.append(f"Answers to doubt: {', '.join(doubtful[:3])}.")
    return found


def _expected_recall(row: Row) -> float:
    # Laplace's rule of succession: 1 of 2 proves less weakness than 12 of 30.
    share: float = (_hits(row) + 1) / (row["support"] + 2)
    return share


def _hits(row: Row) -> int:
    hits: float = (row["recall"] or 0.0) * row["support"]
    return round(hits)


# ---- sound --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A recording to listen to, and the class whose highest patch is to be heard."""

    index: int  # row of the scores
    said: int  # column: what the classifier said


def worst_errors(scores: Scores, pooled: npt.NDArray[np.float64]) -> list[Finding]:
    """The errors that it was surest of, at most one from a source recording. pooled: [N, C]"""
    said, surest = pooled.argmax(axis=1), pooled.max(axis=1)
    heard: set[str] = set()
    found = []
    for index in np.argsort(-surest, kind="stable").tolist():
        if said[index] != scores.labels[index] and scores.groups[index] not in heard:
            heard.add(scores.groups[index])
            found.append(Finding(index, int(said[index])))
    return found[:MOST_CLIPS]


def pair_errors(
    scores: Scores, pooled: npt.NDArray[np.float64], pairs: Sequence[Row], shown_already: set[int]
) -> list[tuple[Row, Finding]]:
    """For each of the most confused pairs its surest error, rather one that was not shown yet."""
    column = {name: c for c, name in enumerate(scores.classes)}
    said = pooled.argmax(axis=1)
    found = []
    for pair in pairs[:MOST_CLIPS]:
        true, predicted = column[pair["true"]], column[pair["predicted"]]
        candidates = np.flatnonzero((scores.labels == true) & (said == predicted)).tolist()
        if candidates:
            index = min(candidates, key=lambda k: (k in shown_already, -pooled[k, predicted]))
            found.append((pair, Finding(index, predicted)))
    return found


def _best_example(scores: Scores, pooled: npt.NDArray[np.float64], wanted: int) -> Finding | None:
    """The recording of a class that was recognised most surely, if any was."""
    right = np.flatnonzero((scores.labels == wanted) & (pooled.argmax(axis=1) == wanted))
    return Finding(int(right[np.argmax(pooled[right, wanted])]), wanted) if right.size else None


def _card(facts: ReportFacts, scores: Scores, pooled: npt.NDArray[np.float64], finding: Finding) -> Row:
    """What the template shows of a recording: words, a spectrogram and a playable clip, or their lack."""
    patches = np.flatnonzero(scores.patch_recording == finding.index)
    starts = scores.patch_start_s[patches]
    loudest = float(starts[np.argmax(scores.patch_scores[patches, finding.said])])
    true = int(scores.labels[finding.index])
    return {
        "recording": scores.recordings[finding.index],
        "true": scores.classes[true],
        "said": scores.classes[finding.said],
        "right": true == finding.said,
        "confidence": float(pooled[finding.index, finding.said]),
        "true_score": float(pooled[finding.index, true]),
        "suspect": scores.recordings[finding.index] in {row["recording"] for row in _suspects(facts)},
        **heard(
            facts.listen, scores.recordings[finding.index], loudest, float(starts.max()) + facts.window_s,
            facts.window_s,
        ),
    }


def _suspects(facts: ReportFacts) -> Sequence[Row]:
    return facts.suspects["rows"] if facts.suspects else ()


def _labels(facts: ReportFacts) -> Row | None:
    """The section on labels to check: what suspects.json says, and the first of them to listen to."""
    found = facts.suspects
    if found is None:
        return None
    first = found["rows"][:MOST_CLIPS]
    cards = [
        {**row, **heard(facts.listen, row["recording"], row["start_s"], row["seconds"], facts.window_s)}
        for row in first
    ]
    return {**found, "cards": cards, "few": found["rows"][:MOST_SUSPECTS]}


def _image(png: bytes | None) -> Markup | None:
    """A picture as a data URI."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}") if png else None


def _listening(facts: ReportFacts) -> Row:
    """The cards of the chosen part of the split: worst errors, and pairs with an example to compare."""
    scores = facts.scores.get(facts.split or "")
    judged = facts.metrics.get(facts.split or "")
    if scores is None or judged is None:
        return {"worst": [], "pairs": [], "errors": None}
    pooled = clip_scores(scores)  # [N, C]
    worst = worst_errors(scores, pooled)
    pairs = pair_errors(scores, pooled, judged["confusion_pairs"], {finding.index for finding in worst})
    examples = {finding.said: _best_example(scores, pooled, finding.said) for _, finding in pairs}
    compare = {said: found and _card(facts, scores, pooled, found) for said, found in examples.items()}
    return {
        "worst": [_card(facts, scores, pooled, finding) for finding in worst],
        "pairs": [
            {**pair, "error": _card(facts, scores, pooled, finding), "example": compare[finding.said]}
            for pair, finding in pairs
        ],
        "errors": int((pooled.argmax(axis=1) != scores.labels).sum()),
    }


# ---- the page -----------------------------------------------------------------------------------


def _context(facts: ReportFacts) -> dict[str, Any]:
    split = facts.split
    part = {"test": "test", "val": "validation", None: ""}[split]
    judged = facts.metrics.get(split) if split else None
    # A quality.csv in the input folder is on without being set.
    set_for_rare = facts.changed | set(facts.remedies["on"] if facts.remedies else ())
    unused = [row for row in facts.problems if not _is_used(row)]
    advice = {row["problem"]: row.get("advice", "") for row in unused}
    left, bottom, width, height = (round(100 * part, 1) for part in figures.SPECTROGRAM_BOX)
    return {
        "facts": facts,
        "split": split,
        "judged": judged,
        "split_name": part,
        "strong": [doubt for doubt in facts.doubts if doubt.severity == STRONG],
        # What the verdict's own words say is not said twice.
        "mild": [doubt for doubt in facts.doubts if doubt.severity == MILD and str(doubt) != facts.verdict.text],
        "remarks": remarks(judged) if judged else [],
        "recordings": sum(row["recordings"] for row in facts.class_rows),
        "trained": sum(row["train"] for row in facts.class_rows),
        "hours": duration(60 * sum(row["minutes"] for row in facts.class_rows)),
        "headline": figures.headline(_headline_rows(facts)) if judged else None,
        "class_rows": _class_rows(facts),
        "has_ids": any(row["external_id"] is not None for row in facts.class_rows),
        "confusion": _confusion(judged, facts.classes) if judged else None,
        "listening": _listening(facts),
        "curves": figures.learning_curves(facts.history, facts.best_epoch) if facts.history else None,
        "rarest": judged.get("rarest_third") if judged else None,
        "measures": rare_classes.measures(facts.settings, set_for_rare),
        "times_more": rare_classes.unequal(judged.get("rarest_third") if judged else None, set_for_rare),
        "remedies": rare_classes.told(facts.remedies),
        "augmentation": _image(facts.augmentation),
        "labels": _labels(facts),
        "shortcuts": shortcut_section.section(facts.shortcuts),
        "tuning": facts.tuning,
        "sure": reliability_section.section(judged, part, facts.trust) if judged else None,
        "answered": reliability_section.answered_sentence(judged) if judged else "",
        "thresholds": _thresholds(facts),
        "inherited": model_comparison.sentences(facts.succession) if facts.succession else [],
        "strange": ood_section.section(facts.trust, facts.scores, facts.metrics, split),
        "left_out": [(reason, n, advice.get(reason, "")) for reason, n in _by_count(facts.books["left_out"])],
        "unused": unused[:MOST_ROWS],
        "n_unused": len(unused),
        "used_with_remark": [row for row in facts.problems if _is_used(row)][:MOST_ROWS],
        "box": {"left": left, "width": width, "top": round(100 - bottom - height, 1), "height": height},
        "clip_s": round(CLIP_S),
        "count": count,
    }


def _thresholds(facts: ReportFacts) -> Mapping[str, Row]:
    rows = facts.trust["thresholds"]["classes"] if facts.trust else []
    return {row["class"]: row for row in rows}


def _is_used(row: Row) -> bool:
    return row["used"] in (True, "yes")


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common()


def _headline_rows(facts: ReportFacts) -> list[tuple[str, float, Sequence[float] | None, bool]]:
    rows: list[tuple[str, float, Sequence[float] | None, bool]] = []
    for split, name in (("test", "test"), ("val", "validation")):
        judged = facts.metrics.get(split)
        if not judged:
            continue
        clip = judged["clip"]
        rows.append((f"right best guess, {name}", clip["accuracy"], clip["accuracy_ci"], False))
        if split == facts.split:
            rows.append(("baseline", judged["majority_baseline"], judged["majority_baseline_ci"], True))
            if len(facts.classes) > 3:
                rows.append((f"right class among top 3, {name}", clip["top3"], clip["top3_ci"], False))
            if clip["macro_ap"] is not None:
                rows.append((f"average precision, {name}", clip["macro_ap"], clip["macro_ap_ci"], False))
    return rows


def _class_rows(facts: ReportFacts) -> list[Row]:
    """Per class: what there was, how it was judged, and what it was most often taken for."""
    judged = facts.metrics.get(facts.split or "")
    if not judged:
        return [{**row, "judged": None, "taken_for": None} for row in facts.class_rows]
    taken: dict[str, str] = {}
    for pair in judged["confusion_pairs"]:
        taken.setdefault(pair["true"], f"{pair['predicted']} ({pair['count']})")
    by_class = {row["class"]: row for row in judged["per_class"]}
    return [
        {**row, "judged": by_class[row["class"]], "taken_for": taken.get(row["class"])}
        for row in facts.class_rows
    ]


def _confusion(judged: Row, classes: tuple[str, ...]) -> Row:
    """The matrix; and, where it is too large for numbers, a close-up of the classes most confused."""
    counts = np.asarray(judged["confusion"], np.int64)  # [C, C]
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
