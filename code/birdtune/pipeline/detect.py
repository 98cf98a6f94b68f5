"""`predict --format`: the detections in recordings, as tables for other programs, and a summary of them.

    files ─▶ Ledger (what was scored before) ─▶ detect_recordings ─▶ a table each, or one; summary.csv, summary.html

Each recording is kept as soon as it was scored, and of one that is long each minute how far it has come, so that the
same command goes on where it was stopped. Tables in
another format are written from what was kept; the model is opened if a recording is to be scored.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from birdtune.audio.recorded_at import recorded_at
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.evaluation.decision import UNKNOWN_NAME
from birdtune.pipeline import shards
from birdtune.pipeline.detection_model import Asked, Model
from birdtune.reporting import detection_summary
from birdtune.runtime.files import file_sha256, make_folder
from birdtune.runtime.log import Journal, Progress, duration
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count, some
from birdtune.serving import detection_tables as tables
from birdtune.serving.detect import PART_WINDOWS, Detected, Sound, detect_recordings
from birdtune.serving.detection_ledger import NAME as LEDGER_NAME
from birdtune.serving.detection_ledger import PART_NAME, Entry, Ledger
from birdtune.serving.detection_tables import Listed
from birdtune.serving.inference import Channel, Cutter, Unused
from birdtune.serving.predict import sounds_in

_MEGABYTE = 1e6
# Of smaller files nobody waits for the middle.
_LONG_BYTES = 50e6


@dataclass
class _Counts:
    """What came of the recordings."""

    new: int = 0
    before: int = 0
    windows: int = 0
    silent: int = 0
    unused: int = 0
    seconds: float = 0.0
    listed: int = 0
    rejected: int = 0
    classes: set[str] = field(default_factory=set)


def detect(config: Config, asked: Asked, journal: Journal, interrupts: Interrupts) -> int:
    """Write the detections in some recordings. Raises as `predict.predict_files`."""
    model = Model(config, asked, journal)
    journal.say(f"predict: {shown(config.as_given(model.place))}, {count(model.described.n_classes, 'class')}")
    sounds = _without_tables(sounds_in(asked.files, config.audio), asked.kind, journal)
    if asked.shard is not None:
        n_all, sounds = len(sounds), asked.shard.part(sounds)
        journal.say(f"  part {asked.shard.number} of {asked.shard.total}: {len(sounds):,} of {n_all:,} recordings")
    usable = [each for each in sounds if not isinstance(each, Unused)]
    places = tables.table_places(usable, asked.out, asked.kind, beside=config.detect.beside)
    parts = (
        shards.finished(asked.out, model.described.made_by, config.as_given(asked.out)) if asked.merges else []
    )
    ledger = Ledger(make_folder(asked.out), model.described.made_by, interrupts.check)
    try:
        if model.is_open and model.key:
            ledger.describe(model.key, model.described)
        job = _Job(config, asked, model, ledger, places, journal, interrupts)
        job.merge(parts)
        done = job.detect(sounds)
        if asked.shard is None:
            job.write_all(done)
        else:
            shards.note_finished(asked.out, ledger.made_by)
        job.report()
    finally:
        ledger.close()
    if not done and asked.shard is None:
        raise InputError("None of the files could be used; the reasons stand above.")
    return EXIT_DONE


def _without_tables(sounds: Sequence[Sound], kind: str, journal: Journal) -> list[Sound]:
    """All but tables of detections and annotations, and summaries of them, that lie among the recordings: nobody means
    these to be scored."""
    labels = [".txt"] if kind == "audacity" else []  # where tables of Audacity are wanted, there may be some
    endings = (".selections.txt", ".BirdNET.results.csv", *labels, *(each for each, _ in tables.ENDINGS.values()))
    of_all = (each for _, each in tables.ENDINGS.values())
    own = {LEDGER_NAME, PART_NAME, detection_summary.TABLE_NAME, detection_summary.PAGE_NAME, *of_all}
    kept = [
        each for each in sounds
        if not (isinstance(each, Unused) and each.problem == "not-audio"
                and (each.name.endswith(endings) or each.name.rpartition("/")[2] in own))
    ]  # fmt: skip
    if n := len(sounds) - len(kept):
        journal.say(f"  {count(n, 'table')} among the recordings {'is' if n == 1 else 'are'} left alone")
    return kept


class _Job:
    """The recordings of one command, on their way to tables."""

    def __init__(
        self, config: Config, asked: Asked, model: Model, ledger: Ledger, places: dict[Path | Channel, Path],
        journal: Journal, interrupts: Interrupts,
    ) -> None:  # fmt: skip
        self._config, self._asked, self._model = config, asked, model
        self._ledger, self._places, self._journal, self._interrupts = ledger, places, journal, interrupts
        self._counts = _Counts()
        self._of_parts: dict[tuple[str, int], str] = {}  # content and channel → name of what parts have scored

    def merge(self, parts: Sequence[Path]) -> None:
        """Take over what parts have scored, by their folders."""
        for folder in parts:
            self._of_parts |= self._ledger.absorb(folder)

    def detect(self, sounds: Sequence[Sound]) -> dict[Path | Channel, tuple[str, int]]:
        """Score what was not scored before; content and channel of each recording that is known now, in order."""
        keys: dict[Path | Channel, tuple[str, int]] = {}
        due: list[Sound] = []
        for given in sounds:
            self._interrupts.check()
            entry = self._known(given)
            if entry is None or isinstance(given, Unused):
                due.append(given)
            else:
                keys[given] = self._kept(given, entry)
                self._counts.before += 1
        if self._asked.merges:
            self._say_differences(due, keys)
        sizes = [_size(given) / _MEGABYTE for given in due]
        with self._journal.progress("detecting", round(sum(sizes)), "MB") as progress:
            meter = _Meter(progress, due, sizes)
            for found in self._detected(due, meter):
                meter.next()
                if (entry := self._entry(found)) is not None:
                    assert not isinstance(found.given, Unused)
                    self._ledger.add(entry)
                    self._counts.new += 1
                    keys[found.given] = self._kept(found.given, entry)
        return {given: keys[given] for given in self._places if given in keys}

    def _say_differences(self, due: Sequence[Sound], keys: Mapping[Path | Channel, tuple[str, int]]) -> None:
        """Which recordings no part has scored, and which of those that parts have scored are not given now."""
        if new := [self._name(each) for each in due if not isinstance(each, Unused)]:
            self._journal.warn(
                f"{count(len(new), 'recording')} scored now, as no part has scored {'it' if len(new) == 1 else 'them'} "
                f"(not there then, or not readable): {some(new)}"
            )
        given = set(keys.values())
        if gone := [name for key, name in self._of_parts.items() if key not in given]:
            self._journal.warn(
                f"{count(len(gone), 'recording')} that parts have scored {'is' if len(gone) == 1 else 'are'} not among "
                f"those given now, and in no table: {some(gone)}"
            )

    def _known(self, given: Sound) -> Entry | None:
        if isinstance(given, Unused):
            return None
        try:
            return self._ledger.find(given)
        except OSError:
            return None  # scoring says what is wrong with it

    def _detected(self, due: Sequence[Sound], meter: "_Meter") -> Iterator[Detected]:
        if all(isinstance(given, Unused) for given in due):  # no model is needed to say so
            return iter([Detected(each, each.name, 0.0, 0, (), each) for each in due if isinstance(each, Unused)])
        audio, model, used = self._config.audio, self._model, self._model.used
        spec = used.scorer.front_end
        parts = {each: part for each in due if not isinstance(each, Unused) and (part := self._part(each))}
        for each, part in parts.items():
            self._journal.say(f"  {self._name(each)}: goes on after {part['windows']:,} windows")
        scored = {each: int(part["windows"]) for each, part in parts.items()}
        part_windows = used.scorer.pooling.whole_contexts(PART_WINDOWS)
        cutter = Cutter(
            audio, model.hop_rows, audio.max_hours * 3600, spec, part_windows=part_windows, scored=scored
        )
        ood_score = None if used.exported is None else used.exported.ood_score
        return detect_recordings(
            due, used.scorer, model.rule, cutter, ood_score=ood_score, n_own=used.n_own, batch_size=model.batch_size,
            check=self._interrupts.check, reached=meter.reached, unfinished=parts, keep=self._ledger.keep_part,
        )  # fmt: skip

    def _part(self, given: Path | Channel) -> Mapping[str, Any] | None:
        """How far a recording had come when the command was stopped; None: it begins anew."""
        with contextlib.suppress(OSError):
            return self._ledger.part(given)
        return None

    def _entry(self, found: Detected) -> Entry | None:
        """What is kept of a recording; None: it could not be used, and is tried again next time."""
        problem = found.problem
        if problem is not None:
            self._tell(problem)
        if isinstance(found.given, Unused) or not found.windows:
            self._counts.unused += 1
            return None
        given = found.given
        path, channel = (given.path, given.channel + 1) if isinstance(given, Channel) else (given, 1)
        facts = path.stat()
        return Entry(
            self._name(given), os.path.abspath(path), channel, facts.st_size, facts.st_mtime_ns,  # noqa: PTH100
            file_sha256(path, self._interrupts.check), self._ledger.made_by, round(found.duration_s, 3), found.windows,
            recorded_at(path), "" if problem is None else problem.problem, "" if problem is None else problem.detail,
            found.calls,
        )  # fmt: skip

    def _tell(self, problem: Unused) -> None:
        kind = "used in part" if problem.in_part else "used" if problem.is_used else "not used"
        if problem.problem == "silent":
            kind = "silent"
        self._journal.say(f"  {kind}: {self._config.as_given(problem.name)}: {problem.problem}, {problem.detail}")

    def _kept(self, given: Path | Channel, entry: Entry) -> tuple[str, int]:
        """Write the table of a recording, unless it is there; the key of its entry."""
        counts, listed = self._counts, self._listed(given, entry)
        counts.windows += entry.windows
        counts.seconds += entry.duration_s
        counts.silent += entry.problem == "silent"
        counts.listed += len(listed.calls)
        counts.rejected += sum(call.decision == UNKNOWN_NAME for call in entry.calls)
        counts.classes |= {call.class_name for call in listed.calls}
        if not self._config.detect.one_table and self._asked.shard is None:
            place = self._places[given]
            make_folder(place.parent)
            tables.write_table(place, self._asked.kind, [listed], self._model.described.band_hz)
        return entry.sha256, entry.channel

    def _listed(self, given: Path | Channel, entry: Entry) -> Listed:
        path = given.path if isinstance(given, Channel) else given
        calls = tables.listed(entry.calls, unknown=self._config.detect.unknown)
        return Listed(self._name(given), path.name, entry.channel, entry.duration_s, entry.recorded_at, calls)

    def _name(self, given: Path | Channel) -> str:
        return self._config.as_given(given.name if isinstance(given, Channel) else shown(given))

    def write_all(self, keys: dict[Path | Channel, tuple[str, int]]) -> None:
        """The table of all, where one was asked for, and the summary."""

        def recordings() -> Iterator[Listed]:
            for given, entry in self._ledger.entries(keys):
                self._interrupts.check()
                yield self._listed(given, entry)

        out = self._asked.out
        if self._config.detect.one_table:
            place = out / tables.ENDINGS[self._asked.kind][1]
            tables.write_table(place, self._asked.kind, recordings(), self._model.described.band_hz)
        by_name = {self._name(given): given for given in keys}
        detection_summary.write(out, recordings(), by_name)

    def report(self) -> None:
        """One line of what came of it, and where it lies."""
        counts, asked = self._counts, self._asked
        n, out = counts.new + counts.before, self._config.as_given(asked.out)
        rejected = f"; {counts.rejected:,} rejected as unknown" if counts.rejected else ""
        self._journal.say(
            f"{shown(out)}: {count(counts.listed, 'detection')} of {count(len(counts.classes), 'class')} in "
            f"{count(n, 'recording')} ({duration(counts.seconds)}){rejected}"
            + (f"; {counts.before:,} were scored before" if counts.before else "")
            + (f"; {counts.silent:,} silent" if counts.silent else "")
            + f"; {counts.unused:,} not used"
        )
        if n and asked.shard is None:
            self._journal.say(f"summary {shown(out)}/{detection_summary.PAGE_NAME}")


class _Meter:
    """Progress in bytes of files, as most of the length of a recording is not known before it was decoded."""

    def __init__(self, progress: Progress, due: Sequence[Sound], sizes: Sequence[float]) -> None:
        self._progress, self._due, self._sizes = progress, due, sizes
        self._number, self._shown, self._of_this = 0, 0, 0.0
        self._before = 0.0  # megabytes of the recordings that are done
        self._length_s: float | None = None

    def reached(self, seconds: float) -> None:
        """So many seconds of the present recording were scored."""
        if self._length_s is None:
            self._length_s = _header_s(self._due[self._number])
        if self._length_s:
            self._of_this = min(1.0, seconds / self._length_s)
            self._show(f"{duration(seconds)} of {duration(self._length_s)}")

    def next(self) -> None:
        """The present recording is done."""
        self._before += sum(self._sizes[self._number : self._number + 1])
        self._number, self._of_this, self._length_s = self._number + 1, 0.0, None
        self._show("")

    def _show(self, note: str) -> None:
        done = self._before + self._of_this * sum(self._sizes[self._number : self._number + 1])
        self._progress.advance(round(done) - self._shown, note)
        self._shown = round(done)


def _size(given: Sound) -> int:
    if isinstance(given, Unused):
        return 0
    with contextlib.suppress(OSError):
        return (given.path if isinstance(given, Channel) else given).stat().st_size
    return 0


def _header_s(given: Sound) -> float:
    """Length of a large file by its header; 0 where nobody waits for its middle, or it does not say."""
    if isinstance(given, Unused) or _size(given) < _LONG_BYTES:
        return 0.0
    with contextlib.suppress(soundfile.SoundFileError, OSError):
        return float(soundfile.info(given.path if isinstance(given, Channel) else given).duration)
    return 0.0
