"""Checkpoints while training goes on: a copy of what is to be saved, and a thread that writes it.

    weights, optimizer, State ─▶ Saver.begin ─▶ copies ─▶ a thread: Checkpoints.save ─▶ Saver.settle
"""

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.training.checkpoints import Arrays, Checkpoints, State


class Saver:
    """Saves one checkpoint after another, never two at once.

    Its methods belong to one thread, and a signal must not interrupt them (`Interrupts.held`).
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        # They stay: memory that is new takes several times as long to fill.
        self._weights: dict[str, npt.NDArray[Any]] = {}
        self._optimizer: dict[str, npt.NDArray[Any]] = {}
        self._under_way: Future[Path] | None = None
        self._then: Callable[[], None] = lambda: None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._under_way is not None and not self._under_way.done()

    def begin(self, weights: Arrays, optimizer: Arrays, state: State, then: Callable[[], None] = lambda: None) -> None:
        """Copy what is to be saved, and have it written; waits for the one before.

        Args:
            then: called once by `settle`, when the checkpoint is there.

        Raises:
            RetryableError, InputError: the storage refused the one before.
        """
        self.settle()
        _copy(weights, self._weights)
        _copy(optimizer, self._optimizer)
        self._then = then
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way = thread.submit(
            self._checkpoints.save, self._weights, self._optimizer, copy.deepcopy(state)
        )
        thread.shutdown(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """Look after the checkpoint that is being written, and wait for it or not.

        Raises:
            RetryableError, InputError: the storage refused it.
        """
        if self._under_way is None or not (wait or self._under_way.done()):
            return
        under_way, self._under_way = self._under_way, None
        under_way.result()
        self._then()


def _copy(arrays: Mapping[str, npt.NDArray[Any]], into: dict[str, npt.NDArray[Any]]) -> None:
    for name, array in arrays.items():
        np.copyto(into.setdefault(name, np.empty(array.shape, array.dtype)), array)
