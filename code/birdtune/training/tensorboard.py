"""What TensorBoard shows of a run.

    State ─▶ Curves ─▶ logs/<v>/tensorboard/

The files are made anew whenever training begins or goes on, from what the checkpoint knows. So a job that was
killed leaves no point out and none twice, although its files reached further than its checkpoint.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from birdtune.errors import BirdtuneError
from birdtune.runtime.storage import storage_faults
from birdtune.training.checkpoints import State

# The training loss and the learning rate get a point every so many updates, and half as many when there are too many.
_POINT_EVERY = 20
_MOST_POINTS = 2_000


class Curves:
    """The event files of a run.

    Args:
        folder: theirs alone; what is in it is replaced.
        state: what is drawn to begin with.
        per_epoch: updates of an epoch.

    Raises:
        RetryableError, InputError: the storage refuses (see storage.storage_faults); later calls, too.
    """

    def __init__(self, folder: Path, state: State, per_epoch: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        with self._faults():
            self._writer = tf.summary.create_file_writer(str(folder))
        for point in state.trace:
            self._draw_point(point)
        for row in state.history:
            self.draw_epoch(row, int(row["epoch"]) * per_epoch)

    def draw_update(self, state: State, loss: float, rate: float) -> None:
        """Note an update in the state's trace and draw it, if it is its turn."""
        if add_point(state.trace, state.updates, loss, rate):
            self._draw_point(state.trace[-1])

    def draw_epoch(self, row: Mapping[str, Any], update: int) -> None:
        """Draw a row of the history, at the update with which its epoch ended."""
        self._draw({f"epoch/{key}": value for key, value in row.items() if isinstance(value, float)}, update)

    def close(self) -> None:
        """Write what is still in memory, and end."""
        with self._faults():
            self._writer.close()

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What ended the block is what is to be told, also where it is a full disk, which closing meets again.
        with contextlib.suppress(BirdtuneError) if kind is not None else contextlib.nullcontext():
            self.close()

    def _faults(self) -> contextlib.AbstractContextManager[None]:
        return storage_faults(self._folder, "the curves for TensorBoard")

    def _draw_point(self, point: list[float]) -> None:
        update, loss, rate = point
        self._draw({"train/loss": loss, "train/learning_rate": rate}, int(update))

    def _draw(self, values: Mapping[str, float], update: int) -> None:
        with self._faults(), self._writer.as_default(step=update):
            for name, value in values.items():
                tf.summary.scalar(name, value)


def add_point(trace: list[list[float]], update: int, loss: float, rate: float) -> bool:
    """Add [update, loss, rate] if it is its turn; thin out a trace that has become long. Returns whether it is new.

    Which updates have a point depends on their number alone, not on where a job was stopped.
    """
    every = trace[1][0] - trace[0][0] if len(trace) > 1 else _POINT_EVERY
    if update % every:
        return False
    trace.append([update, loss, rate])
    if len(trace) > _MOST_POINTS:
        del trace[::2]
    return True
