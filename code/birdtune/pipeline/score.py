"""`score`: detections beside annotations, by events and by segments.

    tables of detections and of annotations ─▶ score ─▶ F1, error rate, average precision

How both are read, and which recordings of them are one: `event_tables`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from birdtune.config import Config
from birdtune.data.class_names import joined, quoted
from birdtune.data.selection import ROUNDING_S
from birdtune.errors import EXIT_DONE, InputError, SettingsError, shown
from birdtune.evaluation.event_metrics import Event, by_overlap, event_counts, segment_counts, summary
from birdtune.evaluation.event_ranking import rank, ranking
from birdtune.models.published_names import Names
from birdtune.pipeline import event_tables
from birdtune.pipeline.event_tables import Events, Named, TimedRow
from birdtune.runtime.files import write_json
from birdtune.runtime.log import Journal, duration
from birdtune.runtime.text import count, number, plain, plain_percent, some, span
from birdtune.serving.detection_ledger import NAME as LEDGER_NAME


class Asked(NamedTuple):
    """What the command line asks for."""

    detections: Sequence[Path]
    truth: Path
    out: Path | None
    least_overlap: float
    segment_s: float
    rates_per_hour: Sequence[float]


class _Compared(NamedTuple):
    """Events of the recordings that were annotated, under the annotations' names."""

    recordings: list[Named]
    annotated: Mapping[Named, Sequence[TimedRow]]
    detected: Mapping[Named, Sequence[TimedRow]]
    durations_s: Mapping[Named, float]
    classes: Sequence[str]


def score(config: Config, asked: Asked, journal: Journal) -> int:
    """Report how good detections are. Raises InputError: a table is none, or nothing of both is of one recording."""
    detected = event_tables.detections(config, asked.detections)
    known = detected.recordings | detected.durations_s.keys()
    annotated = event_tables.annotations(config, asked.truth, known)
    compared = _compared(asked, detected, annotated, journal)
    found = _figures(config, asked, compared)
    for line in _lines(found, asked):
        journal.say(line)
    if asked.out is not None:
        write_json(asked.out, found)
        journal.say(f"figures {shown(asked.out)}")
    return EXIT_DONE


def _compared(asked: Asked, detected: Events, annotated: Events, journal: Journal) -> _Compared:
    """What can be compared; the rest is said."""
    for line in (*detected.notices, *event_tables.left_out_lines(annotated)):
        journal.say(f"note: {line}")
    # Recordings in which nothing is marked are annotated, too: what is detected in them is false.
    if not annotated.rows and (annotated.left_out or not annotated.recordings or not detected.rows):
        raise InputError(
            f"--truth {shown(asked.truth)}: holds no annotation with times. Expected tables of Raven, Audacity, ELAN "
            "or Praat, or a table recording,start_s,end_s,label."
        )
    names = _one_and_the_same(asked, detected, annotated)
    if strangers := {row.recording for row in detected.rows} - names.keys():
        journal.say(f"note: not annotated, so left out: {quoted(sorted(one.shown for one in strangers))}")
    recordings = annotated.recordings - annotated.unclear
    if annotated.unclear:
        unclear = quoted(sorted(one.shown for one in annotated.unclear))
        journal.say(f"note: left out, as something is marked without class and times: {unclear}")
        names = {one: other for one, other in names.items() if other in recordings}
    if unscored := sorted(one.shown for one in recordings - set(names.values())):
        why = "not among the recordings of the detections, so left out"
        if not detected.are_all:
            why = "without any detection, so all missed"
        journal.say(f"note: annotated, and {why}: {quoted(unscored)}")
    if detected.are_all:
        recordings = set(names.values())
    durations_s = {names[one]: seconds for one, seconds in detected.durations_s.items() if one in names}
    marked = _within([row for row in annotated.rows if row.recording in recordings], durations_s, journal)
    rows = [row for row in detected.rows if row.recording in names]
    if not marked and not rows:
        raise InputError(
            f"--truth {shown(asked.truth)}: no event is annotated in the recordings of the detections "
            f"({some(sorted(one.shown for one in recordings), 3)}), so there is nothing to find."
        )
    classes, rows = _classes(marked, rows, journal)
    return _Compared(
        sorted(recordings),
        event_tables.by_recording(marked, {one: one for one in recordings}),
        event_tables.by_recording(rows, names),
        durations_s,
        classes,
    )


def _within(marked: Sequence[TimedRow], durations_s: Mapping[Named, float], journal: Journal) -> list[TimedRow]:
    """Annotated events within their recordings, as far as it is known how long these are; the rest is said."""
    kept, late, long = list[TimedRow](), list[str](), list[str]()
    for row in marked:
        end_s = durations_s.get(row.recording, math.inf)
        if row.start_s >= end_s:
            late.append(f"{row.recording.shown} at {row.start_s:g} s")
            continue
        if row.end_s > end_s + ROUNDING_S:
            long.append(f"{row.recording.shown} at {row.start_s:g} s")
        kept.append(row._replace(end_s=min(row.end_s, end_s)))
    if late:
        journal.say(f"note: annotated after the recording's end, so left out: {some(late)}")
    if long:
        journal.say(f"note: annotated beyond the recording's end, so trimmed: {some(long)}")
    return kept


def _one_and_the_same(asked: Asked, detected: Events, annotated: Events) -> dict[Named, Named]:
    """Recordings of the detections → those of the annotations. Raises InputError: none is, or one may be several."""
    known = detected.recordings | detected.durations_s.keys()
    names, vague = event_tables.matched(known, annotated.recordings)
    with_events = {row.recording for row in detected.rows}
    if several := sorted(one.shown for one in with_events.intersection(vague)):
        raise InputError(
            f"--truth {shown(asked.truth)}: several annotated recordings are called like {some(several)} of the "
            "detections. Give paths in place of names, or lay the annotations into folders as the recordings lie."
        )
    if known and not names:
        own = detected.recordings or known
        here, there = (some(sorted(one.shown for one in each), 3) for each in (own, annotated.recordings))
        raise InputError(
            f"--truth {shown(asked.truth)}: is of other recordings ({there}) than the detections ({here}). They are "
            "matched by their names, with as many folders before them as both have."
        )
    taken: dict[Named, Named] = {}
    for one in sorted(with_events & names.keys()):
        if (other := taken.setdefault(names[one], one)) != one:
            raise InputError(
                f"--truth {shown(asked.truth)}: {names[one].shown} may be {other.shown} or {one.shown} of the "
                "detections. Give its path in place of its name, or lay its annotations into a folder as the "
                "recording lies."
            )
    return names


def _classes(
    annotated: Sequence[TimedRow], detected: Sequence[TimedRow], journal: Journal
) -> tuple[list[str], list[TimedRow]]:
    """The classes, annotated ones first; and the detections with classes as the annotations call them.

    `Strix aluco_Tawny Owl` is what others call by one of both names.
    """
    classes, others = sorted({row.label for row in annotated}), {row.label for row in detected}
    same = Names(classes).only(sorted(others - set(classes)))
    renamed = {name: classes[column] for name, column in same.items()}
    rest = sorted(others - set(classes) - renamed.keys())
    for name, column in Names(rest).only(classes).items():
        renamed.setdefault(rest[column], name)
    if renamed:
        pairs = [f'"{shown(one)}" and "{shown(other)}"' for one, other in sorted(renamed.items())]
        journal.say(f"note: taken for one class: {joined(pairs)}")
    if rest := sorted(others - set(classes) - renamed.keys()):
        journal.say(f"note: detected and never annotated, so all false: {quoted(rest)}")
    return classes + rest, [row._replace(label=renamed.get(row.label, row.label)) for row in detected]


def _figures(config: Config, asked: Asked, compared: _Compared) -> dict[str, Any]:
    recordings, classes = compared.recordings, compared.classes
    column = {name: k for k, name in enumerate(classes)}

    def events_of(rows: Mapping[Named, Sequence[TimedRow]], one: Named) -> list[Event]:
        return [Event(column[row.label], row.start_s, row.end_s) for row in rows.get(one, ())]

    events = [(events_of(compared.annotated, one), events_of(compared.detected, one)) for one in recordings]
    sites = [_site(config, one.shown) for one in recordings]
    hours = None  # of all that may have false alarms
    if compared.durations_s and not compared.detected.keys() - compared.durations_s.keys():
        hours = sum(compared.durations_s.values()) / 3600
    fits, n = by_overlap(asked.least_overlap), len(classes)
    ends = [max([compared.durations_s.get(one, 0.0), *(event.end_s for part in both for event in part)])
            for one, both in zip(recordings, events, strict=True)]  # fmt: skip
    by_events = [event_counts(*both, n, fits) for both in events]
    by_segments = [
        segment_counts(*both, n, end_s, asked.segment_s) for both, end_s in zip(events, ends, strict=True)
    ]
    drawing: dict[str, int] = {"n_bootstrap": config.evaluate.bootstrap, "seed": config.train.seed}
    found: dict[str, Any] = {
        kind: summary(parts, sites, classes, **drawing)
        for kind, parts in (("events", by_events), ("segments", by_segments))
    }
    found["ranking"] = None
    if found["events"]["events"] and not any(row.score is None for rows in compared.detected.values() for row in rows):
        scores = [[row.score or 0.0 for row in compared.detected.get(one, ())] for one in recordings]
        ranked = rank(events, scores, n, fits)
        found["ranking"] = ranking(ranked, classes, sites, hours=hours, rates=asked.rates_per_hour, **drawing)
    names = [one.shown for one in recordings]
    for what, keys in (("per_recording", names), ("per_site", sites)):
        if what == "per_site" and len(set(sites)) == len(recordings):
            continue
        own = {key: [one for one, other in zip(by_events, keys, strict=True) if other == key] for key in keys}
        found[what] = [{what.removeprefix("per_"): key, **_brief(parts, classes)} for key, parts in own.items()]
    return {"recordings": len(recordings), "least_overlap": asked.least_overlap, "segment_s": asked.segment_s, **found}


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


def _lines(found: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    by_events = found["events"]
    yield (
        f"{count(by_events['events'], 'event')} annotated, {by_events['detections']:,} detected in "
        f"{count(found['recordings'], 'recording')}"
    )
    titles = (f"events (overlap {asked.least_overlap:g})", f"segments ({asked.segment_s:g} s)")
    for title, row in zip(titles, (by_events, found["segments"]), strict=True):
        rate = "–" if row["error_rate"] is None else f"{row['error_rate']:.2f}"  # noqa: RUF001
        interval = f"95 %: {plain(span(row['f1_ci']))}" if row["f1_ci"] else "no interval from one source"
        yield (
            f"  {title}: F1 {plain_percent(row['f1'])} ({interval}), precision "
            f"{plain_percent(row['precision'])}, recall {plain_percent(row['recall'])}, error rate {rate}"
        )
    ranks = found["ranking"]
    if by_events["events"]:
        yield from _ranking_lines(ranks)
    else:
        yield "  nothing is annotated in these recordings, so that all detections are false, and there is no ranking"
    width = max(len(shown(row["class"])) for row in by_events["per_class"])
    yield f"  {'class':<{width}}  events  detected  precision  recall    F1" + ("     AP" if ranks else "")
    for c, row in enumerate(by_events["per_class"]):
        shares = [plain_percent(row[key]) for key in ("precision", "recall", "f1")]
        yield (
            f"  {shown(row['class']):<{width}}  {row['events']:>6,}  {row['detections']:>8,}  {shares[0]:>9}  "
            f"{shares[1]:>6}  {shares[2]:>5}"
            + (f"  {number(ranks['per_class'][c]['ap']):>5}" if ranks else "")
        )


def _ranking_lines(ranks: Mapping[str, Any] | None) -> Iterator[str]:
    if ranks is None:
        yield "  no average precision: not all detections have a score (Audacity's labels have none)"
        return
    ends = ranks["macro_ap_ci"]
    interval = f" (95 %: {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    yield f"  ranked by score: mean average precision {number(ranks['macro_ap'])}{interval} of what is listed"
    if ranks["hours"] is None:
        yield (
            "  no recall at false alarms an hour: how long the recordings are is not known; name the folder that "
            f"`predict` wrote, with its {LEDGER_NAME}"
        )
    for row in ranks["recall_at"]:
        allowed = int(row["false_alarms_per_hour"] * ranks["hours"])
        rate = (
            f"{row['false_alarms_per_hour']:g} false alarm{'' if row['false_alarms_per_hour'] == 1 else 's'} an hour, "
            f"so {allowed or 'none'} in {duration(3600 * ranks['hours'])}"
        )
        at = "more than that have the highest score" if row["score"] is None else f"scores from {row['score']:.3f} on"
        if row["whole_list"]:
            at = "all that is listed, which has no more; a lower --detect.on lists more"
        yield f"  at {rate}: recall {plain_percent(row['recall'])} ({at})"
