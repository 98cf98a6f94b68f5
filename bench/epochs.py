"""Whole epochs from disk beside the same step on one constant batch: does the input ever keep the step waiting?

    frames on disk ─▶ Windows ─▶ Batches ─▶ Loop, an epoch     beside     Trainer on one batch, as many steps

Before each epoch the system is told to forget the shards, so that they are read from the disk.
"""

import contextlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import networks
from bench.harness import Measure, Result, Settings, candidate, interleaved, judged

_TARGET = 0.97
_RECORDING_FRAMES = 960  # ten windows, none of which overlap


def measure(settings: Settings) -> Result:
    """Epochs of some dozens of steps."""
    lines, details = [], {}
    sizes = ((5, 4),) if settings.quick else ((32, 40), (128, 10))
    for batch_size, n_steps in sizes:
        folder = settings.folder / str(batch_size)
        make_frames(folder, batch_size * n_steps, settings.seed)
        backbone = "vggish-small" if settings.quick else "vggish"
        with ExitStack() as stack:
            children = {
                "epoch": candidate(stack, settings, "bench.epochs:epoch", str(folder), batch_size, backbone),
                "constant batch": candidate(
                    stack, settings, "bench.networks:birdtune_steps", "auto", batch_size, n_steps, backbone
                ),
            }
            rounds = 1 if settings.quick else 5
            seconds = interleaved(children, rounds=rounds)
            seconds["epoch"] = children["epoch"].values[-rounds:]
        each = {name: [value / n_steps for value in values] for name, values in seconds.items()}
        details[f"batch {batch_size}, s a step"] = each
        ours, constant = (Measure(name, each[name], per="step") for name in ("epoch", "constant batch"))
        lines.append(
            judged(f"batch {batch_size}: epochs of {n_steps} steps from disk", ours, constant, at_least=_TARGET,
                   note="time of the constant batch / time of the epoch; saving and validation apart")
        )  # fmt: skip
    return Result("epochs", lines, details)


def make_frames(folder: Path, n_windows: int, seed: int) -> None:
    """A frame store of made recordings with at least so many windows."""
    from birdtune.audio.decode import SoundFacts
    from birdtune.audio.logmel import VGGISH
    from birdtune.data.frames import FrameStore
    from birdtune.data.shard_writer import Entry
    from birdtune.settings import AudioSettings

    facts = SoundFacts(16_000, 1, 10.0, -8.0, "WAV PCM_16")
    random = np.random.default_rng(seed)
    store = FrameStore(folder, VGGISH, AudioSettings())
    store.folder.mkdir(parents=True)
    with store.appending() as index, (store.folder / "shard-0-0.rows").open("wb") as shard:
        for number in range(-(-n_windows // 10)):
            shard.write(random.normal(-3.43, 2.13, (_RECORDING_FRAMES, 64)).astype("<f2").tobytes())
            shard.flush()
            start = number * _RECORDING_FRAMES
            store.add(Entry(f"{number:06}", "shard-0-0.rows", start, _RECORDING_FRAMES, 0, facts), index)


def windows_of(folder: str) -> Any:
    """All windows of such a store. Raises ValueError: there are none."""
    from birdtune.audio.logmel import VGGISH
    from birdtune.data.batches import Windows
    from birdtune.data.frames import FrameStore
    from birdtune.settings import AudioSettings

    store = FrameStore(Path(folder), VGGISH, AudioSettings())
    windows = Windows(store, store.contents(), 96)
    if not len(windows):
        raise ValueError(f"{folder}: its store holds no windows; its index was not understood")
    return windows


def targets_of_all(windows: Any) -> Any:
    """Targets of such windows: their recordings are of all classes in turn."""
    from birdtune.data.labels import Label
    from birdtune.data.targets import WindowTargets, targets_of

    classes = [f"{number:04}" for number in range(networks.CLASSES)]
    labels = [[Label(classes[number % len(classes)])] for number in range(len(windows.contents))]
    return WindowTargets(targets_of(labels, classes), windows)


class NothingSaved:
    """Checkpoints for a loop whose saving is not what is measured."""

    def newest(self) -> tuple[None, list[str]]:
        return None, []

    def need_room(self, *_: object) -> None: ...

    def save(self, *_: object) -> None: ...

    def tidy(self, *_: object) -> None: ...


def one_epoch(trainer: Any, batches: Any, folder: Path) -> float:
    """An epoch of the real loop. Returns its seconds, without those of saving and validation."""
    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts
    from birdtune.settings import TrainSettings
    from birdtune.training.loop import Loop

    settings = TrainSettings(epochs=1, batch_size=batches.batch_size)
    took: list[float] = []

    def validate() -> dict[str, float | None]:
        took.append(time.perf_counter() - began)
        return {}

    loop = Loop(
        trainer, batches, settings, NothingSaved(), validate=validate, journal=Journal(quiet=True),  # type: ignore[arg-type]
        interrupts=Interrupts(), tensorboard=folder / "tensorboard",
    )  # fmt: skip
    began = time.perf_counter()
    loop.run()
    return took[0]


def forget(folder: Path) -> None:
    """Have the system drop what it keeps in memory of the files in a folder."""
    for path in folder.rglob("shard-*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch(folder: str, batch_size: int, backbone: str) -> tuple[Callable[[], None], Callable[[], float]]:
    """A turn is an epoch of the loop; its value are the loop's own seconds.

    Raises:
        ValueError: the last batch would not be full, which the constant batch always is.
    """
    from birdtune.data.batches import Batches

    trainer = networks.trainer("auto", batch_size, backbone=backbone)
    windows = windows_of(folder)
    if len(windows) % batch_size:
        raise ValueError(f"{len(windows)} windows are no whole number of batches of {batch_size}")
    batches = Batches(windows, targets_of_all(windows), batch_size=batch_size, seed=0)
    return lambda: forget(Path(folder)), lambda: one_epoch(trainer, batches, Path(folder))
