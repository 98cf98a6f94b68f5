"""What `score` compares: tables of detections and of annotations → events, and which recordings of both are one.

    paths ─▶ detections, annotations ─▶ Events ─▶ matched: recordings of the one → those of the other

Both are read as `--labels.annotations` is. There are no recordings to look names up among: a row without one is of the
recording that its table is called after, and names agree from the end on.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.config import Config
from birdtune.data.annotations import formats, records
from birdtune.data.annotations.collect import annotation_files, options_of
from birdtune.data.annotations.formats import AnnotationFile
from birdtune.data.annotations.names import is_relative, shorter
from birdtune.data.annotations.rows import Options, Row
from birdtune.data.embedding_files import require_pyarrow
from birdtune.data.label_table import row_of
from birdtune.data.labelling import LabelRow
from birdtune.data.row_books import IN_ANOTHER_VIEW, REPEATED_VIEW
from birdtune.data.taxonomy import Taxonomy
from birdtune.errors import InputError, shown
from birdtune.evaluation.decision import UNKNOWN_NAME
from birdtune.runtime.text import count, some
from birdtune.serving.detection_ledger import durations
from birdtune.serving.detection_tables import ENDINGS

# Formats of `predict` that are read again, the fullest first: a folder may hold the tables of several.
_KINDS: Final = ("csv", "json", "parquet", "raven", "birdnet", "audacity")
# How tables end, those of BirdNET-Analyzer itself among them; and what `predict` puts before that of its own.
_ENDS: Final = {kind: each for kind, (each, _) in ENDINGS.items()} | {"birdnet": ".BirdNET.results.csv"}
_OWN: Final = ".birdtune"
_SELECTIONS = re.compile(r"(?:\.Table\.\d+)?\.selections$", re.IGNORECASE)


class Named(NamedTuple):
    """How a recording is called.

    Attributes:
        name: as a row has it, or after its table.
        folder: that its table lies in, which tells recordings of one name apart.
    """

    name: str
    folder: str = ""

    @property
    def parts(self) -> list[str]:
        """The folders that it is said to lie in, and its own name."""
        return [part for part in re.split(r"[/\\]", self.name) if part not in ("", ".")] or [self.name]

    @property
    def shown(self) -> str:
        """With the folder, as messages have it."""
        return shown(f"{self.folder}/{self.name}" if self.folder else self.name)


class TimedRow(NamedTuple):
    """A class, from when to when in a recording."""

    recording: Named
    label: str
    start_s: float
    end_s: float
    score: float | None = None


@dataclass
class Events:
    """What some tables say.

    Attributes:
        recordings: all that they are of, also those without an event.
        durations_s: of those whose length is known.
        are_all: whether `recordings` are all that were gone through, also those without an event.
        unclear: recordings with something marked, nobody knows what and when.
        left_out: rows that are no events, by the reason; examples: one of each.
    """

    rows: list[TimedRow] = field(default_factory=list)
    recordings: set[Named] = field(default_factory=set)
    durations_s: dict[Named, float] = field(default_factory=dict)
    are_all: bool = True
    unclear: set[Named] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that is no event."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, where)


# ---- reading ------------------------------------------------------------------------------------


def detections(config: Config, given: Sequence[Path]) -> Events:
    """Read tables that `predict --format` wrote, or their folders.

    Raises:
        InputError: there is none, or a row is no detection: programs write them without faults.
    """
    own = options_of(config)
    options = replace(own, columns={"label": "decision", **own.columns})
    taxonomy, found = Taxonomy.of(config), Events()
    for place in given:
        tables, seen = _tables_in(place, found.notices), dict[tuple[str, Named], Path]()
        for path, kind in tables:
            _add_table(found, _read(path, options), path.parent if path == place else place, kind, taxonomy, seen)
        lengths = durations(place) if place.is_dir() else {}
        found.durations_s |= {Named(name): seconds for name, seconds in lengths.items()}
        found.are_all &= bool(lengths) or all(_is_of_one(*each) for each in tables)
    return found


def _add_table(
    found: Events, table: AnnotationFile, base: Path, kind: str, taxonomy: Taxonomy,
    seen: dict[tuple[str, Named], Path],
) -> None:  # fmt: skip
    """Add the detections of a table, unless a newer one that is called alike is of the same recording.

    Args:
        kind: the format, "" where it is not known.
        seen: the tables before it, which are newer, by their names and recordings; extended by this one.
    """
    path = table.path
    found.notices += [table.note] if table.note else []
    called = path.name.removesuffix(_ENDS[kind]).removesuffix(_OWN) if kind else _stem(path)
    if _is_of_one(path, kind):
        _add_recordings(found, table, path, base, called)
    # Raven, where it was saved again, has a row for each view.
    rows = [(_named(row, path, base, called, by_path=bool(kind)), row) for row in table.rows if not row.is_view]
    if newer := next((seen[called, name] for name, _ in rows if (called, name) in seen), None):
        found.notices.append(f"left out {shown(path)}: {shown(newer)} is of the same recording, and newer")
        return
    seen |= dict.fromkeys(((called, name) for name, _ in rows), path)
    for name, row in rows:
        _add_detection(found, row, name, f"{shown(path)}, row {row.number:,}", taxonomy)


def _is_of_one(path: Path, kind: str) -> bool:
    """Whether a table is one that `predict` wrote of a single recording."""
    return bool(kind) and path.name != ENDINGS[kind][1]


def _tables_in(place: Path, notices: list[str]) -> list[tuple[Path, str]]:
    """A table, or those of a folder that `predict` wrote, of one format, the newest first; with the format if known.

    Args:
        notices: extended by tables that an earlier command left there, as --detect.one-table was another.

    Raises:
        InputError: there is none.
    """
    if not place.is_dir():
        return [(place, next((kind for kind in _KINDS if _is_table(place, kind)), ""))]
    for kind in _KINDS:
        each, of_all = _ENDS[kind], ENDINGS[kind][1]
        there = sorted((path for path in place.rglob(f"*{each}") if _is_table(path, kind)), key=_age)
        whole = [path for path in (place / of_all,) if path.is_file()]
        single = [path for path in there if path.name != of_all]
        old, new = (single, whole) if whole and (not single or _age(whole[0]) < _age(single[0])) else (whole, single)
        if old and new:
            notices.append(
                f"left out {some([shown(path.relative_to(place)) for path in old])}, of an earlier command: "
                f"{shown(new[0].relative_to(place))} is newer"
            )
        if new:
            return [(path, kind) for path in new]
    raise InputError(
        f"{shown(place)}: holds no table of `predict --format {'|'.join(_KINDS)}`. Write them, or name a table."
    )


def _age(path: Path) -> tuple[int, Path]:
    """By which the newest file comes first."""
    return -path.stat().st_mtime_ns, path


def _is_table(path: Path, kind: str) -> bool:
    """Whether a table is called as those of a format, which has one for each recording or for all."""
    is_ravens = kind == "audacity" and path.name.endswith(".selections.txt")
    return not is_ravens and path.name.endswith((_ENDS[kind], ENDINGS[kind][1]))


def _read(path: Path, options: Options) -> AnnotationFile:
    if not path.exists():
        raise InputError(f"{shown(path)}: there is no such file or folder.")
    table = _parquet(path, options) if path.suffix.lower() == ".parquet" else formats.read(path, options)
    if table is None:
        raise InputError(
            f"{shown(path)}: is no table of events. Expected one of Raven, Audacity, BirdNET-Analyzer, ELAN or Praat, "
            "or a table recording,start_s,end_s and class or label; --labels.columns names other columns."
        )
    return table


def _parquet(path: Path, options: Options) -> AnnotationFile:
    pa, parquet = require_pyarrow(shown(path))
    try:
        rows = records.of(parquet.read_table(path).to_pylist(), options)
    except (ValueError, pa.ArrowException) as fault:
        raise InputError(f"{shown(path)}: is damaged, or no table of events: {shown(fault)}.") from fault
    return AnnotationFile(path, "Parquet", tuple(rows))


def _add_recordings(found: Events, table: AnnotationFile, path: Path, base: Path, called: str) -> None:
    if not table.rows:
        found.recordings.add(Named(unicodedata.normalize("NFC", called), _below(path, base)))


def _add_detection(found: Events, row: Row, recording: Named, where: str, taxonomy: Taxonomy) -> None:
    label = _label_of(row, where, taxonomy)
    if label.problem == "row-invalid" or not label.labels:
        raise InputError(f"{where}: is no detection: {label.detail or 'it has no class'}.")
    found.recordings.add(recording)
    one = label.labels[0]
    if label.problem:
        found.leave_out(label.problem, where)
    elif not one.has_times:
        raise InputError(f"{where}: has no times; expected begin and end in seconds.")
    elif one.class_name != UNKNOWN_NAME:
        try:
            score = float(row.score.replace(",", ".")) if row.score else None
        except ValueError as fault:
            raise InputError(f"{where}: its score is {shown(row.score[:40])!r}, expected a number.") from fault
        found.rows.append(TimedRow(recording, one.class_name, one.start_s, one.end_s, score))


def annotations(config: Config, truth: Path, known: Iterable[Named]) -> Events:
    """Read annotations: a file, or a folder of them.

    Args:
        known: the recordings of the detections, which tables may be called after.

    Raises:
        InputError: there are none, or a file is damaged.
    """
    options, taxonomy, found = options_of(config), Taxonomy.of(config), Events()
    base = truth if truth.is_dir() else truth.parent
    keys = {key for one in known for key in (one.parts[-1], _stem_of_sound(one.parts[-1]))}
    detected = []
    for path in annotation_files(truth) if truth.is_dir() else [truth]:
        table = formats.read(path, options) if truth.is_dir() else _read(path, options)
        if table is None:
            continue
        if table.is_detected and truth.is_dir():
            detected.append(path.name)
            continue
        found.notices += [table.note] if table.note else []
        called = next((name for name in shorter(path.name) if name in keys), _stem(path))
        _add_recordings(found, table, path, base, called)
        seen = set[tuple[object, ...]]()
        for row in table.rows:
            recording, where = _named(row, path, base, called), f"{shown(path.relative_to(base))}, row {row.number:,}"
            found.recordings.add(recording)
            made = replace(_label_of(row, where, taxonomy), is_view=row.is_view)
            _add_annotation(found, made, recording, where, seen)
    if detected:
        found.notices.append(
            f"not taken for true, as a program detected what they say: {some(detected)}. Name such a table itself if "
            "somebody has checked it."
        )
    return found


def _add_annotation(
    found: Events, row: LabelRow, recording: Named, where: str, seen: set[tuple[object, ...]]
) -> None:
    if row.problem:
        reason = REPEATED_VIEW if row.is_view else row.problem
        found.leave_out(reason, f"{where}{': ' if row.detail else ''}{row.detail}")
        if row.problem == "row-without-label" and not row.labels:
            found.unclear.add(recording)
        return
    one = row.labels[0]
    event = TimedRow(recording, one.class_name, one.start_s, one.end_s)
    if not one.has_times or one.end_s == float("inf"):
        found.leave_out("without times", where)
    elif event in seen:
        found.leave_out(REPEATED_VIEW if row.is_view else "row-repeated", where)
    else:
        seen.add(event)
        found.rows.append(event)


def _label_of(row: Row, where: str, taxonomy: Taxonomy) -> LabelRow:
    if row.fault:
        return LabelRow(where, row.recording, (), "row-invalid", row.fault)
    return row_of(where, row.recording, row.class_name, row.cells, taxonomy)


# ---- names --------------------------------------------------------------------------------------


def _named(row: Row, path: Path, base: Path, called: str, *, by_path: bool = False) -> Named:
    """The recording of a row: a path as it stands, a name alone in the folder of its table.

    Args:
        by_path: whether its path goes before its name, from wherever that begins, as in tables of `predict`.
    """
    own = row.path if by_path or is_relative(row.path) else ""
    listed = unicodedata.normalize("NFC", own or row.recording or row.path or called)
    return Named(listed, "" if re.search(r"[/\\]", listed) else _below(path, base))


def _below(path: Path, base: Path) -> str:
    folder = unicodedata.normalize("NFC", path.parent.relative_to(base).as_posix())
    return "" if folder == "." else folder


def _stem(path: Path) -> str:
    return _SELECTIONS.sub("", path.stem)


def _stem_of_sound(name: str) -> str:
    """A name without the ending of a recording: tables may be called after it without, or after a copy."""
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in SOUND_ENDINGS | FOREIGN_ENDINGS else name


def matched(ones: Iterable[Named], others: Iterable[Named]) -> tuple[dict[Named, Named], list[Named]]:
    """Which recordings are called alike, and those that may be several.

    Names agree from the end on, with as many folders as both have. Of several the one with the same ending is meant,
    else the one whose table lies in the same folder.
    """
    by_stem: dict[str, list[Named]] = defaultdict(list)
    for other in others:
        by_stem[_stem_of_sound(other.parts[-1])].append(other)
    found, vague = dict[Named, Named](), list[Named]()
    for one in ones:
        fits = [other for other in by_stem[_stem_of_sound(one.parts[-1])] if _agree(one.parts, other.parts)]
        for closer in (
            [other for other in fits if other.parts[-1] == one.parts[-1]],
            [other for other in fits if _agree(_whole(one), _whole(other))],
            [other for other in fits if other == one],
        ):
            fits = closer if len(fits) > 1 and closer else fits
        if len(fits) == 1:
            found[one] = fits[0]
        elif fits:
            vague.append(one)
    return found, vague


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the folders of two names are the same, from the last on."""
    pairs = zip(reversed(one[:-1]), reversed(other[:-1]), strict=False)
    return all(first == second for first, second in pairs)


def _whole(one: Named) -> list[str]:
    return [*(part for part in one.folder.split("/") if part), *one.parts]


def left_out_lines(events: Events) -> Iterator[str]:
    """What is said of annotations that are no events, and of tables."""
    for reason, n in sorted(events.left_out.items()):
        if reason == REPEATED_VIEW:
            yield f"{count(n, 'row')} of the annotations {'repeats' if n == 1 else 'repeat'} {IN_ANOTHER_VIEW}"
            continue
        yield f"{count(n, 'row')} of the annotations not used, {reason}: {events.examples[reason]}"
    yield from events.notices


def by_recording(rows: Iterable[TimedRow], names: Mapping[Named, Named]) -> dict[Named, list[TimedRow]]:
    """The rows of each recording, under the names that these are known by in the annotations."""
    found: dict[Named, list[TimedRow]] = defaultdict(list)
    for row in rows:
        if row.recording in names:
            found[names[row.recording]].append(row)
    return found
