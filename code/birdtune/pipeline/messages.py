"""What a run says of its data at the beginning, and of its outcome at the end."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from birdtune.data import row_books
from birdtune.data.dataset import Dataset
from birdtune.data.sources import source_lines
from birdtune.errors import shown
from birdtune.evaluation import diagnostics
from birdtune.evaluation.headline import EVENTS, RECORDINGS
from birdtune.runtime.files import read_json
from birdtune.runtime.log import Journal, duration
from birdtune.runtime.runs import STAGES, Run
from birdtune.runtime.text import count, number, plain, plain_percent, some, span
from birdtune.training.served_model import ServedModel


def say_dataset(dataset: Dataset, journal: Journal) -> None:
    """How many recordings there are, and how many files are not used."""
    books = dataset.books()
    minutes = sum(recording.facts.duration_s for recording in dataset.recordings) / 60
    sides = {name: len(dataset.part(name)) for name in ("train", "val", "test")}
    journal.say(
        f"  {books['used']:,} recordings of {count(len(dataset.classes), 'class')}, {minutes:,.0f} min: "
        + ", ".join(f"{n:,} {name}" for name, n in sides.items())
    )
    for line in source_lines(dataset.sources):
        journal.say(f"  {line}")
    if books["left_out"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in books["left_out"].items())
        journal.say(f"  {sum(books['left_out'].values()):,} of {books['found']:,} files not used: {reasons}")
        journal.say("  each is named, with what to do, in problems.csv")
    if dataset.rows:
        journal.say(f"  {row_books.words(dataset.rows)}")
    if remarks := Counter(problem.problem for problem in dataset.problems if problem.used):
        counted = ", ".join(f"{n:,} {remark}" for remark, n in sorted(remarks.items()))
        journal.say(f"  {remarks.total():,} remarks on files that are used, in problems.csv: {counted}")
    rows = {"label_rows": dataset.rows} if dataset.rows else {}
    journal.event("dataset", classes=len(dataset.classes), minutes=round(minutes, 1), **sides, **books, **rows)


def say_notices(dataset: Dataset, journal: Journal) -> None:
    """What should be known of the data."""
    for notice in dataset.notices:
        journal.warn(notice)


def say_begin(current: Run, dataset: Dataset, base: ServedModel | None, *, resumed: bool) -> None:
    """Which version this is, and what it begins from."""
    journal = current.journal
    journal.event("run", version=current.version, resumed=resumed, settings=current.config.changed())
    word = "going on" if resumed else "new"
    journal.say(f"version {current.version}: {word}, logs in {_place(current, current.logs)}")
    if base is not None:
        n_old = len(base.classes)
        new = list(dataset.classes[n_old:])
        columns = [f"{shown(name)} ({n_old + place})" for place, name in enumerate(new)]
        added = f"{count(len(new), 'new class')} behind them: {some(columns)}" if new else "no class is new"
        journal.say(
            f"  begins from {base.title} (weights {base.facts.weights_sha256[:12]}): its {n_old:,} classes keep their "
            f"columns, {added}"
        )
        journal.event("init_from", **base.row(), kept=n_old, new=new)
    say_notices(dataset, journal)


def headline_lines(figures: Mapping[str, Any], part: str) -> Iterator[str]:
    """The figures of a part of metrics.json that lead, in words."""
    for number_of, row in enumerate(figures["headline"]):
        if row["of"] == EVENTS:
            yield f"{part} {_event_line(figures['events'])}"
            continue
        title = {"accuracy": "accuracy", "macro_ap": "mAP"}[row["metric"]]
        said = f"{part} {title}" if row["of"] == RECORDINGS else f"{part} window {title}"
        said += f" {number(row['value'])}" + (f" (95 %: {row['ci'][0]:.2f} to {row['ci'][1]:.2f})" if row["ci"] else "")
        if not number_of or figures["headline"][number_of - 1]["of"] != row["of"]:
            said += f" on {row['n']:,} {row['of']} of {count(figures['n_sources'], 'source')}"
        if row["baseline"] is not None:
            what = f" ({row['majority']})" if row["majority"] is not None else ""
            said += f"; {'majority baseline' if what else 'in a random order'} {number(row['baseline'])}{what}"
        yield said


def _event_line(events: Mapping[str, Any]) -> str:
    """How well detections meet annotated events: `events` of a part of metrics.json in words."""
    row, segments = events["events"], events["segments"]
    left_out = events["recordings_left_out"]
    interval = f" (95 %: {plain(span(row['f1_ci']))})" if row["f1_ci"] else ""
    return (
        f"events: F1 {plain_percent(row['f1'])}{interval}, precision "
        f"{plain_percent(row['precision'])}, recall {plain_percent(row['recall'])} of {row['events']:,} in "
        f"{count(events['recordings'], 'recording')}; segments of {events['segment_s']:g} s: F1 "
        f"{plain_percent(segments['f1'])}; a window each {events['hop_s']:g} s"
        + (f"; {left_out:,} without times, or reviewed in part, left out" if left_out else "")
    )


def say_result(current: Run, until: str) -> None:
    """The headline, where the results are, and how far to trust them."""
    journal = current.journal
    metrics: dict[str, Any] | None = read_json(current.reports / "metrics.json")
    test = metrics.get("test") if metrics and until != "train" else None
    if test:
        journal.say("")
        for line in headline_lines(test, "test"):
            journal.say(line)
    if until == "report":
        journal.say(f"report  {_place(current, current.reports / 'report.html')}")
    if until in ("export", "report"):
        journal.say(f"model   {_place(current, current.model if current.record['promoted'] else current.candidate)}")
    stages = current.record["stages"]
    journal.say("took    " + ", ".join(f"{name} {duration(stages[name])}" for name in STAGES if name in stages))
    say_outcome(current)


def _place(current: Run, path: Path) -> str:
    """What lies in the output, where people find it."""
    return shown(current.config.as_given(path))


def say_outcome(current: Run) -> None:
    """The last words: how far to trust the model, and whether it is in service; mild warnings are counted only."""
    warnings: list[dict[str, str]] = current.record["warnings"]
    strong = [row for row in warnings if row["severity"] == diagnostics.STRONG]
    for row in strong:
        current.journal.say(f"warning {row['code']}: {row['text']}")
    if strong:
        current.journal.say("Do not rely on this model. What to do stands in run.json, and on top of the report.")
    elif warnings:
        codes = ", ".join(dict.fromkeys(row["code"] for row in warnings))
        current.journal.say(f"read its figures with care: {codes} (see run.json, or the top of the report)")
    promoted, gate = current.record["promoted"], current.record["gate"]
    if current.config.gate.champion is not None and promoted is not None:
        current.journal.say(f"{'promoted' if promoted else 'not promoted'}: {gate['reason']}")
