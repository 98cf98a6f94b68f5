"""Embeddings from files as the data of a run, in place of decoded sound.

    files ─▶ survey ─▶ Listing, FileIndex, Given;  fill ─▶ their rows in the feature store

A row of the store is an embedding. How files are read: `embedding_input.py`.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from birdtune.audio.decode import SoundFacts
from birdtune.audio.front_end import FrontEnd
from birdtune.data.embedding_files import EmbeddedRecording
from birdtune.data.embedding_input import read
from birdtune.data.file_index import Examined, FileIndex
from birdtune.data.frames import FrameStore
from birdtune.data.labels import Label
from birdtune.data.scan import Listing, Problem, SoundFile
from birdtune.data.shard_writer import ShardWriter
from birdtune.data.split import Given
from birdtune.data.tables import SIDE_WORDS, sides_of
from birdtune.errors import InputError, shown
from birdtune.runtime.files import make_folder
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.settings import AudioSettings


@dataclass(frozen=True)
class Found:
    """What `scan` and `file_index` find of sound."""

    listing: Listing
    file_index: FileIndex
    given: Given | None
    notices: list[str]


def survey(path: Path, spec: FrontEnd, sound: AudioSettings, *, one_class: bool, interrupts: Interrupts) -> Found:
    """The recordings of the files, with labels, contents and a split if they have one.

    Args:
        spec: how far apart windows are taken to be.
        one_class: a recording with several classes is not used (`model.output` softmax).

    Raises: as `read`; InputError: no recording has a label.
    """
    files: list[SoundFile] = []
    problems: list[Problem] = []
    sides: dict[str, str] = {}
    file_index = FileIndex(None, sound)
    for recording in read(path):
        interrupts.check()
        label = ", ".join(recording.classes)
        if not label or (one_class and len(recording.classes) > 1):
            problem, detail = ("several-labels", f"its classes are {label}") if label else ("no-label", "has no label")
            problems.append(Problem(recording.name, label, problem, detail))
            continue
        labels = tuple(_label(name, recording, spec) for name in recording.classes)
        times = tuple(part for parts in labels for part in parts)
        file = SoundFile(recording.name, path / recording.name, label, recording.embeddings.nbytes, 0, labels=times)
        content = _content(recording)
        file_index.set_content(file, content)
        duration_s = len(recording.embeddings) / spec.rows_per_s
        # It stands for its sound: what is twice there counts once.
        file_index.set_examined(content, Examined(SoundFacts(spec.rate_hz, 1, duration_s, 0.0, "embeddings", content)))
        files.append(file)
        if recording.split:
            sides[recording.name] = recording.split
    if not files and all(problem.problem == "no-label" for problem in problems):
        raise InputError(
            f"{shown(path)}: no recording has a label. Write the embeddings of data with labels (`embed --data FOLDER`"
            ", without names of files), or add a column `labels` or `label`."
        )
    files.sort(key=lambda file: file.name)
    notices = ["The data are embeddings: there is no sound to decode, to look at or to listen to."]
    return Found(Listing(files, problems, []), file_index, _given(path, sides), notices)


def _given(path: Path, sides: dict[str, str]) -> Given | None:
    known = sides_of(set(sides.values()))
    if wrong := sorted(set(sides.values()) - set(known)):
        raise InputError(f"{shown(path)}: a split is called {shown(wrong[0][:40])}; expected is {SIDE_WORDS}.")
    title = f"the column `split` of {shown(path.name)}"
    return Given(title, {name: known[side] for name, side in sides.items()}, {}) if sides else None


def _label(name: str, recording: EmbeddedRecording, spec: FrontEnd) -> list[Label]:
    """A class of a recording: throughout, or in runs of its windows, which count one behind the other."""
    inside = np.array([name in row for row in recording.labels])
    if inside.all():
        return [Label(name)]
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    return [Label(name, begin / spec.rows_per_s, end / spec.rows_per_s) for begin, end in edges.reshape(-1, 2).tolist()]


def _content(recording: EmbeddedRecording) -> str:
    """SHA-256 of the embeddings."""
    rows = np.ascontiguousarray(recording.embeddings, "<f4")
    return hashlib.sha256(f"embeddings {rows.shape[1]}\n".encode() + rows.tobytes()).hexdigest()


def fill(store: FrameStore, path: Path, file_index: FileIndex, interrupts: Interrupts) -> None:
    """Put the rows of all recordings that the store lacks into it.

    Args:
        file_index: of `survey`.

    Raises:
        Interrupted, RetryableError, InputError: what was finished is kept.
    """
    make_folder(store.folder)
    store.drop_leftovers()
    writer = ShardWriter(store.folder, store.spec.row_bytes)
    with (
        storage_faults(store.folder, "embeddings"),
        store.appending() as index,
        contextlib.closing(writer),
    ):
        for recording in read(path):
            interrupts.check()
            content = _content(recording)
            found = file_index.examined(content)
            if found is not None and content not in store:
                writer.begin()
                writer.write(store.spec.stored(recording.embeddings))
                store.add(writer.end(content, found.facts), index)
    store.note_whole()
