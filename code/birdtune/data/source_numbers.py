"""What bare numbers at the end of names mean, decided by all names of a folder.

    Readings of all recordings ─▶ decide ─▶ {recording: (source key, rule)}, keys that are one source in several classes

`creek_3` may be the third clip of a recording or the third recording. What stands before the number decides:

    ends in a number itself (`rec12_3`)         clips, unless that number is a date, a year or of a site
    class name, date, site, recorder's words    a counter of recordings: `merula_3`, `20230501_3`, `site2_3`, `STE-003`
    other words (`creek_3`)                     clips where the class folder has several of them, each counted from 0,
                                                or with three digits, or in equal steps, and most files are equally
                                                long; a warning where they are counted from 1; else a counter
    nothing (`000`)                             clips of the folder where the class has several folders of such files

and two numbers (`creek_5_10`) are start and end of a clip where the second less the first is the same in most files,
or is how long the file is.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, TypeVar

from birdtune.data.source_names import (
    CLIP_NUMBER,
    FOLDER,
    NUMBER_SPAN,
    RANK,
    STAMP,
    Reading,
    is_date,
    is_place,
    is_year,
    naming_words,
    words,
)

# Recorders that put their own name before the counter of their recordings.
_DEVICES = re.compile(r"(?:^|[\W_])(?:R-?0?\d|R-?26|H[1-8]n?|F[368]n?)$", re.IGNORECASE)
# Codes of a site, plot, quadrat, sector or transect.
_CODED_PLACES = re.compile(r"(?:^|[\W_])[PQST]-?\d{1,3}$", re.IGNORECASE)
# Ids that programs draw, as UUIDs and digests.
_HASH = re.compile(r"(?<![^\W_])(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}(?![^\W_])", re.IGNORECASE)
# What recorders call all their recordings, and count when the name is taken.
_DEFAULT_NAMES: Final = frozenset(
    {("recording",), ("new", "recording"), ("neue", "aufnahme"), ("aufnahme",), ("audio",), ("memo",)}
)
_T = TypeVar("_T")
_K = TypeVar("_K")
_GAPS = " _-.,#()[]"
_NUMBERED = re.compile(r"^(?P<head>.*?)(?P<gap>[\s_\-.,#]*\(?)(?P<number>\d{1,9})\)?$")
_COUNTED_BEFORE = re.compile(r"^(?P<number>\d{1,4})[\s_\-.]+(?P<head>\D.*)$")
_TWO = re.compile(
    r"^(?P<head>.*?)(?:[\s_\-.,#]+|^)(?P<first>\d{1,9})[\s_\-]+(?P<second>\d{1,9})[\s_]*(?P<unit>ms|s|sec|secs)?$"
)
# Most of them: the last clip of a recording is shorter, and somebody always adds a file by hand.
_MOST = 0.7
_EQUAL_S = 0.05


@dataclass(frozen=True)
class Decided:
    """Source and rule of each recording, and keys that are the same source in several classes.

    Attributes:
        uncertain: pairs of recordings that may be clips of one, with nothing but their equal lengths to show it.
    """

    named: dict[str, tuple[str, str]]
    same: list[tuple[str, str]]
    uncertain: list[tuple[str, str]]


@dataclass(frozen=True)
class _Numbered:
    reading: Reading
    head: str  # what stands before the number
    number: int
    by_tool: bool  # 0, or filled up with zeros to three digits: people count from 1
    glued: bool  # nothing between the two
    bracketed: bool


def decide(readings: Sequence[Reading]) -> Decided:
    """Decide what single names leave open. The rules stand at the head of this file."""
    named: dict[str, tuple[str, str]] = dict(_glued(readings)) | dict(_bare_stamps(readings))
    open_: list[Reading] = []
    for reading in readings:
        if reading.key or (reading.rule and reading.text and not _is_loose(reading)):
            named.setdefault(reading.recording.name, (reading.source(), reading.rule))
        else:
            open_.append(reading)
    groups = _grouped(open_, lambda reading: (reading.recording.label, reading.folder))
    maybe: dict[str, list[str]] = defaultdict(list)
    for reading, key, rule in chain(_folders(open_), _spans(groups), _clips(groups, readings)):
        if rule:
            named.setdefault(reading.recording.name, (key, rule))
        elif reading.recording.name not in named:
            maybe[key].append(reading.recording.name)
    for reading in open_:
        named.setdefault(reading.recording.name, (reading.source(reading.stem if reading.rule else reading.text), ""))
    named = _in_one_case(readings, named)
    uncertain = [pair for names in maybe.values() for pair in pairwise(names)]
    return Decided(named, list(_in_several_classes(readings, named)), uncertain)


def _in_one_case(readings: Sequence[Reading], named: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The same with one spelling of each source that clips are of; the case of letters says nothing there."""
    spelled: dict[tuple[str, str], str] = {}
    places = {}
    for reading in readings:
        key, rule = named[reading.recording.name]
        label = reading.recording.label
        places[reading.recording.name] = place = (label * key.startswith(f"{label}/"), key.casefold())
        if rule:
            spelled.setdefault(place, key)
    return {name: (spelled.get(places[name], key), rule) for name, (key, rule) in named.items()}


def _is_loose(reading: Reading) -> bool:
    """Whether its only mark is one that recordings have too, after no name of a recording."""
    return reading.loose and _kind(reading.text, reading) == "counter"


def _grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    groups: dict[_K, list[_T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _kind(head: str, reading: Reading) -> str:
    """What stands before a number: "nothing", "counter", "recording" (ends in its own number) or "word"."""
    bare = head.strip(_GAPS)
    if not bare:
        return "nothing"
    if bare[-1].isdigit():
        last = re.sub(r"\d+$", "", bare)
        digits = bare[len(last) :]
        place = words(last)[-1:]
        of_place = bool(place) and is_place(place[0]) and last.rstrip(_GAPS).casefold().endswith(place[0])
        of_place = of_place or _CODED_PLACES.search(bare) is not None
        of_device = of_place or _DEVICES.search(bare) is not None
        return "counter" if is_date(bare) or is_year(digits) or of_device else "recording"
    if _HASH.search(bare):
        return "recording"
    return "word" if naming_words(head, reading) else "counter"


_ID_AND_THREE = re.compile(r"^(XC\d{4,})(\d{3})$")


def _glued(readings: Sequence[Reading]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Clips that sox has numbered: three digits from 001 on, with nothing between them and an id."""
    glued = [(reading, match) for reading in readings if (match := _ID_AND_THREE.match(reading.key))]
    for source, family in _grouped(glued, lambda pair: pair[1][1]).items():
        numbers = sorted({int(match[2]) for _, match in family})
        if len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)):
            for reading, _ in family:
                yield reading.recording.name, (source, CLIP_NUMBER.name)


def _bare_stamps(readings: Sequence[Reading]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Whole recordings named by nothing but when they began: two recorders may begin at once, each for its class."""
    stamped = _grouped((reading for reading in readings if reading.bare), lambda reading: reading.key)
    for key, inside in stamped.items():
        if all(reading.whole for reading in inside):
            for reading in inside:
                yield reading.recording.name, (f"{reading.recording.label}/{key}", STAMP.name)


# ---- start and end ------------------------------------------------------------------------------


_Pair = tuple[Reading, re.Match[str]]  # a name, and its two numbers


def _spans(groups: dict[tuple[str, str], list[Reading]]) -> Iterator[tuple[Reading, str, str]]:
    """Clips named by their start and end, or by their start and length."""
    for group in groups.values():
        pairs = [(reading, match) for reading in group if (match := _TWO.match(reading.text))]
        lengths = Counter(_length(match) for _, match in pairs if _is_span(match))
        for head, family in _grouped(pairs, lambda pair: pair[1]["head"].casefold()).items():
            if not head.strip(_GAPS) and not family[0][0].folder:
                continue
            spans = [(reading, match) for reading, match in family if _is_span(match)]
            clips = family if _are_starts_and_lengths(family) else spans if _are_spans(head, spans, lengths) else []
            for reading, match in clips:
                yield reading, reading.source(match["head"].rstrip(_GAPS)), NUMBER_SPAN.name


def _are_starts_and_lengths(family: Sequence[_Pair]) -> bool:
    """Whether all files are as long as their second number says, and the first does not count them."""
    starts = sorted({int(match["first"]) for _, match in family})
    counted = len(starts) < 2 or starts[-1] - starts[0] < 2 * (len(starts) - 1)
    return not counted and all(_lasts(reading, int(match["second"])) for reading, match in family)


def _are_spans(head: str, family: Sequence[_Pair], lengths: Counter[int]) -> bool:
    """Whether most spans of one head are equally long, or all files are as long as their spans."""
    if not family:
        return False
    alike = _mostly_one(Counter(_length(match) for _, match in family), 2)
    alike = alike or (len(family) == 1 and _mostly_one(lengths, 3))
    # `merula_1_10`, `merula_2_11`: two counters.
    alike = alike and _kind(head, family[0][0]) != "counter"
    return alike or all(_lasts(reading, _length(match)) for reading, match in family)


def _is_span(match: re.Match[str]) -> bool:
    years = is_year(match["first"]) and is_year(match["second"])
    return int(match["first"]) < int(match["second"]) and not years


def _length(match: re.Match[str]) -> int:
    return int(match["second"]) - int(match["first"])


def _lasts(reading: Reading, length: int) -> bool:
    """Whether the file is as long as its name says, in seconds or milliseconds."""
    duration_s = reading.recording.facts.duration_s
    return any(abs(length / unit - duration_s) <= 0.1 for unit in (1, 1000))


def _mostly_one(lengths: Counter[int], least: int) -> bool:
    total = lengths.total()
    return total >= least and lengths.most_common(1)[0][1] >= _MOST * total


# ---- one number ---------------------------------------------------------------------------------


def _clips(
    groups: dict[tuple[str, str], list[Reading]], readings: Sequence[Reading]
) -> Iterator[tuple[Reading, str, str]]:
    """Clips that are numbered; by no rule where they may be whole recordings as well."""
    wholes = {reading.source().casefold() for reading in readings}
    counted = {place: [one for reading in group if (one := _numbered(reading))] for place, group in groups.items()}
    words_are_recordings = _words_are_recordings(counted.values())
    for place, group in counted.items():
        dates = _short_dates(group)
        for one in group:
            kind = _kind(one.head, one.reading)
            if kind == "counter" and not dates and re.fullmatch(r"\d{6}", one.head.strip(_GAPS)):
                kind = "recording"
            key = one.reading.source(one.head.rstrip(_GAPS))
            a_copy = one.bracketed and key.casefold() in wholes and words(one.head) not in _DEFAULT_NAMES
            of_word = kind == "word" and not one.glued
            if kind == "recording" or a_copy or (of_word and words_are_recordings[place] == "clips"):
                yield one.reading, key, CLIP_NUMBER.name
            elif of_word and words_are_recordings[place] == "maybe":
                yield one.reading, key, ""


def _numbered(reading: Reading) -> _Numbered | None:
    text = re.sub(r"(?<=\d)[\s_\-]+\d+\s*(?:ms|s|sec|secs)$", "", reading.text)  # how long it is
    if before := _COUNTED_BEFORE.match(text) if not text[-1:].isdigit() else None:
        number = int(before["number"])
        return _Numbered(reading, before["head"], number, by_tool=True, glued=False, bracketed=False)
    match = _NUMBERED.match(text)
    if match is None:
        return None
    gap, digits = match["gap"], match["number"]
    # `creek.wav-1` keeps the name of the file that it was cut from.
    by_tool = not int(digits) or (len(digits) > 2 and digits[0] == "0") or reading.text != reading.stem
    return _Numbered(reading, match["head"], int(digits), by_tool, not gap, "(" in gap)


def _short_dates(group: Sequence[_Numbered]) -> bool:
    """Whether all six-digit heads can be dates: of ids, some cannot."""
    heads = {one.head.strip(_GAPS) for one in group}
    return all(is_date(head) for head in heads if re.fullmatch(r"\d{6}", head))


def _words_are_recordings(groups: Iterable[Sequence[_Numbered]]) -> dict[tuple[str, str], str]:
    """Class folder → whether what stands before numbers names recordings there: "clips", "maybe" or "".

    "maybe" where equal lengths alone show it, and the numbers are as people count: `Helgoland_1`, `Smith_02`.

    A folder with one such name alone is read as most others are. The clips of a recording may lie in several
    classes, so they are counted over all of them.
    """
    groups = list(groups)
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for one in chain.from_iterable(groups):
        numbers[_head(one)].add(one.number)
    states: dict[tuple[str, str], str] = {}
    lone = []
    for group in groups:
        families = _grouped(
            (one for one in group if not one.glued and _kind(one.head, one.reading) == "word"),
            lambda one: naming_words(one.head, one.reading),
        )
        # `blackbird_3` beside `common_blackbird_3`: what all have is a name of the class.
        if families and frozenset.intersection(*families) in families:
            families = {frozenset(): list(chain.from_iterable(families.values()))}
        if not families:
            continue
        first = group[0].reading
        place = (first.recording.label, first.folder)
        runs = [family for family in families.values() if len(family) > 1]
        if len(families) == 1:
            lone.append(place)
        as_clips = len(runs) > 1 and all(_is_run(numbers[_head(family[0])]) for family in runs)
        as_clips = as_clips and _equally_long(runs)
        by_tool = any(one.by_tool or _in_steps(numbers[_head(one)]) for family in runs for one in family)
        states[place] = "" if not as_clips else "clips" if by_tool else "maybe"
    counts = Counter(states.values())
    usual = next((state for state in ("clips", "maybe") if counts[state] > len(lone)), "")
    return defaultdict(str, {place: usual if place in lone else state for place, state in states.items()})


def _head(one: _Numbered) -> tuple[str, str]:
    return one.reading.folder.casefold(), one.head.casefold()


def _is_run(numbers: set[int]) -> bool:
    """Whether numbers count from 0 or 1 with few gaps, or go in equal steps as seconds do."""
    dense = min(numbers) <= 1 and max(numbers) - min(numbers) < 2 * len(numbers)
    return dense or _in_steps(numbers)


def _in_steps(numbers: set[int]) -> bool:
    return len(numbers) > 1 and math.gcd(*numbers) > 1


def _equally_long(families: Iterable[Sequence[_Numbered]]) -> bool:
    lengths = sorted(one.reading.recording.facts.duration_s for family in families for one in family)
    steps = [k for k in range(1, len(lengths)) if lengths[k] - lengths[k - 1] > _EQUAL_S]
    return max(b - a for a, b in pairwise([0, *steps, len(lengths)])) >= 0.5 * len(lengths)


def _only_numbered(reading: Reading) -> bool:
    """Whether a file has no name but a number, or that of its folder."""
    head = re.sub(r"\d+$", "", reading.text).strip(_GAPS).casefold()
    return not head or head == reading.folder.rpartition("/")[2].casefold()


# ---- folders, and classes -----------------------------------------------------------------------


def _folders(open_: Sequence[Reading]) -> Iterator[tuple[Reading, str, str]]:
    """Files that have no name but a number or a mark, in a folder that has one."""
    nameless = [reading for reading in open_ if reading.folder and _only_numbered(reading)]
    for _, inside in _grouped(nameless, lambda reading: reading.recording.label).items():
        folders = {reading.folder for reading in inside}
        for reading in inside:
            name = reading.folder.rpartition("/")[2]
            named = _kind(name, reading) in ("word", "recording")
            if reading.span or (named and (reading.rule or len(folders) > 1)):
                yield reading, reading.source(""), FOLDER.name


def _in_several_classes(readings: Sequence[Reading], named: dict[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Keys of clips whose recording was cut for several classes: the same name, but no clip in two of them.

    Two recordings of one name each have a clip 0; and if they were the same recording, that clip would be the same
    sound in two classes, and not be used.
    """
    cut = [reading for reading in readings if not reading.key and named[reading.recording.name][1]]
    for _, inside in _grouped(cut, lambda reading: _below_class(reading, named)).items():
        stems = {(reading.recording.label, reading.stem.casefold()) for reading in inside}
        ranked = any(reading.rule == RANK.name for reading in inside)
        if ranked or len({stem for _, stem in stems}) == len(stems) > 2:
            yield from pairwise(sorted({named[reading.recording.name][0] for reading in inside}))


def _below_class(reading: Reading, named: dict[str, tuple[str, str]]) -> str:
    return named[reading.recording.name][0].removeprefix(reading.recording.label).casefold()
