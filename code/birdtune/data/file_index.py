"""The file index: what is known of files by their content, kept between runs so that no file is decoded twice.

SoundFile ─▶ identify ─▶ content (SHA-256) ─▶ examine_all ─▶ Examined: facts | problem
"""

import contextlib
import itertools
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from birdtune.audio.decode import SoundFacts, examine
from birdtune.audio.faults import SoundError, refusal
from birdtune.data.scan import OF_THE_FILE, PROBLEMS, Problem, SoundFile, unchanged
from birdtune.errors import RetryableError, shown
from birdtune.runtime.files import file_sha256, read_json, write_text
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.workers import Crashed, run_tasks, take_batch, worker_count
from birdtune.settings import AudioSettings

# Small files are handed over several at once, so large together: handing over takes as long as they do.
BATCH_BYTES = 1 << 22
# Problems that may be gone next time, or depend on a setting: not kept for the next run.
_PASSING_PROBLEMS = frozenset({"crash", "too-long"}) | OF_THE_FILE


@dataclass(frozen=True)
class Examined:
    """The facts of a content, or its problem."""

    facts: SoundFacts | None = None
    problem: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.facts is None) != (self.problem in PROBLEMS):
            raise ValueError(f"facts and the problem {self.problem!r} do not go together")


class FileIndex:
    """Content of each file, and facts or problem of each content.

    A file of unchanged path, size and time is taken to have the content it had; what is known of a content holds for
    every file that has it.

    Args:
        path: of the file it is kept in, or None.
        keep: whether that file may be written.
    """

    # Results between saves, so that a killed run need not begin anew: at least so many, and this share of what is
    # known, or a million files would be written two thousand times.
    _SAVE_EVERY, _SAVE_SHARE = 500, 0.2

    def __init__(self, path: Path | None, sound: AudioSettings, *, keep: bool = True) -> None:
        self._path = path if keep else None
        self.sound = sound
        # An index that cannot be read is as good as none where nothing may be written.
        known = _known(path) if path is not None and (keep or os.access(path, os.R_OK)) else _Known()
        self._stats = known.stats
        self._all_facts = known.facts
        # Facts are of decoded samples.
        self._facts = self._all_facts.setdefault(sound.cache_key, {})
        for content in [key for key, known in self._facts.items() if known.problem in _PASSING_PROBLEMS]:
            del self._facts[content]
        self._unsaved = 0

    def content(self, file: SoundFile) -> str | None:
        """SHA-256 of the file's content, if it was read before and looks unchanged; and "#1" of channel 0."""
        entry = self._stats.get(str(file.path))
        if not entry or entry[:4] != file.stamp:
            return None
        return entry[4] if file.channel is None else f"{entry[4]}#{file.channel + 1}"

    def set_content(self, file: SoundFile, content: str) -> None:
        self._stats[str(file.path)] = (*file.stamp, content)
        self._count()

    def examined(self, content: str) -> Examined | None:
        """What is known of a content."""
        return self._facts.get(content)

    def set_examined(self, content: str, examined: Examined) -> None:
        self._facts[content] = examined
        self._count()

    def keep_only(self, paths: Set[str], contents: Set[str]) -> None:
        """Forget all other files, and what is known of all other contents, however they were decoded; and save."""
        self._stats = {path: entry for path, entry in self._stats.items() if path in paths}
        for known in self._all_facts.values():
            for content in known.keys() - contents:
                del known[content]
        self._unsaved += 1
        self.save()

    def take(self, other: "FileIndex") -> None:
        """Take over what another index knows and this one does not."""
        self._unsaved += len(other._stats.keys() - self._stats.keys()) + len(other._facts.keys() - self._facts.keys())
        for path, entry in other._stats.items():
            self._stats.setdefault(path, entry)
        for content, examined in other._facts.items():
            self._facts.setdefault(content, examined)

    def _count(self) -> None:
        self._unsaved += 1
        known = len(self._stats) + len(self._facts)
        if self._unsaved >= max(self._SAVE_EVERY, self._SAVE_SHARE * known):
            self.save()

    def save(self) -> None:
        """Write the file index, if there is a place for it. Raises as files.storage_faults."""
        if self._path is not None and self._unsaved:
            # Without indentation: 20,000 files make 6 MB, read in a tenth of a second.
            facts = {
                key: {content: _stored(examined) for content, examined in known.items()}
                for key, known in self._all_facts.items()
            }
            # Lost with the power, it costs time and nothing else.
            write_text(self._path, json.dumps({"stats": self._stats, "facts": facts}), durable=False)
            self._unsaved = 0


def _stored(examined: Examined) -> dict[str, Any]:
    if examined.facts is None:
        return {"problem": examined.problem, "detail": examined.detail}
    # As dataclasses.asdict, which takes ten times as long: every file pays it.
    parts = {"measures": examined.facts.measures, "origin": examined.facts.origin, "choice": examined.facts.choice}
    return {**vars(examined.facts), **{name: None if part is None else vars(part) for name, part in parts.items()}}


def _parsed(stored: Any) -> Any:
    return {"facts": stored} if isinstance(stored, dict) and "problem" not in stored else stored


@dataclass(frozen=True)
class _Known:
    """A file index as it is written, with what the types cannot say: a content has facts or a problem."""

    stats: dict[str, tuple[int, int, int, int, str]] = field(default_factory=dict)
    facts: dict[str, dict[str, Annotated[Examined, BeforeValidator(_parsed)]]] = field(default_factory=dict)


def _known(path: Path) -> _Known:
    try:
        return TypeAdapter(_Known).validate_python(read_json(path))
    except ValidationError:
        return _Known()


def _hashes(files: Sequence[SoundFile], interrupts: Interrupts) -> list[str | SoundError]:
    return [_hash(file, interrupts) for file in files]


def _hash(file: SoundFile, interrupts: Interrupts) -> str | SoundError:
    try:
        with unchanged(file):
            return file_sha256(file.path, interrupts.check)
    except SoundError as fault:
        return fault
    except OSError as fault:
        return refusal(fault)


def identify(
    files: Sequence[SoundFile], file_index: FileIndex, *, journal: Journal, interrupts: Interrupts
) -> dict[str, Problem]:
    """Make sure that the file index knows the content of every file; return those that cannot be read, by name.

    Raises:
        Interrupted, RetryableError (the storage fails): what was read is kept.
    """
    unknown = [file for file in files if file_index.content(file) is None]
    unreadable: dict[str, Problem] = {}
    # Threads are enough: hashing and reading both let go of the interpreter.
    with journal.progress("reading", len(unknown), "files") as progress, ThreadPoolExecutor() as threads:
        try:
            left, parts = deque(unknown), []
            while left:
                parts.append(take_batch(left, lambda file: file.size / BATCH_BYTES))
            hashed = itertools.chain.from_iterable(threads.map(_hashes, parts, [interrupts] * len(parts)))
            for number, (file, result) in enumerate(zip(unknown, hashed, strict=True)):
                interrupts.check()
                progress.advance()
                if isinstance(result, str):
                    file_index.set_content(file, result)
                else:
                    _set_unusable(file, *_problem_of(result), unreadable, len(unknown) - number)
        finally:
            threads.shutdown(cancel_futures=True)
            file_index.save()
    return unreadable


def note_examined(
    file_index: FileIndex, file: SoundFile, examined: Examined, unusable: dict[str, Problem], n_left: int
) -> None:
    """Note what came of decoding a file: of its content for good, or of this file for now.

    Args:
        unusable: name → problem, of files that say nothing about their content; extended.
        n_left: files that were still to be read, this one included.

    Raises:
        RetryableError: its storage fails; what can still be read may be the smaller part of the data.
    """
    if examined.problem in OF_THE_FILE:
        _set_unusable(file, examined.problem, examined.detail, unusable, n_left)
        return
    content = file_index.content(file)
    assert content is not None
    file_index.set_examined(content, examined)


def _set_unusable(file: SoundFile, problem: str, detail: str, unusable: dict[str, Problem], n_left: int) -> None:
    if problem == "storage-failed":
        raise RetryableError(
            f"{shown(file.path)}: {detail} while it was read; {n_left:,} files were still to be read. Nothing is "
            "trained on the others alone, and what was finished is safe. Run again when the storage is back; if it is "
            "this file each time, the disk is failing: restore or remove it."
        )
    unusable[file.name] = Problem(file.name, file.label, problem, detail)


def _problem_of(fault: SoundError | Crashed) -> tuple[str, str]:
    if isinstance(fault, SoundError):
        return fault.problem, str(fault)
    return "crash", "the process that decoded it was killed; by a fault in the decoder, or for want of memory"


def distinct(
    files: Sequence[SoundFile], file_index: FileIndex, unusable: Mapping[str, Problem]
) -> dict[str, SoundFile]:
    """Content → the first file that holds it."""
    first: dict[str, SoundFile] = {}
    for file in files:
        if file.name not in unusable and (content := file_index.content(file)) is not None:
            first.setdefault(content, file)
    return first


@dataclass(frozen=True)
class _ExamineTask:
    file: SoundFile
    sound: AudioSettings
    longest_s: float


def _examine(task: _ExamineTask) -> Examined:
    try:
        with unchanged(task.file):
            file = task.file
            return Examined(examine(file.path, sound=task.sound, longest_s=task.longest_s, channel=file.channel))
    except SoundError as fault:
        return Examined(None, fault.problem, str(fault))


def examine_all(
    files: Sequence[SoundFile],
    file_index: FileIndex,
    unusable: dict[str, Problem],
    *,
    longest_s: float,
    workers: int,
    journal: Journal,
    interrupts: Interrupts,
) -> None:
    """Decode every content that is not known yet, for its facts alone: for `check`.

    Args:
        unusable: as `note_examined`; where such a file has a copy, that is decoded in its place.

    Raises:
        Interrupted, RetryableError: as `note_examined`.
    """
    try:
        while tasks := [
            _ExamineTask(file, file_index.sound, longest_s)
            for content, file in distinct(files, file_index, unusable).items()
            if file_index.examined(content) is None
        ]:
            n_workers = worker_count(workers, len(tasks))
            results = run_tasks(
                _examine, tasks, n_workers=n_workers, interrupts=interrupts,
                weight=lambda task: task.file.size / BATCH_BYTES,
            )  # fmt: skip
            with contextlib.closing(results), journal.progress("examining", len(tasks), "files") as progress:
                for n_done, (task, result) in enumerate(results):
                    progress.advance()
                    examined = crashed() if isinstance(result, Crashed) else result
                    note_examined(file_index, task.file, examined, unusable, len(tasks) - n_done)
    finally:
        file_index.save()


def crashed() -> Examined:
    """What is noted of a content that killed its decoder."""
    return Examined(None, *_problem_of(Crashed()))
