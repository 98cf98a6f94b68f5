"""Which recording is train, val or test: grouped by source, stable over time.

    recordings + (a split file | earlier split.csv) ─▶ assign ─▶ {name: Place(group, split)}

A *group* is a source recording: all slices of it, and all copies, stand on one side, so that no
model is tested on what it was trained with. Groups are placed once; a later run keeps them and places only
what is new.
Which source a recording is of, `sources` finds out.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from birdtune.data.scan import Problem, Recording
from birdtune.data.sources import Link, Sources, find_sources
from birdtune.data.tables import SIDE_WORDS, fold_of, sides_of, with_names
from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.files import read_csv, read_json, write_csv, write_json
from birdtune.runtime.text import count
from birdtune.settings import SplitSettings

SPLITS = ("train", "val", "test")
COLUMNS = ("recording", "class", "group", "split", "content")


@dataclass(frozen=True)
class Place:
    """Where a recording stands."""

    group: str
    split: str  # "train", "val" or "test"


def compile_group_regex(text: str | None) -> re.Pattern[str] | None:
    """Compile --split.group-regex. Raises SettingsError if it is no regular expression."""
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as fault:
        raise SettingsError(
            f"--split.group-regex {shown(text)!r}: is no regular expression ({fault}). "
            r"Example: '^(\w+-\d+)_' takes what stands before the first underscore after a number."
        ) from fault


@dataclass(frozen=True)
class Given:
    """A split that the data bring themselves, by names of folders or by a column of the table of labels."""

    source: str  # what gives it, in words
    sides: Mapping[str, str]  # recording → "train", "val" or "test"; empty where there are folds
    folds: Mapping[str, int]  # recording → fold


@dataclass(frozen=True)
class _Drawn:
    """The split, what could not be placed, and what should be known about it."""

    places: dict[str, Place]
    problems: list[Problem]
    notices: list[str]


@dataclass(frozen=True)
class SplitResult(_Drawn):
    """The split, and the sources that it is drawn by."""

    sources: Sources


def assign(
    recordings: Sequence[Recording],
    settings: SplitSettings,
    earlier: Path,
    given: Given | None = None,
    links: Iterable[Link] = (),
    column: Mapping[str, str] | None = None,
) -> SplitResult:
    """Place every recording.

    Args:
        recordings: the usable ones.
        earlier: split.csv of an earlier run; what stands there stays where it is.
        given: goes before `earlier`, and --split.file before both.
        links: evidence beyond names of which recordings are of one source recording.
        column: recording → source, by --split.group-column.

    Raises:
        SettingsError, InputError: the split file or its folds cannot be obeyed.
    """
    pattern = compile_group_regex(settings.group_regex)
    if settings.group_column and pattern is not None:
        raise SettingsError("--split.group-column and --split.group-regex both name the sources. Give one of them.")
    sources = find_sources(recordings, pattern, links, column)
    groups = sources.keys
    notices: list[str] = []
    if column and (without := sum(recording.name not in column for recording in recordings)):
        notices.append(
            f"--split.group-column {shown(settings.group_column)} is empty for {without:,} of {len(groups):,} "
            "recordings; each of those counts as a source of its own."
        )
    unmatched = sum(
        1 for recording in recordings if pattern and not pattern.search(str(recording.below_class))
    )
    if unmatched:
        notices.append(
            f"--split.group-regex matches {len(groups) - unmatched:,} of {len(groups):,} recordings; "
            "each of the others counts as a source of its own."
        )
    folds = settings.file is not None or (given is not None and given.folds)
    if not folds and (settings.test_fold is not None or settings.val_fold is not None):
        raise SettingsError(
            "--split.test-fold and --split.val-fold choose among folds, and there are none: name a file that has them "
            "(--split.file CSV), or sort the class folders into fold1/, fold2/ and so on."
        )
    if given is None:
        notices += _kept_notices(settings, earlier)
    if settings.file is not None:
        result = _obey(recordings, groups, settings)
    elif given is not None:
        result = _obey_given(recordings, groups, settings, given, _read_earlier(earlier))
    else:
        result = _place(recordings, groups, settings, _read_earlier(earlier))
    if all(place.split != "train" for place in result.places.values()):
        raise InputError(
            "The split leaves no recording for training. Check --split.file and --split.test-fold."
        )
    return SplitResult(
        result.places,
        result.problems,
        notices + result.notices + _remarks(recordings, result.places),
        sources,
    )


def write(
    path: Path, recordings: Sequence[Recording], places: Mapping[str, Place], earlier: Path | None = None
) -> None:
    """Write split.csv: the places of this run, and below them those of recordings in `earlier` that are gone.

    They come back to the same side if they come back.
    """
    rows = [
        {"recording": recording.name, "class": recording.label, "group": places[recording.name].group,
         "split": places[recording.name].split, "content": recording.content}
        for recording in recordings if recording.name in places
    ]  # fmt: skip
    present = {str(row["recording"]) for row in rows}
    gone = [row for row in (_read_rows(earlier) if earlier else ()) if row["recording"] not in present]
    write_csv(path, COLUMNS, [*rows, *({key: row.get(key, "") for key in COLUMNS} for row in gone)])


def remember_settings(split: Path, settings: SplitSettings) -> None:
    """Note beside split.csv what it is drawn with, if it is drawn now: call it before `write`."""
    if settings.file is None and not split.exists():
        write_json(_settings_path(split), _drawn_with(settings))


def _drawn_with(settings: SplitSettings) -> dict[str, object]:
    names = {"seed", "val_fraction", "test_fraction", "group_regex", "group_column", "acoustic"}
    return settings.model_dump(include=names)


def _settings_path(split: Path) -> Path:
    return split.with_suffix(".json")


def _kept_notices(settings: SplitSettings, earlier: Path) -> list[str]:
    before = read_json(_settings_path(earlier))
    if settings.file is not None or not earlier.exists() or before in (None, _drawn_with(settings)):
        return []
    return [
        f"The settings of the split have changed since {shown(earlier)} was drawn. What stands there is kept, and they "
        "count for new recordings only; delete it to draw anew."
    ]


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    rows = read_csv(path)
    if rows and not {"recording", "split", "group"} <= set(rows[0]):
        raise InputError(
            f"{shown(path)}: its columns are {shown(', '.join(rows[0]))}; expected {', '.join(COLUMNS)}. "
            "Delete it to draw a new split."
        )
    return rows


def _read_earlier(path: Path) -> dict[str, str]:
    """Group, recording and content of an earlier split → its side."""
    placed: dict[str, str] = {}
    for row in _read_rows(path):
        side = row["split"]
        if side not in SPLITS:
            raise InputError(
                f"{shown(path)}: {shown(row['recording'])} has the split {shown(side)!r}; expected train, val or test."
            )
        for key in (f"group:{row['group']}", f"name:{row['recording']}", f"content:{row.get('content', '')}"):
            placed.setdefault(key, side)
    placed.pop("content:", None)
    return placed


def _place(
    recordings: Sequence[Recording],
    groups: Mapping[str, str],
    settings: SplitSettings,
    placed: Mapping[str, str],
) -> _Drawn:
    """Place groups class by class, each where the class lacks most."""
    members: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        members[groups[recording.name]].append(recording)
    side = {
        group: known for group, inside in members.items() if (known := _known_side(group, inside, placed))
    }
    placed_before = frozenset(side)
    by_class: dict[str, dict[str, int]] = defaultdict(dict)  # class → its recordings in each group
    for group, inside in members.items():
        for name, n in Counter(name for recording in inside for name in recording.classes).items():
            by_class[name][group] = n
    # The rarest class first, as it has the fewest ways to be divided (Sechidis et al. 2011, "On the stratification of
    # multi-label data"); groups of several classes then count for the others as well.
    for _, sizes in sorted(by_class.items(), key=lambda item: (len(item[1]), item[0])):
        _place_class(list(sizes), sizes, side, settings)
    for group in set(members) - set(side):  # recordings without a label
        side[group] = "train"
    _teach_every_class(members, side, new={group for group in members if group not in placed_before})
    places = {name: Place(group, side[group]) for name, group in groups.items()}
    return _Drawn(places, [], _joined_notices(members, placed))


def _joined_notices(members: Mapping[str, Sequence[Recording]], placed: Mapping[str, str]) -> list[str]:
    """Notices of sources that are one now, and whose parts were on different sides before."""
    earlier = {
        group: {placed[key] for recording in inside if (key := f"name:{recording.name}") in placed}
        for group, inside in members.items()
    }
    joined = sorted(group for group, sides in earlier.items() if len(sides) > 1)
    if not joined:
        return []
    return [
        f"Recordings of {count(len(joined), 'source')} (e.g. {shown(joined[0])}) stood on different sides of the "
        "earlier split; each source stands on one side now. Scores cannot be compared with those of earlier runs."
    ]


def _teach_every_class(
    members: Mapping[str, Sequence[Recording]], side: dict[str, str], new: set[str]
) -> None:
    """Move a new group to train for each class that has none there.

    That comes of sources under several classes: they were placed for the sake of another class.
    """
    of_class: dict[str, list[str]] = defaultdict(list)
    for group, inside in sorted(members.items()):
        for name in {name for recording in inside for name in recording.classes}:
            of_class[name].append(group)
    for _, groups in sorted(of_class.items()):
        movable = [group for group in groups if group in new]
        if movable and all(side[group] != "train" for group in groups):
            side[movable[0]] = "train"


def _known_side(group: str, inside: Iterable[Recording], placed: Mapping[str, str]) -> str | None:
    if (side := placed.get(f"group:{group}")) is not None:
        return side
    for recording in inside:
        # Names of copies as well: one that came since may stand for the others now.
        names = (f"name:{name}" for name in (recording.name, *recording.copies))
        for key in (*names, f"content:{recording.content}"):
            if (side := placed.get(key)) is not None:
                return side
    return None


def _place_class(
    groups: list[str], sizes: Mapping[str, int], side: dict[str, str], settings: SplitSettings
) -> None:
    """Place the groups of one class that have no side yet; `side` is extended.

    One group: train. Two: train and test. Three or more: each side that is wanted has at least one,
    and the shares come as near to the wanted ones as whole groups allow. Large groups are placed
    first; among equals a hash of seed and name decides, so that nothing depends on what else there is.
    """
    wanted = {"train": 1 - settings.val_fraction - settings.test_fraction,
              "val": settings.val_fraction, "test": settings.test_fraction}  # fmt: skip
    total = sum(sizes.values())
    have = Counter[str]()
    count = Counter[str]()
    for group in groups:
        if group in side:
            have[side[group]] += sizes[group]
            count[side[group]] += 1
    new = sorted(
        (group for group in groups if group not in side),
        key=lambda group: (-sizes[group], _draw(group, settings.seed)),
    )
    # Sides that must not stay empty, in order of need; a class of two has no validation.
    needed = [name for name in ("train", "test", "val") if wanted[name] > 0][: max(1, len(groups))]
    for position, group in enumerate(new):
        empty = [name for name in needed if not count[name]]
        if empty and len(empty) >= len(new) - position:
            chosen = empty[0]
        else:
            chosen = max(SPLITS, key=lambda name: (wanted[name] * total - have[name], wanted[name]))
        side[group] = chosen
        have[chosen] += sizes[group]
        count[chosen] += 1


def _draw(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{group}".encode("utf-8", "backslashreplace")).hexdigest()


def _obey(recordings: Sequence[Recording], groups: Mapping[str, str], settings: SplitSettings) -> _Drawn:
    """Place recordings as the user's file says."""
    assert settings.file is not None
    path = Path(settings.file)
    sides = _read_user_split(path, settings)
    by_file_name: dict[str, list[str]] = defaultdict(list)
    for listed in sides:
        by_file_name[PurePosixPath(listed).name].append(listed)
    places: dict[str, Place] = {}
    problems: list[Problem] = []
    used: set[str] = set()
    for recording in recordings:
        names = (recording.name, *recording.copies)
        listed_as = next(filter(None, (_listed_as(name, sides, by_file_name) for name in names)), None)
        if listed_as is None:
            detail = f"{shown(path)} does not list it"
            problems.append(Problem(recording.name, recording.label, "not-in-split", detail))
            continue
        used.add(listed_as)
        places[recording.name] = Place(groups[recording.name], sides[listed_as])
    notices = []
    if missing := [listed for listed in sides if listed not in used]:
        notices.append(
            f"{shown(path)} lists {count(len(missing), 'recording')} missing or unusable, e.g. {shown(missing[0])}."
        )
    if not places:
        raise InputError(
            f"{shown(path)}: lists none of the recordings that were found. Expected names like "
            f"{recordings[0].name} (path below the data folder) or {PurePosixPath(recordings[0].name).name}."
        )
    return _Drawn(places, problems, notices)


def _obey_given(
    recordings: Sequence[Recording],
    groups: Mapping[str, str],
    settings: SplitSettings,
    given: Given,
    placed: Mapping[str, str],
) -> _Drawn:
    """Place recordings as the data say, and those of which they say nothing where their class lacks most."""
    sides = dict(given.sides)
    notices = []
    if given.folds:
        last = max(given.folds.values())
        test = last if settings.test_fold is None else settings.test_fold
        chosen = settings.model_copy(update={"test_fold": test})
        folds = list(given.folds.values())
        sides = dict(zip(given.folds, _sides_of_folds(given.source, folds, chosen), strict=True))
        if settings.test_fold is None:
            notices.append(
                f"Fold {last} is test, as the last one; another one by --split.test-fold, and validation by "
                "--split.val-fold."
            )
    of_group = {f"group:{groups[recording.name]}": sides[recording.name]
                for recording in recordings if recording.name in sides}  # fmt: skip
    rest = [recording for recording in recordings if recording.name not in sides]
    drawn = _place(rest, {recording.name: groups[recording.name] for recording in rest}, settings,
                   {**placed, **of_group})  # fmt: skip
    places = {recording.name: Place(groups[recording.name], sides[recording.name])
              for recording in recordings if recording.name in sides}  # fmt: skip
    if both := [recording for recording in recordings
                if len({sides.get(name) for name in (recording.name, *recording.copies)}) > 1]:  # fmt: skip
        notices.append(
            f"Copies on several sides: {count(len(both), 'recording')}, e.g. {both[0].name} and {both[0].copies[0]}; "
            "each counts once, on the side of the first name."
        )
    if rest:
        notices.append(
            f"Without a side in {given.source}: {count(len(rest), 'recording')}, e.g. {rest[0].name}; divided as usual."
        )
    return _Drawn({**places, **drawn.places}, [], notices)


def _listed_as(name: str, sides: Mapping[str, str], by_file_name: Mapping[str, list[str]]) -> str | None:
    """How a split file calls a recording: by its path, by the end of it, or by a longer path that ends so."""
    name = unicodedata.normalize("NFC", name)
    if name in sides:
        return name
    possible = [
        listed
        for listed in by_file_name.get(PurePosixPath(name).name, ())
        if f"/{name}".endswith(f"/{listed}") or listed.endswith(f"/{name}")
    ]
    return possible[0] if len(possible) == 1 else None


def _read_user_split(path: Path, settings: SplitSettings) -> dict[str, str]:
    rows = with_names(read_csv(path), ("recording", "split", "fold"))
    columns = set(rows[0]) if rows else set()
    if "recording" not in columns or not columns & {"split", "fold"}:
        raise InputError(
            f"{shown(path)}: its columns are {shown(', '.join(sorted(columns))) or '(none)'}; expected "
            "`recording,split` (train, val, test) or `recording,fold` with --split.test-fold."
        )
    sides = _sides_of_fold_rows(path, rows, settings) if "split" not in columns else _sides_of_names(path, rows)
    result: dict[str, str] = {}
    for row, side in zip(rows, sides, strict=True):
        if result.setdefault(unicodedata.normalize("NFC", row["recording"]), side) != side:
            raise InputError(
                f"{shown(path)}: {shown(row['recording'])} stands there twice, on two sides. Keep one."
            )
    return result


def _sides_of_names(path: Path, rows: list[dict[str, str]]) -> list[str]:
    meant = sides_of(row["split"] for row in rows)
    for number, row in enumerate(rows, start=2):
        if row["split"] not in meant:
            raise InputError(
                f"{shown(path)}, row {number:,}: the split {shown(row['split'])!r}; expected {SIDE_WORDS}. A recording "
                "that is not to be used has no row."
            )
    return [meant[row["split"]] for row in rows]


def _sides_of_fold_rows(path: Path, rows: list[dict[str, str]], settings: SplitSettings) -> list[str]:
    folds = []
    for number, row in enumerate(rows, start=2):
        if (fold := fold_of(row["fold"], number=True)) is None:
            raise InputError(
                f"{shown(path)}, row {number:,}: a fold must be a whole number, and this is {shown(row['fold'])!r}. A "
                "recording that is not to be used has no row."
            )
        folds.append(fold)
    return _sides_of_folds(shown(path), folds, settings)


def _sides_of_folds(source: str, folds: list[int], settings: SplitSettings) -> list[str]:
    known = sorted(set(folds))
    listed = ", ".join(map(str, known))
    test = settings.test_fold
    if test is None:
        raise SettingsError(f"{source} has folds ({listed}): say which one is test, --split.test-fold {known[-1]}.")
    if test not in known:
        raise SettingsError(f"--split.test-fold {test}: {source} has the folds {listed}.")
    if settings.val_fold is not None and (settings.val_fold not in known or settings.val_fold == test):
        raise SettingsError(
            f"--split.val-fold {settings.val_fold}: expected one of {listed}, but not the test fold."
        )
    following = known[(known.index(test) + 1) % len(known)]
    val = settings.val_fold if settings.val_fold is not None else following if len(known) > 2 else None
    return ["test" if fold == test else "val" if fold == val else "train" for fold in folds]


def _remarks(recordings: Sequence[Recording], places: Mapping[str, Place]) -> list[str]:
    """What a careful reader of the results should know about the split."""
    sides_of_class: dict[str, set[str]] = defaultdict(set)
    sides_of_group: dict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        if recording.name in places:
            place = places[recording.name]
            for name in recording.classes:
                sides_of_class[name].add(place.split)
            sides_of_group[place.group].add(place.split)
    remarks = []
    if torn := sorted(group for group, sides in sides_of_group.items() if len(sides) > 1):
        remarks.append(
            f"On more than one side of the split, as the split given says: {count(len(torn), 'source recording')}, "
            f"e.g. {shown(torn[0])}. Results will look better than they are."
        )
    untrained = sorted(label for label, sides in sides_of_class.items() if "train" not in sides)
    if untrained:
        remarks.append(f"No training recording for {_list(untrained)}: it cannot be learnt.")
    for name, word in (("test", "tested"), ("val", "validated")):
        lacking = sorted(label for label, sides in sides_of_class.items() if name not in sides)
        if lacking and any(name in sides for sides in sides_of_class.values()):
            remarks.append(f"Too few source recordings to be {word}: {_list(lacking)}.")
        elif lacking:
            remarks.append(f"No class has a recording to be {word}.")
    return remarks


def _list(names: Sequence[str], most: int = 8) -> str:
    tail = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + tail
