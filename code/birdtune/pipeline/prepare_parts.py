"""Recordings that several machines prepare, and their features put together.

    prepare --shard 3/10 ─▶ prepare_part ─▶ OUTPUT/shards/3-of-10/store: features of every tenth recording
    prepare, run ─▶ adopt ─▶ OUTPUT/cache, as if one machine had made them

A part stays where it is, so that a machine without a cache finds it again; on one disk its features are not copied.
"""

import os
import shutil
from pathlib import Path

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.data import dataset
from birdtune.data.file_index import FileIndex
from birdtune.data.frames import FrameStore
from birdtune.data.scan import PROBLEM_COLUMNS
from birdtune.data.shards import INDEX_NAME
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.pipeline import shards
from birdtune.pipeline.shards import Shard
from birdtune.runtime.files import make_folder, write_csv
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import count, some

# Not "cache", which belongs to a machine: this is a result, and goes to S3 where the output lies there.
_STORE = "store"


def prepare_part(config: Config, spec: FrontEnd, shard: Shard, journal: Journal, interrupts: Interrupts) -> int:
    """Make the features of every n-th recording. Returns the exit code 0.

    Args:
        config: whose output is the folder of the part.

    Raises:
        InputError: there are no recordings, or embeddings in their place.
        Interrupted, RetryableError: what was finished is kept.
    """
    if not spec.has_sound:
        raise InputError(
            f"{shown(config.data_folder)}: holds embeddings, which are read at once: there is nothing to share out. "
            "Leave --shard out."
        )
    store = FrameStore(make_folder(config.output / _STORE), spec, config.audio)
    dataset.tell_damaged(store.verify(store.contents(), thorough=False), journal)
    index_path = config.output / _STORE / dataset.FILE_INDEX
    part = dataset.prepare_part(config, store, index_path, shard.part, journal, interrupts)
    rows = [problem.row() for problem in part.problems]
    write_csv(config.output / "problems.csv", PROBLEM_COLUMNS, rows)
    shards.note_finished(config.output, store.folder.name)
    n_unused = sum(not problem.used for problem in part.problems)
    journal.say(
        f"part {shard.number:,} of {shard.total:,}: {count(part.n_files, 'recording')}, {part.n_made:,} decoded now, "
        f"{n_unused:,} cannot be used (problems.csv). Once all parts are prepared: prepare or run, without --shard."
    )
    return EXIT_DONE


def adopt(config: Config, spec: FrontEnd, journal: Journal) -> None:
    """Take over the features of all parts that are finished; what others lack is prepared here.

    Raises: as `storage.storage_faults`.
    """
    found = shards.parts(config.output)
    if not found or not spec.has_sound:
        return
    store = FrameStore(make_folder(config.output / "cache"), spec, config.audio)
    file_index = FileIndex(config.output / "cache" / dataset.FILE_INDEX, config.audio)
    n_taken = 0
    with storage_faults(store.folder, "features"):
        for folder in found.values():
            own = FrameStore(folder / _STORE, spec, config.audio)
            new = [content for content in own.contents() if content not in store]
            if new:
                _take_over(own, store)
                n_taken += len(new)
            file_index.take(FileIndex(folder / _STORE / dataset.FILE_INDEX, config.audio))
        file_index.save()
    if n_taken:
        journal.say(f"  {count(n_taken, 'recording')} prepared in {count(len(found), 'part')} by other commands")
    if lacking := shards.lacking(found, store.folder.name):
        journal.warn(
            f"{shown(config.output / shards.FOLDER)}: {count(len(lacking), 'part')} not finished with these settings: "
            f"{some(lacking)}. Their recordings are prepared here."
        )


def _take_over(own: FrameStore, store: FrameStore) -> None:
    # The index first: its lines count once their rows are there, and rows without a line would be dropped.
    make_folder(store.folder)
    with (store.folder / INDEX_NAME).open("ab") as index:
        index.write(b"\n" + (own.folder / INDEX_NAME).read_bytes() + b"\n")
        index.flush()
        os.fsync(index.fileno())
    for path in own.folder.glob("shard-*"):
        _link(path, store.folder / path.name)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except FileExistsError:
        return
    except OSError:  # another disk, or one without links
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(path, part)
        part.rename(target)
