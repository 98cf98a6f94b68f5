"""birdtune.training.saver: checkpoints that are written while training goes on."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdtune.errors import RetryableError
from birdtune.training.checkpoints import Checkpoints, State
from birdtune.training.saver import Saver


class Slow(Checkpoints):
    """Saves when it is allowed to, and counts how many do at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=9)
        self.allowed, self.begun = threading.Event(), threading.Event()
        self.at_once: list[int] = []
        self._now = 0

    def save(self, weights: Any, optimizer: Any, state: State) -> Path:
        self._now += 1
        self.at_once.append(self._now)
        self.begun.set()
        assert self.allowed.wait(60)
        try:
            return super().save(weights, optimizer, state)
        finally:
            self._now -= 1


def test_what_changes_after_it_began_is_not_saved(tmp_path: Path) -> None:
    checkpoints, moments = Slow(tmp_path), {"m": np.zeros((2, 3), np.float32)}
    weights, state = {"w": np.arange(4.0)}, State(epoch=1, history=[{"epoch": 1}])
    saver = Saver(checkpoints)
    saver.begin(weights, moments, state)
    assert checkpoints.begun.wait(60) and saver.is_busy
    weights["w"] += 1
    moments["m"] += 1
    state.epoch, state.step = 2, 7
    state.history.append({"epoch": 2})
    saver.settle(wait=False)
    assert checkpoints.names() == []
    checkpoints.allowed.set()
    saver.settle()
    saved, _ = checkpoints.newest()
    assert saved is not None and saved.state == State(epoch=1, history=[{"epoch": 1}]) and not saver.is_busy
    np.testing.assert_array_equal(saved.weights["w"], np.arange(4.0))
    np.testing.assert_array_equal(saved.optimizer["m"], np.zeros((2, 3)))


def test_one_waits_for_the_one_before_and_is_reported_when_it_is_there(tmp_path: Path) -> None:
    checkpoints, there = Slow(tmp_path), list[list[str]]()
    saver = Saver(checkpoints)
    saver.begin({"w": np.zeros(3)}, {}, State(epoch=1), then=lambda: there.append(checkpoints.names()))
    threading.Timer(0.2, checkpoints.allowed.set).start()
    for epoch in (2, 3):
        saver.begin({"w": np.full(3, epoch)}, {}, State(epoch=epoch), then=lambda: there.append(checkpoints.names()))
    saver.settle()
    assert checkpoints.at_once == [1, 1, 1]
    assert [len(names) for names in there] == [1, 2, 3]
    saved, _ = checkpoints.newest()
    assert saved is not None and saved.weights["w"].tolist() == [3, 3, 3]


def test_what_the_storage_refuses_is_raised_once_by_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)

    def refuse(*_: object) -> None:
        raise RetryableError("the disk is full")

    saver, then = Saver(checkpoints), list[int]()
    monkeypatch.setattr(checkpoints, "save", refuse)
    saver.begin({}, {}, State(epoch=1), then=lambda: then.append(1))
    with pytest.raises(RetryableError, match="disk is full"):
        saver.begin({}, {}, State(epoch=2), then=lambda: then.append(2))
    saver.settle()
    assert then == []
