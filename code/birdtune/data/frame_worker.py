"""A worker's side of `frames.py`: one recording → its rows, in a shard of the worker's own.

    begin_worker, once; Task ─▶ make ─▶ Made

It imports no more than it needs, as each worker starts anew: the settings alone take as long as a hundred clips.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from birdtune.audio.decode import PlainDecoding, SoundFacts, SoundStream
from birdtune.audio.faults import SoundError
from birdtune.audio.front_end import FrontEnd
from birdtune.data.scan import SoundFile, unchanged
from birdtune.data.shard_writer import Entry, ShardWriter


@dataclass(frozen=True)
class Task:
    """One recording to make rows of."""

    file: SoundFile
    content: str


@dataclass(frozen=True)
class Made:
    """What came of it: facts and an entry of a store, or a problem."""

    facts: SoundFacts | None = None
    entry: Entry | None = None
    problem: str = ""
    detail: str = ""


class Maker:
    """Makes the rows of recordings, in a worker's own shard."""

    def __init__(self, folder: Path, spec: FrontEnd, sound: PlainDecoding, longest_s: float) -> None:
        self.spec, self.sound, self.longest_s = spec, sound, longest_s
        self._writer = ShardWriter(folder, spec.row_bytes)

    def close(self) -> None:
        """Close its shard."""
        self._writer.close()

    def make(self, task: Task) -> Made:
        """Decode one file and append its rows; of a file that fails nothing stays in the shard."""
        writer, file = self._writer, task.file
        writer.begin()
        stream = SoundStream(
            file.path, self.sound, rate_hz=self.spec.rate_hz, longest_s=self.longest_s, measured=True,
            channel=file.channel,
        )  # fmt: skip
        try:
            with unchanged(task.file):
                for rows in self.spec.rows_of(stream):
                    # The decoder refuses what could come to this; but one NaN here would spoil all of the training.
                    if not np.isfinite(rows).all():
                        raise SoundError("not-finite", "its features are NaN or infinite")
                    writer.write(self.spec.stored(rows))
            entry = writer.end(task.content, stream.facts)
        except SoundError as fault:
            writer.drop()
            return Made(problem=fault.problem, detail=str(fault))
        except OSError:
            # The disk is full, most likely: what there is of this recording only takes space from others.
            writer.give_back()
            raise
        return Made(stream.facts, entry)


# The one of a worker process.
_maker: Maker | None = None


def begin_worker(folder: Path, spec: FrontEnd, sound: PlainDecoding, longest_s: float) -> None:
    """Set up this process, once."""
    global _maker
    _maker = Maker(folder, spec, sound, longest_s)


def make(task: Task) -> Made:
    """As `Maker.make`, in a process that was set up."""
    assert _maker is not None
    return _maker.make(task)


def close_shard() -> None:
    """Close the shard of this process, if it has made rows; the next recording opens another."""
    global _maker
    if _maker is not None:
        _maker.close()
    _maker = None
