"""Which files are used, and why the others are not.

    Listing + FileIndex ─▶ select ─▶ Recording | Problem

The books always balance: files found = recordings used + problems with `used` False.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from birdtune.audio.decode import SoundFacts
from birdtune.audio.front_end import FrontEnd
from birdtune.data import quality
from birdtune.data.file_index import Examined, FileIndex
from birdtune.data.labels import Label, class_names_of
from birdtune.data.scan import NO_FILE, Listing, Problem, Recording, SoundFile
from birdtune.errors import InputError, shown

# libsndfile's names of formats → endings that announce them.
_ENDINGS = {
    "FLAC": {".flac"}, "OGG": {".ogg", ".oga", ".opus"}, "MP3": {".mp3"}, "MPEG": {".mp3"},
    "AIFF": {".aif", ".aiff", ".aifc"},
    "WAV": {".wav", ".wave", ".bwf"}, "WAVEX": {".wav", ".wave", ".bwf"},
}  # fmt: skip


# Where at least this share of all sounds, and so many, lie under several classes, that was meant; fewer are mistakes.
_MEANT_SHARE, _MEANT = 0.05, 5
# Times are rounded, and MP3 pads: a label that ends so much later ends with its recording.
ROUNDING_S = 0.1


def select(
    listing: Listing,
    file_index: FileIndex,
    unusable: Mapping[str, Problem],
    *,
    spec: FrontEnd,
    short: str,
    longest_s: float,
    output: str = "softmax",
    background: Sequence[str] = (),
) -> tuple[list[Recording], list[Problem]]:
    """Decide for every file whether it is used.

    Args:
        output: "softmax": a recording has one class; "sigmoid": the same sound under several classes has them all;
            "auto": that as well, if it is so of many recordings, as where somebody sorted them so on purpose.
        background: names of classes that are never joined with others.
        short: "pad" or "skip", for sounds shorter than a window of `spec`.

    Returns:
        recordings sorted by name, and the problems of all others (remarks on used ones included).
    """
    problems = [*listing.problems, *unusable.values()]
    usable: list[Recording] = []
    for file in listing.files:
        content = file_index.content(file)
        if file.name in unusable or content is None:
            continue
        outcome = _outcome(file, file_index.examined(content), spec, short, longest_s)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            labels, wrong = _within(file, outcome.duration_s)
            problems += wrong
            if labels:
                usable.append(
                    Recording(file.name, file.path, labels, content, outcome, below=file.below, channel=file.channel)
                )
    usable, doubled = _without_duplicates(sorted(usable, key=lambda recording: recording.name), output, background)
    remarks = [
        problem
        for recording in usable
        for problem in (_misnamed(recording), _damaged(recording), quality.padded(recording, spec))
        if problem
    ]
    of_sound = [
        Problem(recording.name, recording.label, problem, detail, used=True)
        for recording in usable
        for problem, detail in quality.remarks(recording.facts)
    ]
    return usable, sorted([*problems, *doubled, *remarks, *of_sound], key=lambda problem: problem.recording)


def _outcome(
    file: SoundFile, found: Examined | None, spec: FrontEnd, short: str, longest_s: float
) -> Problem | SoundFacts:
    assert found is not None, f"{file.name} was never examined"
    if found.facts is None:
        return Problem(file.name, file.label, found.problem, found.detail)
    if found.facts.duration_s > longest_s:
        detail = f"{found.facts.duration_s / 3600:,.1f} h, more than audio.max-hours = {longest_s / 3600:g}"
        return Problem(file.name, file.label, "too-long", detail)
    if short == "skip" and spec.samples(found.facts.duration_s) < spec.window_samples:
        detail = f"{found.facts.duration_s:.2f} s, a window needs {spec.receptive_s:g} s"
        return Problem(file.name, file.label, "too-short", detail)
    if silence := quality.silence(found.facts):
        return Problem(file.name, file.label, "silent", silence)
    return found.facts


def _within(file: SoundFile, duration_s: float) -> tuple[tuple[Label, ...], list[Problem]]:
    """The labels that begin before the recording ends, trimmed to it; and problems of those that do not lie in it."""
    labels = file.labels or (Label(file.label),)
    inside = [label for label in labels if label.start_s < duration_s]
    kept = tuple(
        replace(label, end_s=duration_s) if _runs_past(label, duration_s) else label for label in inside
    )
    # A row may have given several labels, and is one problem.
    long = {label.origin: label for label in inside if label.origin and _runs_past(label, duration_s)}
    late = {label.origin: label for label in labels if label.origin and label not in inside}
    rows = [
        *(Problem(file.name, label.class_name, "row-trimmed",
                  f"{origin}: {label.start_s:g} to {label.end_s:g} s, trimmed to the end at {duration_s:.2f} s",
                  used=True)
          for origin, label in long.items()),
        *(Problem(file.name, label.class_name, "row-beyond-end",
                  f"{origin}: begins at {label.start_s:g} s, after the end at {duration_s:.2f} s")
          for origin, label in late.items()),
    ]  # fmt: skip
    if len(kept) == len(labels) or (class_names_of(kept) and late):
        return kept, rows
    first = next(label for label in labels if label.start_s >= duration_s)
    detail = (
        f"{len(labels) - len(kept):,} of {len(labels):,} labels begin after its end at {duration_s:.2f} s, e.g. "
        f"{shown(first.class_name)} at {first.start_s:g} s"
    )
    is_used = bool(class_names_of(kept))
    return (kept if is_used else ()), [*rows, Problem(file.name, file.label, "invalid-label", detail, used=is_used)]


def _runs_past(label: Label, duration_s: float) -> bool:
    return math.isfinite(label.end_s) and label.end_s > duration_s + ROUNDING_S


def _without_duplicates(
    recordings: list[Recording], output: str, background: Sequence[str]
) -> tuple[list[Recording], list[Problem]]:
    """Those that hold the same sound only once; under several classes with the labels of all, or not at all.

    Compared by decoded samples: the same sound may be in another format, of another depth, or have other tags.
    """
    copies: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        copies[_sound(recording)].append(recording)
    across = {sound for sound, same in copies.items() if len({copy.classes for copy in same}) > 1}
    joins = output == "sigmoid" or (output == "auto" and len(across) >= max(_MEANT, _MEANT_SHARE * len(copies)))
    kept: list[Recording] = []
    problems: list[Problem] = []
    for recording in recordings:
        sound = _sound(recording)
        same = copies[sound]
        classes = {name for copy in same for name in copy.classes}
        if sound in across and (not joins or (len(classes) > 1 and classes & set(background))):
            others = ", ".join(copy.name for copy in same if copy is not recording)
            detail = f"the same sound stands under {len(classes)} classes: also {others}"
            problems.append(Problem(recording.name, recording.label, "duplicate-across-classes", detail))
        elif recording is not same[0] and sound in across:
            detail = f"the same sound as {same[0].name}, which has the labels of both"
            problems.append(Problem(recording.name, recording.label, "duplicate-joined", detail))
        elif recording is not same[0]:
            what = "content" if recording.content == same[0].content else "sound in another file"
            detail = f"the same {what} as {same[0].name}"
            problems.append(Problem(recording.name, recording.label, "duplicate-in-class", detail))
        else:
            labels = tuple(dict.fromkeys(label for copy in same for label in copy.labels))
            kept.append(replace(recording, labels=labels, copies=tuple(copy.name for copy in same[1:])))
    return kept, problems


def _sound(recording: Recording) -> str:
    """What two recordings share if they hold the same sound."""
    facts = recording.facts
    return f"{facts.samples} {facts.rate_hz} {facts.channels}" if facts.samples else recording.content


def _misnamed(recording: Recording) -> Problem | None:
    held = recording.facts.format.split()[0]
    ending = recording.path.suffix.lower()
    announced = {kind for kind, endings in _ENDINGS.items() if ending in endings}
    if held in _ENDINGS and announced and held not in announced:
        return Problem(
            recording.name, recording.label, "misnamed", f"named {ending} but holds {held}", used=True
        )
    return None


def _damaged(recording: Recording) -> Problem | None:
    facts = recording.facts
    if not facts.damage:
        return None
    return Problem(recording.name, recording.label, facts.damage, facts.damage_detail, used=True)


def class_names(recordings: Sequence[Recording]) -> tuple[str, ...]:
    """The classes that have usable recordings, sorted: their order is the order of the logits."""
    return tuple(sorted({name for recording in recordings for name in recording.classes}))


class TooFewClassesError(InputError):
    """Fewer than two classes have usable recordings.

    Args:
        message: as of any error.
        problems: why the others are not usable.

    Attributes:
        rows: what became of the rows of labels, as of `RowBooks.balanced`; empty: folders name the classes.
    """

    def __init__(self, message: str, problems: Sequence[Problem]) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
        self.rows: Mapping[str, Any] = {}


def check_enough(
    recordings: Sequence[Recording], folder: Path, problems: Sequence[Problem], *, negatives: bool = False
) -> None:
    """Refuse data of fewer than two classes.

    Args:
        negatives: whether a class that has labels with times is absent elsewhere: then one is enough.

    Raises:
        TooFewClassesError: fewer than two classes have usable recordings.
    """
    classes = class_names(recordings)
    has_times = any(label.has_times for recording in recordings for label in recording.labels)
    if len(classes) >= (1 if negatives and has_times else 2):
        return
    reasons = Counter(problem.problem for problem in problems if not problem.used and problem.problem != "hidden")
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "no sound files"
    found = f'only one class with usable recordings ("{classes[0]}")' if classes else "no usable recording at all"
    left_out = f" Not used: {counted}; problems.csv names each." if reasons or not classes else ""
    raise TooFewClassesError(
        f"{shown(folder)}: {found}; at least two classes are needed."
        f"{_another_class(recordings, folder)}{left_out}",
        problems,
    )


def _another_class(recordings: Sequence[Recording], folder: Path) -> str:
    """Where the class that is missing may be, or come from."""
    if not recordings:
        return ""
    below = sorted({path.parts[0] for recording in recordings if len((path := recording.below_class).parts) > 1})
    top = recordings[0].name.partition("/")[0]
    if len(below) > 1:
        names = ", ".join(f'"{name}"' for name in below[:3])
        return (
            f" If the folders in it are the classes ({names}{', ...' if len(below) > 3 else ''}): --data "
            f"{shown(folder / top)}, or --labels.level 2."
        )
    return (
        " To separate it from all else, put recordings without it into a folder background/ in the input folder (or "
        "give --background FOLDER)."
    )


def books(recordings: Sequence[Recording], problems: Sequence[Problem]) -> dict[str, Any]:
    """Found, used, and how many were left out for each reason; found = used + all reasons."""
    left_out = Counter(
        problem.problem for problem in problems if not problem.used and problem.problem not in NO_FILE
    )
    return {
        "found": len(recordings) + left_out.total(),
        "used": len(recordings),
        "left_out": dict(sorted(left_out.items())),
    }
