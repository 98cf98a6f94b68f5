"""`review`: the detections that the model is least sure of, as a page on which somebody decides on them.

    detections.jsonl ─▶ least_certain ─▶ grouped (alike.py) ─▶ review_page ─▶ review.html, which saves review.csv

A detection is the less certain the nearer its score is to its class's threshold, in logits: 0.98 and 0.99 are further
from each other than 0.50 and 0.51. Each class in turn gives its least certain one, so that a frequent one takes no more
than its part.
"""

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from birdtune.config import Config
from birdtune.data.annotations.review import TABLE_NAME
from birdtune.errors import EXIT_DONE, InputError, naming, shown
from birdtune.pipeline import alike
from birdtune.reporting import review_page
from birdtune.reporting.review_page import Doubtful
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import count
from birdtune.serving import detection_ledger
from birdtune.serving.detection_ledger import Entry
from birdtune.serving.detection_tables import listed
from birdtune.serving.inference import Channel
from birdtune.training import served_model

_NO_THRESHOLD = 0.5
_NEAREST_TO_ONE = 1e-6
_KEPT = 8  # so many times what is wanted, before the more certain are let go


class Asked(NamedTuple):
    """What the command line asks for."""

    folder: Path
    out: Path | None  # None: in the folder
    most: int
    model: Path | None


def review(config: Config, asked: Asked, journal: Journal, interrupts: Interrupts) -> int:
    """Write the page. Raises InputError: there are no detections, or none that can be listened to."""
    place = asked.model or max(served_model.served_models(config).items(), default=(0, None))[1]
    thresholds = _thresholds(config, place, asked.model is not None, journal)
    with storage_faults(asked.folder, verb="read"):
        try:
            entries = _there(detection_ledger.newest(asked.folder), journal)
            chosen = least_certain(entries, thresholds, asked.most, unknown=config.detect.unknown)
        except (FileNotFoundError, NotADirectoryError) as fault:
            raise InputError(
                f"{shown(asked.folder)}: holds no {detection_ledger.NAME}. Expected the folder that `predict --format` "
                "wrote to: ./entrypoint.sh predict nights/ --format csv"
            ) from fault
    if place is not None:
        chosen = alike.grouped(chosen, alike.embedder(place))
    clips = []
    with journal.progress("drawing", len(chosen), "detections") as progress:
        for one in chosen:
            interrupts.check()
            if (clip := review_page.shown_clip(one)) is not None:
                clips.append(clip)
            progress.advance()
    if n := len(chosen) - len(clips):
        journal.say(f"  {count(n, 'detection')} left out: of recordings that are damaged or need FFmpeg, no part can "
                    "be listened to")  # fmt: skip
    if not clips:
        raise InputError(
            f"{shown(asked.folder)}: has no detection to review of a recording that is still there. A lower threshold "
            "detects more: ./entrypoint.sh predict nights/ --format csv --detect.on 0.2"
        )
    classes = sorted(thresholds.keys() | {one.class_name for one in chosen})
    page = asked.out or _free_place(asked.folder, clips)
    review_page.write(page, clips, classes)
    journal.say(f"review {shown(page)}: {count(len(clips), 'detection')} of "
                f"{count(len({clip['name'] for clip in clips}), 'class')}")  # fmt: skip
    journal.say(f"  open it in a browser, which saves {TABLE_NAME}; then: ./entrypoint.sh run --labels.review FILE")
    return EXIT_DONE


def _free_place(folder: Path, clips: Sequence[Mapping[str, Any]]) -> Path:
    """Where no page of other detections lies: somebody may not have saved yet what was decided on it."""
    key = review_page.key_of(clips)
    places = (folder / f"review{f'-{number}' if number > 1 else ''}.html" for number in itertools.count(1))
    return next(place for place in places if not place.exists() or key in place.read_text("utf-8", "replace"))


def _thresholds(config: Config, place: Path | None, is_named: bool, journal: Journal) -> dict[str, float]:
    """Class → threshold of a model; {} where there is none."""
    if place is None:
        journal.say(f"note: {shown(config.output)} has no model, so thresholds are taken to be {_NO_THRESHOLD:g}; "
                    "--model FOLDER names one.")  # fmt: skip
        return {}
    with naming("--model" if is_named else None):
        found = served_model.read(place, is_own=False)
    classes = found.facts.classes
    thresholds = found.detection_thresholds
    values = (_NO_THRESHOLD,) * len(classes) if thresholds is None else thresholds.values
    return dict(zip(classes, values, strict=True))


def _there(entries: Iterable[Entry], journal: Journal) -> Iterable[Entry]:
    """Those whose recording is still where it was scored."""
    gone = Counter[str]()
    for entry in entries:
        if Path(entry.path).is_file():
            yield entry
        elif entry.calls:
            gone[entry.name] += len(entry.calls)
    if gone:
        journal.say(f"  {count(gone.total(), 'detection')} left out: {count(len(gone), 'recording')} no longer there, "
                    f"e.g. {next(iter(gone))}")  # fmt: skip


def least_certain(
    entries: Iterable[Entry], thresholds: Mapping[str, float], most: int, *, unknown: bool = False
) -> list[Doubtful]:
    """The detections to review: class behind class, each with its least certain first.

    Args:
        thresholds: of classes that have one.
        most: so many in all.
        unknown: whether those that were rejected as unknown are among them.
    """
    by_class: defaultdict[str, list[Doubtful]] = defaultdict(list)
    for entry in entries:
        given = _given(entry)
        for call in listed(entry.calls, unknown=unknown):
            threshold = thresholds.get(call.class_name, _NO_THRESHOLD)
            by_class[call.class_name].append(Doubtful(
                entry.name, given, entry.duration_s, call.class_name, call.start_s, call.end_s, call.peak_s, call.score,
                threshold,
            ))  # fmt: skip
            if len(by_class[call.class_name]) > _KEPT * most:  # so that memory does not grow with the recordings
                by_class[call.class_name] = heapq.nsmallest(most, by_class[call.class_name], key=certainty)
    ranked = [
        (rank, certainty(one), name, one)
        for name, some in by_class.items()
        for rank, one in enumerate(heapq.nsmallest(most, some, key=certainty))
    ]
    kept = sorted(ranked, key=lambda each: each[:3])[:most]
    order = {name: k for k, name in enumerate(dict.fromkeys(name for _, _, name, _ in kept))}
    return [one for rank, _, name, one in sorted(kept, key=lambda each: (order[each[2]], each[0]))]


def certainty(one: Doubtful) -> float:
    """How far a score is from its threshold, in logits."""
    return abs(_logit(one.score) - _logit(one.threshold))


def _logit(score: float) -> float:
    inside = min(max(score, _NEAREST_TO_ONE), 1 - _NEAREST_TO_ONE)
    return math.log(inside / (1 - inside))


def _given(entry: Entry) -> Path | Channel:
    path = Path(entry.path)
    is_one_of_several = entry.name.endswith(f"#{entry.channel}")
    return Channel(path, entry.channel - 1) if is_one_of_several else path
