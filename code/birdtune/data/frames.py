"""The feature store: rows of every recording on disk, as the backbone takes them.

    SoundFile ─▶ fill ─▶ cache/<front end>/   shards of flat [rows, ...], little-endian, and their index
    content ─▶ FrameStore.rows ─▶ [n, ...]

Rows, not windows, are kept: a window at any hop is a slice. The key is the content of the sound
file, and the folder's name is the front end's digest and how sound is decoded, so a later run computes only
what is new. Each worker (`frame_worker.py`) appends to a shard of its own; how shards and index are kept: `shards.py`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from birdtune.audio.decode import PlainDecoding
from birdtune.audio.front_end import FrontEnd
from birdtune.data.file_index import BATCH_BYTES, Examined, FileIndex, crashed, distinct, note_examined
from birdtune.data.frame_worker import Made, Task, begin_worker, make
from birdtune.data.scan import Problem, SoundFile
from birdtune.data.shards import ShardStore
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import need_space, storage_faults
from birdtune.runtime.workers import Crashed, run_tasks, worker_count
from birdtune.settings import AudioSettings

# Bytes of rows for each byte of a file, before any is known: those of log-mel beside 16-bit sound at 16 kHz.
_USUAL_SHARE = 0.4


class FrameStore(ShardStore):
    """Rows by content.

    Args:
        cache: the folder of all front ends' rows.
        spec, sound: what the rows are made with; they name the folder.
    """

    def __init__(self, cache: Path, spec: FrontEnd, sound: AudioSettings) -> None:
        self.spec = spec
        self.sound = sound
        self.in_use: set[Path] = set()  # folders below, of what was made of the rows and is needed again
        made = "-".join(filter(None, (spec.name, spec.digest, spec.arithmetic, sound.cache_key)))
        folder = cache / made
        super().__init__(folder, spec.row_shape, spec.row_dtype, what="the features")
        # A line of the index without them was damaged: its recording is decoded again.
        self._entries = {content: entry for content, entry in self._entries.items() if entry.facts is not None}


class _Forecast:
    """How many bytes the rows of some recordings take that are still to be made.

    Known of recordings that were decoded before, as by `check`; of others it is estimated by the size of their files
    and the rows of those that are done.
    """

    def __init__(self, tasks: Sequence[Task], file_index: FileIndex, spec: FrontEnd) -> None:
        self._row_bytes = spec.row_bytes
        self._unknown: dict[str, int] = {}  # content → bytes of the file
        self._known: dict[str, int] = {}  # content → bytes of its rows
        self._read, self._made = 0, 0
        for task in tasks:
            known = file_index.examined(task.content)
            if known is None or known.facts is None:
                self._unknown[task.content] = task.file.size
            else:
                n_rows = spec.row_count(spec.padded_samples(spec.samples(known.facts.duration_s)))
                self._known[task.content] = n_rows * self._row_bytes

    def note(self, task: Task, made: Made) -> None:
        """Count a recording as done."""
        self._known.pop(task.content, None)
        self._unknown.pop(task.content, None)
        self._read += task.file.size
        self._made += made.entry.n_rows * self._row_bytes if made.entry is not None else 0

    def bytes_surely_left(self) -> int:
        """What those take whose length is known."""
        return sum(self._known.values())

    def bytes_left(self) -> int:
        """The best guess of what all take."""
        share = self._made / self._read if self._made else _USUAL_SHARE
        return self.bytes_surely_left() + round(share * sum(self._unknown.values()))


def fill(
    store: FrameStore,
    files: Sequence[SoundFile],
    file_index: FileIndex,
    unusable: dict[str, Problem],
    *,
    longest_s: float,
    workers: int,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Make the rows that are missing, of every content whose file can be decoded.

    The facts of each content go to the file index.

    Args:
        unusable: as `file_index.note_examined`; where such a file has a copy, that is decoded in its place.

    Returns:
        how many recordings were decoded.

    Raises:
        Interrupted: what was finished is kept.
        RetryableError, InputError: the storage refuses, of the features (see storage.storage_faults) or of the
            sound; likewise.
    """
    make_folder(store.folder)
    for content in store.contents():
        if file_index.examined(content) is None:
            file_index.set_examined(content, Examined(store.entry(content).facts))
    tried: set[str] = set()
    # None left: spare the workers' start.
    while tasks := _wanted(store, files, file_index, unusable):
        tried |= {task.content for task in tasks}
        store.drop_leftovers()
        forecast = _Forecast(tasks, file_index, store.spec)
        need_space(store.folder, forecast.bytes_surely_left(), f"the features of {len(tasks):,} recordings")
        results = run_tasks(
            make,
            tasks,
            n_workers=worker_count(workers, len(tasks)),
            interrupts=interrupts,
            initializer=begin_worker,
            initargs=(store.folder, store.spec, PlainDecoding.of(store.sound), longest_s),
            weight=lambda task: task.file.size / BATCH_BYTES,
        )
        with (
            storage_faults(store.folder, "features", forecast.bytes_left),
            journal.progress("preparing", len(tasks), "recordings") as progress,
            store.appending(file_index.save) as index,
            # However the block ends, the workers end with it: what they still had would count for nothing.
            contextlib.closing(results),
        ):
            for n_done, (task, result) in enumerate(results):
                made = Made() if isinstance(result, Crashed) else result
                examined = crashed() if isinstance(result, Crashed) else Examined(made.facts, made.problem, made.detail)
                forecast.note(task, made)
                progress.advance()
                if made.entry is not None:
                    store.add(made.entry, index)
                note_examined(file_index, task.file, examined, unusable, len(tasks) - n_done)
    file_index.save()
    return len(tried)


def _wanted(
    store: FrameStore, files: Sequence[SoundFile], file_index: FileIndex, unusable: Mapping[str, Problem]
) -> list[Task]:
    """One task for each content that is not in the store, unless it is known to be unusable."""
    return [
        Task(file, content)
        for content, file in distinct(files, file_index, unusable).items()
        if content not in store and ((known := file_index.examined(content)) is None or known.facts is not None)
    ]
