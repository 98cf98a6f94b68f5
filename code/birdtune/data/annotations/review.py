"""review.csv, which the page of `review` saves: what somebody decided on detections, added to all other labels.

    recording,start_s,end_s,detected,decision,label
    nights/a.wav,61,64,Strix aluco,yes,Strix aluco
    nights/a.wav,70.5,73.5,Strix aluco,other,Asio otus
    nights/b.wav,12,15,Strix aluco,no,

    Arranged + review.csv ─▶ add ─▶ Arranged

A decision is of its part alone. A recording that has other labels keeps them; of one that has none, nothing is known
beside what was decided.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from birdtune.config import Config
from birdtune.data.annotations.rows import TIMES, label_of
from birdtune.data.annotations.sites import is_species
from birdtune.data.class_names import is_negative, joined, quoted
from birdtune.data.labelling import LabelTable
from birdtune.data.labels import Label, background_of, class_names_of
from birdtune.data.layout import Arranged, is_no_name, is_place
from birdtune.data.row_books import RowBooks
from birdtune.data.row_files import match
from birdtune.data.scan import NO_FILE, Listing, Problem, SoundFile
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv
from birdtune.runtime.text import count, some

TABLE_NAME: Final = "review.csv"
COLUMNS: Final = ("recording", "start_s", "end_s", "detected", "decision", "label")
DECISIONS: Final = ("yes", "no", "other")

_SETTING = "--labels.review"


@dataclass(frozen=True)
class Decision:
    """One row.

    Attributes:
        origin: its file and number, as messages name it.
        kind: of `DECISIONS`; as it stands there, where it is none.
        detected: the class that it is about.
        labels: what follows of it; [] if `fault` says why nothing does.
    """

    origin: str
    recording: str
    kind: str
    detected: str
    labels: tuple[Label, ...] = ()
    fault: str = ""


def read(path: Path, notes: list[str]) -> Iterator[Decision]:
    """The rows of a table; `notes` is extended by what is to be said of its text. Raises InputError: it is none."""
    rows = read_csv(path, what="a table of reviewed detections", notes=notes)
    if rows and (missing := [name for name in COLUMNS if name not in rows[0]]):
        raise InputError(
            f"{_SETTING} {shown(path)}: has no column {quoted(missing)}. Expected the table that the page of `review` "
            f"saves: {','.join(COLUMNS)}."
        )
    for number, row in enumerate(rows, start=2):
        cells = {name: unicodedata.normalize("NFC", row[name]).strip() for name in COLUMNS}
        yield _decision(f"{shown(path.name)}, row {number:,}", cells)


def _decision(origin: str, cells: Mapping[str, str]) -> Decision:
    kind, detected, label = cells["decision"].casefold(), shown(cells["detected"]), shown(cells["label"])
    own = Decision(origin, cells["recording"], kind, detected)
    if kind not in DECISIONS:
        return replace(own, fault=f"decision is {shown(kind[:40])!r}, expected {', '.join(DECISIONS)}")
    if not detected or (kind == "other" and not label):
        return replace(own, fault="has no class")
    if kind == "other" and is_negative(label):
        return replace(own, fault=f'"{label}" is no class, as "-" before a name says that it is absent')
    there = label_of(label if kind == "other" else detected, {name: cells[name] for name in TIMES})
    if not isinstance(there, Label):
        return replace(own, fault=there)
    if not there.has_times:
        return replace(own, fault="has no times")
    there = replace(there, is_reviewed=True, origin=origin)
    absent = replace(there, class_name=detected, weight=0.0)
    return replace(own, labels={"yes": (there,), "no": (absent,), "other": (there, absent)}[kind])


def sites(listing: Listing, classes: Iterable[str], config: Config) -> set[str]:
    """The folders that are sites by what was decided on their recordings; none without a review.

    Args:
        listing: of `scan.scan`, flat.
        classes: that are annotated, so that folders of these names are classes.

    Raises: as `add`.
    """
    if config.labels.review is None:
        return set()
    by_listed = _by_recording(one for path in _tables(Path(config.labels.review)) for one in read(path, []))
    matched = match(listing.files, by_listed)
    of_file = {name: [one for row in rows for one in by_listed[row]] for name, rows in matched.rows_of.items()}
    return _sites(listing.files, of_file, classes, config)[0]


def with_sites(table: LabelTable, listing: Listing, config: Config) -> LabelTable:
    """The same with those sites. Tables that are no annotations are not changed: beside them no folder is a class.

    Raises: as `add`.
    """
    classes = {label.class_name for row in table.rows for label in row.labels}
    new = sites(listing, classes, config) - table.sites if table.is_annotations else set[str]()
    return replace(table, sites=table.sites | new, notices=(*table.notices, *_of_folders(new, set())))


def add(arranged: Arranged, listing: Listing, config: Config) -> Arranged:
    """The same with what was decided; of folders that name classes, some in which recordings were reviewed are sites.

    Args:
        listing: of all recordings, flat, those without a label, too.

    Raises:
        InputError: there is no such table, or it is of other recordings.
    """
    assert config.labels.review is not None
    place = Path(config.labels.review)
    read_as = list[str]()
    decisions = [one for path in _tables(place) for one in read(path, read_as)]
    by_listed = _by_recording(decisions)
    matched = match(listing.files, by_listed)
    if decisions and not matched.rows_of:
        raise InputError(
            f"{_SETTING} {shown(place)}: is of none of the recordings in {shown(config.data_folder)}. It names "
            f"{shown(decisions[0].recording)}. Put the recordings that were reviewed into the data folder; they are "
            "known by their names, with as many folders before them as both have."
        )
    of_file = {name: [one for row in rows for one in by_listed[row]] for name, rows in matched.rows_of.items()}
    given = {name for file in arranged.listing.files if file.labels for name in file.classes}
    by_folder = [file for file in arranged.listing.files if not file.labels]
    site, doubtful = _sites(by_folder, of_file, given, config)
    placed, left_out, problems = Counter[str](), Counter[str](), list[Problem]()
    labelled = {file.name: file for file in arranged.listing.files if file.labels or file.label not in site}
    files, added = list[SoundFile](), set[str]()
    for file in listing.files:
        known = labelled.get(file.name)
        if file.name not in of_file:
            files += [known] if known is not None else []
            continue
        labels = _labels(file.name, of_file[file.name], placed, left_out, problems)
        if known is not None:
            files.append(replace(known, labels=(*(known.labels or (Label(known.label),)), *labels)))
        elif labels:
            added.add(file.name)
            files.append(replace(file, label=", ".join(class_names_of(labels)), labels=labels, below=file.name))
    there = {file.name for file in files}
    unnamed = [
        Problem(file.name, "", "no-label", f"its folder {shown(file.label)} names no class, and it was not reviewed")
        for file in arranged.listing.files if file.name not in there
    ]  # fmt: skip
    strays = dict.fromkeys(matched.unused, ("row-without-file", "there is no such recording"))
    strays |= {name: ("row-ambiguous", f"it may be any of {some(fit)}") for name, fit in matched.ambiguous.items()}
    for name, (reason, why) in sorted(strays.items()):
        rows = by_listed[name]
        left_out[reason] += len(rows)
        problems.append(Problem(shown(name), "", reason, f"{why} ({count(len(rows), 'row')}, e.g. {rows[0].origin})"))
    kept = [one for one in arranged.listing.problems if one.recording not in added or one.problem in NO_FILE]
    classes = sorted({*(set(arranged.listing.folders) - site), *(name for file in files for name in file.classes)})
    return replace(
        arranged,
        listing=Listing(files, [*kept, *unnamed, *problems], classes),
        notices=[
            *arranged.notices, *read_as, *_notices(place, decisions, files, placed, left_out),
            *_new_classes(files, decisions), *_of_folders(site, doubtful),
        ],
        rows=_joined(arranged.rows, RowBooks(len(decisions), dict(left_out), dict(placed))),
    )


def _by_recording(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    found: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions:
        found[one.recording].append(one)
    return found


def _tables(place: Path) -> list[Path]:
    found = sorted(path for path in place.glob("*.csv") if path.is_file()) if place.is_dir() else [place]
    if not found or not found[0].is_file():
        raise InputError(
            f"{_SETTING} {shown(place)}: there is no such table. Expected {TABLE_NAME}, which the page of `review` "
            "saves, or a folder of such tables."
        )
    return found


def _sites(
    files: Iterable[SoundFile], of_file: Mapping[str, Sequence[Decision]], given: Iterable[str], config: Config
) -> tuple[set[str], set[str]]:
    """The folders that name no class, as their recordings were reviewed for other classes; and those that may be such.

    A folder in which nothing but "no" was decided may be that of a new species, into which somebody sorted what was
    taken for others.

    Args:
        files: whose labels are their folders.
        given: classes that other labels have.
    """
    classes = {*given, *(one.detected for some in of_file.values() for one in some)}
    classes |= {label.class_name for some in of_file.values() for one in some for label in one.labels}
    decisions: dict[str, list[Decision]] = defaultdict(list)
    for file in files:
        if file.label and not is_negative(file.label):
            decisions[file.label] += of_file.get(file.name, ())
    others = {folder for folder, some in decisions.items() if some} - classes
    others -= set(background_of(others, config.labels.negative_classes))
    with_others = {folder for folder in others if any(one.kind != "no" for one in decisions[folder])}
    site = {folder for folder in others if is_no_name(folder) or (folder in with_others and not is_species(folder))}
    if site:  # another that is called like a place is no class either, though nobody reviewed what lies in it
        site |= {folder for folder in decisions.keys() - classes if is_place(folder)}
    return site, others - site


def _labels(
    name: str, decisions: Sequence[Decision], placed: Counter[str], left_out: Counter[str], problems: list[Problem]
) -> tuple[Label, ...]:
    found: dict[Label, None] = {}
    contradicted = _contradicted(decisions)
    for one in decisions:
        if one in contradicted:
            left_out["row-contradicted"] += 1
            problems.append(Problem(name, one.detected, "row-contradicted", f"{one.origin}: {contradicted[one]}"))
        elif one.fault:
            left_out["row-invalid"] += 1
            problems.append(Problem(name, one.detected, "row-invalid", f"{one.origin}: {one.fault}"))
        elif one.labels[0] in found:
            left_out["row-repeated"] += 1
        else:
            placed[name] += 1
            found |= dict.fromkeys(one.labels)
    return tuple(found)


def _contradicted(decisions: Sequence[Decision]) -> dict[Decision, str]:
    """Those that say of one part both that a class is there and that it is not, and which says otherwise."""
    said: dict[tuple[float, float, str], dict[bool, Decision]] = defaultdict(dict)
    for one in decisions:
        for label in one.labels:
            said[label.start_s, label.end_s, label.class_name].setdefault(label.is_absent, one)
    found: dict[Decision, str] = {}
    for one in decisions:
        for label in one.labels:
            other = said[label.start_s, label.end_s, label.class_name].get(not label.is_absent)
            if other is not None:
                says = f"says {one.kind} of {label.class_name}, and {other.origin} says {other.kind}"
                found[one] = f"{says}; neither counts"
    return found


def _joined(first: RowBooks | None, second: RowBooks) -> RowBooks:
    if first is None:
        return second
    return RowBooks(
        first.found + second.found, Counter(first.left_out) + Counter(second.left_out),
        Counter(first.placed) + Counter(second.placed),
    )  # fmt: skip


def _notices(
    place: Path, decisions: Sequence[Decision], files: Sequence[SoundFile], placed: Mapping[str, int],
    left_out: Mapping[str, int],
) -> Iterator[str]:  # fmt: skip
    kinds = Counter(one.kind for one in decisions)
    n_alone = sum(bool(file.labels) and all(label.is_reviewed for label in file.labels) for file in files)
    said = [f"{kinds[kind]:,} {word}" for kind, word in zip(DECISIONS, ("yes", "no", "other class"), strict=True)]
    if odd := sum(n for kind, n in kinds.items() if kind not in DECISIONS):
        said.append(f"{odd:,} not understood")
    alone = f" Of {n_alone:,} of these, which have no other label, nothing else is learnt." if n_alone else ""
    unused = [f"{n:,} {_UNUSED[reason]}" for reason, n in left_out.items() if n]
    yield (
        f"{shown(place)}: {count(len(decisions), 'decision')} on detections ({joined(said)}); "
        f"{sum(placed.values()):,} used, in {count(len(placed), 'recording')}.{alone}"
        + (f" Not used: {joined(unused)}." if unused else "")
    )


_UNUSED = {
    "row-without-file": "of recordings that are not found", "row-invalid": "that cannot be read",
    "row-ambiguous": "on a name that several recordings have", "row-repeated": "that repeat another",
    "row-contradicted": "that contradict another",
}  # fmt: skip


def _new_classes(files: Sequence[SoundFile], decisions: Sequence[Decision]) -> Iterator[str]:
    """Classes that nothing else has: somebody typed them on the page."""
    known = {one.detected for one in decisions}
    for file in files:
        others = [label for label in file.labels if not label.is_reviewed]
        known |= {*class_names_of(others), *(() if file.labels else (file.label,))}
    new = Counter(name for file in files for name in file.classes if name not in known)
    if new:
        named = [f'"{shown(name)}" ({count(n, "recording")})' for name, n in sorted(new.items())]
        yield f"Classes that only the review has: {joined(named)} (--train.min-samples-per-class)."


def _of_folders(site: set[str], doubtful: set[str]) -> Iterator[str]:
    """What is said of folders in which recordings were reviewed for other classes."""
    if site:
        yield (
            f"Folders {quoted(sorted(site))} name no class: recordings in them were reviewed for other classes, or "
            "they are called like places beside such. If one is a class, put those recordings into another folder."
        )
    if doubtful:
        yield (
            f"Folders {quoted(sorted(doubtful))} name a class each, although recordings in them were reviewed for "
            'others only. If one is a site, call it so, e.g. "site 1".'
        )
