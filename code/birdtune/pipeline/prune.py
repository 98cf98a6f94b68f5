"""The command `prune`: give back what the cache holds of recordings that are gone, and for other settings.

    recordings that are there ─▶ their contents ─▶ shards without any of these, features for other settings ─▶ deleted
"""

import shutil
from collections.abc import Set
from pathlib import Path

from birdtune.config import Config
from birdtune.data import arranging, dataset
from birdtune.data.file_index import FileIndex, identify
from birdtune.data.frames import FrameStore
from birdtune.data.shards import INDEX_NAME, forget
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.models import registry
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import size_text, storage_faults


def prune(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Do it, and say what was given back. Returns the exit code 0; the caller holds the lock of the output folder.

    Raises:
        InputError: there is no cache, or there are no recordings.
        Interrupted, RetryableError: what is left is whole.
    """
    cache = config.output / "cache"
    if not cache.is_dir():
        raise InputError(f"{shown(cache)}: there is no cache. --output names the folder that `run` works in.")
    spec = registry.front_end(config)
    files = arranging.arrange(config).listing.files
    file_index = FileIndex(cache / dataset.FILE_INDEX, config.audio)
    # A file under a new name is known by its content alone.
    identify(files, file_index, journal=journal, interrupts=interrupts)
    wanted = {content for file in files if (content := file_index.content(file)) is not None}
    own = FrameStore(cache, spec, config.audio).folder
    with storage_faults(cache, "the cache"):
        others = [path.parent for path in cache.glob(f"*/{INDEX_NAME}") if path.parent != own]
        of_others = sum(_delete(folder) for folder in others)
        of_gone = sum(_forget(path.parent, wanted) for path in (own / INDEX_NAME, *own.glob(f"*/{INDEX_NAME}")))
        file_index.keep_only({str(file.path) for file in files}, wanted)
    journal.say(
        f"{shown(cache)}: {size_text(of_others + of_gone)} given back: {size_text(of_others)} of features for other "
        f"settings, {size_text(of_gone)} of recordings that are not there any more"
    )
    return EXIT_DONE


def _delete(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return size


def _forget(folder: Path, wanted: Set[str]) -> int:
    return forget(folder, wanted) if (folder / INDEX_NAME).is_file() else 0
