"""`score`: detections beside annotations, by events and by segments.

    tables of detections, a table of annotations ─▶ score ─▶ F1 and error rate, of each class, recording and site

Both are tables with commas: `recording,start_s,end_s` and `class` (as `predict --format csv` writes) or `label`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from birdtune.config import Config
from birdtune.data.class_names import quoted
from birdtune.errors import EXIT_DONE, InputError, SettingsError, shown
from birdtune.evaluation.decision import UNKNOWN_NAME
from birdtune.evaluation.event_metrics import Event, by_overlap, event_counts, segment_counts, summary
from birdtune.runtime.files import read_csv, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.text import count, plain, plain_percent, span
from birdtune.serving.detection_tables import ENDINGS

_WANTED = "recording,start_s,end_s and class or label"


class _Row(NamedTuple):
    recording: str
    label: str
    start_s: float
    end_s: float


def score(
    config: Config, given: Sequence[Path], truth: Path, out: Path | None, least_overlap: float, segment_s: float,
    journal: Journal,
) -> int:  # fmt: skip
    """Report how good detections are. Raises InputError: a table is none, or nothing of both is of one recording."""
    tables = [table for place in given for table in _tables_in(place)]
    detected = [row for table in tables for row in _read(table) if row.label != UNKNOWN_NAME]
    annotated = list(_read(truth))
    names = _matched({row.recording for row in detected}, {row.recording for row in annotated})
    strangers = {row.recording for row in detected} - names.keys()
    if not annotated or (detected and not names):
        what = "holds no annotation" if not annotated else "is of other recordings than the detections"
        raise InputError(
            f"--truth {shown(truth)}: {what}. Expected a table {_WANTED}; recordings are matched by their names, "
            "with as many folders before them as both have."
        )
    if strangers:
        journal.say(f"note: not annotated, so left out: {quoted(sorted(strangers))}")
    classes = sorted({row.label for row in annotated})
    if others := sorted({row.label for row in detected} - set(classes)):
        journal.say(f"note: detected and never annotated, so all false: {quoted(others)}")
        classes += others
    found = _figures(config, annotated, detected, names, classes, least_overlap, segment_s)
    for line in _lines(found, least_overlap, segment_s):
        journal.say(line)
    if out is not None:
        write_json(out, found)
        journal.say(f"figures {shown(out)}")
    return EXIT_DONE


def _tables_in(place: Path) -> list[Path]:
    """A table, or those of a folder that `predict --format csv` wrote. Raises InputError: there is none."""
    if not place.is_dir():
        return [place]
    each, of_all = ENDINGS["csv"]
    found = [place / of_all] if (place / of_all).exists() else sorted(place.rglob(f"*{each}"))
    if not found:
        raise InputError(f"{shown(place)}: holds no table of `predict --format csv`. Write them, or name a table.")
    return found


def _read(path: Path) -> Iterator[_Row]:
    rows = read_csv(path, what="a table of events")
    for number, row in enumerate(rows, start=2):
        try:
            label = row["label"] if "label" in row else row.get("decision") or row["class"]
            start_s, end_s = float(row["start_s"]), float(row["end_s"])
            name = row["recording"]
        except KeyError as fault:
            raise InputError(f"{shown(path)}: has no column {fault.args[0]}. Expected {_WANTED}.") from fault
        except ValueError as fault:
            raise InputError(f"{shown(path)}, row {number:,}: {shown(fault)}; expected seconds.") from fault
        if not 0 <= start_s < end_s < float("inf"):
            raise InputError(
                f"{shown(path)}, row {number:,}: is from {start_s:g} to {end_s:g} s; expected begin before end."
            )
        yield _Row(name, label, start_s, end_s)


def _matched(detected: set[str], annotated: set[str]) -> dict[str, str]:
    """Names of recordings in the detections → in the annotations: what agrees from the end on, if only one does."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in annotated:
        by_name[_parts(name)[-1]].append(name)
    found = {}
    for name in detected:
        fits = [other for other in by_name[_parts(name)[-1]] if _agree(name, other)]
        if name in annotated or len(fits) == 1:
            found[name] = name if name in annotated else fits[0]
    return found


def _agree(one: str, other: str) -> bool:
    pairs = zip(reversed(_parts(one)), reversed(_parts(other)), strict=False)
    return all(first == second for first, second in pairs)


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", name) if part not in ("", ".")] or [name]


def _figures(
    config: Config, annotated: Sequence[_Row], detected: Sequence[_Row], names: Mapping[str, str],
    classes: Sequence[str], least_overlap: float, segment_s: float,
) -> dict[str, Any]:  # fmt: skip
    column = {name: k for k, name in enumerate(classes)}
    events: dict[str, tuple[list[Event], list[Event]]] = defaultdict(lambda: ([], []))
    for row in annotated:
        events[row.recording][0].append(Event(column[row.label], row.start_s, row.end_s))
    for row in detected:
        if row.recording in names:
            events[names[row.recording]][1].append(Event(column[row.label], row.start_s, row.end_s))
    recordings = sorted(events)
    sites = [_site(config, name) for name in recordings]
    fits, n = by_overlap(least_overlap), len(classes)
    counts = {
        "events": [event_counts(*events[name], n, fits) for name in recordings],
        "segments": [
            segment_counts(*events[name], n, max(one.end_s for part in events[name] for one in part), segment_s)
            for name in recordings
        ],
    }
    drawing: dict[str, int] = {"n_bootstrap": config.evaluate.bootstrap, "seed": config.train.seed}
    found: dict[str, Any] = {
        kind: summary(parts, sites, classes, **drawing) for kind, parts in counts.items()
    }
    by_events = counts["events"]
    for what, keys in (("per_recording", recordings), ("per_site", sites)):
        if what == "per_site" and len(set(sites)) == len(recordings):
            continue
        own = {key: [one for one, other in zip(by_events, keys, strict=True) if other == key] for key in keys}
        found[what] = [{what.removeprefix("per_"): key, **_brief(parts, classes)} for key, parts in own.items()]
    return {"recordings": len(recordings), "least_overlap": least_overlap, "segment_s": segment_s, **found}


def _brief(counts: Sequence[Any], classes: Sequence[str]) -> dict[str, Any]:
    whole = summary(counts, ["one"] * len(counts), classes, n_bootstrap=0, seed=0)
    return {key: whole[key] for key in ("events", "detections", "precision", "recall", "f1")}


def _site(config: Config, name: str) -> str:
    """What --split.group-regex finds in the name of a recording; else the recording is a source of its own."""
    pattern = config.split.group_regex
    if pattern is None:
        return name
    try:
        match = re.search(pattern, name)
    except re.error as fault:
        raise SettingsError(f"--split.group-regex {shown(pattern)}: is no regular expression ({fault}).") from fault
    return name if match is None else next((part for part in match.groups() if part is not None), match[0])


def _lines(found: Mapping[str, Any], least_overlap: float, segment_s: float) -> Iterator[str]:
    by_events = found["events"]
    yield (
        f"{count(by_events['events'], 'event')} annotated, {by_events['detections']:,} detected in "
        f"{count(found['recordings'], 'recording')}"
    )
    titles = (f"events (overlap {least_overlap:g})", f"segments ({segment_s:g} s)")
    for title, row in zip(titles, (by_events, found["segments"]), strict=True):
        rate = "–" if row["error_rate"] is None else f"{row['error_rate']:.2f}"  # noqa: RUF001
        yield (
            f"  {title}: F1 {plain_percent(row['f1'])} ({plain(span(row['f1_ci']))}), precision "
            f"{plain_percent(row['precision'])}, recall {plain_percent(row['recall'])}, error rate {rate}"
        )
    width = max(len(shown(row["class"])) for row in by_events["per_class"])
    yield f"  {'class':<{width}}  events  detected  precision  recall    F1"
    for row in by_events["per_class"]:
        shares = [plain_percent(row[key]) for key in ("precision", "recall", "f1")]
        yield (
            f"  {shown(row['class']):<{width}}  {row['events']:>6,}  {row['detections']:>8,}  {shares[0]:>9}  "
            f"{shares[1]:>6}  {shares[2]:>5}"
        )
