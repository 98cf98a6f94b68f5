"""Links between recordings of one file, and by when and with which recorder they were made.

    recordings ─▶ recorded_links ─▶ Link

What files say themselves (audio/origin.py) counts most: clips carry the recorder's id, and the time of the recording
that they were cut from or their own. Clips whose names say when they begin are linked too, if each begins where another
of the same site or recorder ends.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from birdtune.data.scan import Recording
from birdtune.data.source_names import STAMP, read
from birdtune.data.sources import Link

# Clocks in names and files count whole seconds.
_TOLERANCE_S: Final = 1.0
# Recorders that run all day begin a new file every minute or later; what follows on another faster than that was cut.
_LONGEST_CLIP_S: Final = 60.0
# Shorter ones, as tools cut them, that are less than this apart are likely of one recording, but it does not show.
_SHORT_CLIP_S: Final = 15.0
_NEAR_S: Final = 60.0
# Between clips of one recording lies less than this: recorders close a file after a day at the latest.
_LONGEST_RECORDING_S: Final = 86_400.0
# Names that recorders give again and again, each counting from 1: `ZOOM0001`.
_COUNTER = re.compile(r"[^\W\d_]*[\W_]*\d[\W\d_]*")
_XENO_CANTO = re.compile(r"xc\d+")
CHANNELS: Final = "channels of one file"
IN_FILES: Final = "recorder and time in the files"
ORIGINAL: Final = "original file name in the files"
IN_NAMES: Final = "times in the names that follow on one another"
NEAR: Final = "short, of one place or recorder, and less than a minute apart"


def recorded_links(recordings: Sequence[Recording]) -> Iterator[Link]:
    """Links between recordings of one origin, and between the channels of a file: in chains, not each with all others.

    Args:
        recordings: sorted by name.
    """
    for first, second in pairwise(recording for recording in recordings if recording.channel is not None):
        if first.path == second.path:
            yield Link(first.name, second.name, CHANNELS, joins=True)
    by_recorder: dict[str, list[tuple[float, Recording]]] = defaultdict(list)
    by_original: dict[tuple[str, str], list[Recording]] = defaultdict(list)
    by_place: dict[str, list[tuple[float, Recording]]] = defaultdict(list)
    for recording in recordings:
        origin = recording.facts.origin
        if origin is not None and origin.original:
            by_original[origin.recorder, origin.original.casefold()].append(recording)
        if origin is not None and origin.recorder and origin.start_s is not None:
            by_recorder[origin.recorder].append((origin.start_s, recording))
        elif recording.facts.duration_s < _LONGEST_CLIP_S and (place_and_start := _named(recording)):
            by_place[place_and_start[0]].append((place_and_start[1], recording))
    for (recorder, original), same in by_original.items():
        yield from _of_one_original(recorder, original, same)
    for rule, groups in ((IN_FILES, by_recorder), (IN_NAMES, by_place)):
        for timed in groups.values():
            yield from _following(timed, rule)


def _of_one_original(recorder: str, original: str, same: list[Recording]) -> Iterator[Link]:
    """Links of recordings that name one file as theirs, unless they are days apart.

    A counter of an unknown recorder proves nothing, and only warns.
    """
    stem = original.rpartition(".")[0] or original
    by_id = _XENO_CANTO.fullmatch(original) is not None
    proven = by_id or bool(recorder) or not _COUNTER.fullmatch(stem) or STAMP.search(stem) is not None
    detail = f"{recorder} {original}".strip()
    starts = [(_start_s(recording), recording) for recording in same]
    timed = sorted(((start_s, one) for start_s, one in starts if start_s is not None), key=lambda pair: pair[0])
    untimed = [one for start_s, one in starts if start_s is None]
    apart = {
        second.name for (first_s, _), (second_s, second) in pairwise(timed)
        if second_s - first_s > _LONGEST_RECORDING_S and not by_id
    }  # fmt: skip
    # Where times contradict, it does not show whose the recordings without a time are.
    chain = [one for _, one in timed] + ([] if apart else untimed)
    for first, second in pairwise(chain):
        if second.name not in apart:
            yield Link(first.name, second.name, ORIGINAL, joins=proven, detail=detail)


def _start_s(recording: Recording) -> float | None:
    return recording.facts.origin.start_s if recording.facts.origin else None


def _following(timed: list[tuple[float, Recording]], rule: str) -> Iterator[Link]:
    """Links of each recording with the one before it, where it begins with it, within it or at its end, or soon."""
    timed.sort(key=lambda pair: (pair[0], pair[1].name))
    end_s, last = timed[0][0] + timed[0][1].facts.duration_s, timed[0]
    for start_s, recording in timed[1:]:
        same = start_s == last[0] or start_s < end_s - _TOLERANCE_S
        longest_s = max(recording.facts.duration_s, last[1].facts.duration_s)
        if same or (start_s <= end_s + _TOLERANCE_S and longest_s < _LONGEST_CLIP_S):
            yield Link(last[1].name, recording.name, rule, joins=True, detail=_detail(last[1], rule))
        elif start_s <= end_s + _NEAR_S and longest_s <= _SHORT_CLIP_S:
            yield Link(last[1].name, recording.name, NEAR, joins=False)
        if start_s + recording.facts.duration_s >= end_s:
            end_s, last = start_s + recording.facts.duration_s, (start_s, recording)


def _detail(recording: Recording, rule: str) -> str:
    """The recorder and the time by the file, as they are printed."""
    origin = recording.facts.origin
    if rule != IN_FILES or origin is None or origin.start_s is None:
        return ""
    return f"{origin.recorder}, {datetime.fromtimestamp(origin.start_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _named(recording: Recording) -> tuple[str, float] | None:
    """What stands around the time in a name, and the time in seconds; None where it is not one to the second."""
    if not STAMP.search(recording.below_class.name):
        return None
    reading = read(recording)
    if reading.rule != STAMP.name or not reading.whole:
        return None
    match = STAMP.search(reading.key)
    digits = re.sub(r"\D", "", match[0].partition("+")[0]) if match else ""
    if match is None or len(digits) not in (12, 14):
        return None
    try:
        stamp = datetime.strptime(digits, "%Y%m%d%H%M%S" if len(digits) == 14 else "%y%m%d%H%M%S")
    except ValueError:  # the day stands first, or there is no such day
        return None
    place = reading.key[: match.start()] + reading.key[match.end() :]
    return (f"{recording.label}/{place}" if reading.bare else place), stamp.replace(tzinfo=UTC).timestamp()
