"""A checkpoint of every epoch: VGGish with Adam's moments, 866 MB, written, hashed and kept; and read back.

    Trainer ─▶ seconds of a save as share of an epoch of a minute;  the newest checkpoint ─▶ seconds to go on from it

Beside it: the same bytes written and synced to the same disk, nothing else.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench import networks
from bench.harness import Line, Measure, Result, Settings, candidate, figure, interleaved

_EPOCH_S = 60.0
_SHARE, _RESTORE_S = 0.03, 5.0


def measure(settings: Settings) -> Result:
    """Saves and restores take turns, each in a process and folder of its own."""
    backbone = "vggish-small" if settings.quick else "vggish"
    with ExitStack() as stack:
        children = {
            name: candidate(
                stack, settings, f"bench.checkpoint:{name}", str(settings.folder / name), backbone
            )
            for name in ("save", "restore", "write_alone")
        }
        seconds = interleaved(children, rounds=1 if settings.quick else 7)
        n_bytes = int(children["write_alone"].value)
    save, restore, alone = (Measure(name, seconds[name]) for name in ("save", "restore", "write_alone"))
    share = save.median / _EPOCH_S
    lines = [
        Line("saving, as a share of an epoch of a minute", f"{save.text()}: {share:.1%}",
             f"{n_bytes / 1e6:,.0f} MB written and synced alone: {alone.text()}", None, f"≤ {_SHARE:.0%}",
             share <= _SHARE, "weights looked through for NaN, written, hashed, synced, older ones removed"),
        Line("going on from it", restore.text(), "", None, f"≤ {figure(_RESTORE_S)}", restore.median <= _RESTORE_S,
             "read, compared with its checksums, put into network and optimizer"),
    ]  # fmt: skip
    return Result("checkpoint", lines, {"s": seconds, "bytes": n_bytes})


def save(folder: str, backbone: str) -> Callable[[], None]:
    """What the loop does at the end of each epoch."""
    from birdtune.models import classifier
    from birdtune.training.checkpoints import Checkpoints, State
    from birdtune.training.step import viewed

    trainer = networks.trainer("auto", 32, backbone=backbone)
    checkpoints, state = Checkpoints(Path(folder), 2), State()

    def turn() -> None:
        state.epoch += 1
        arrays = classifier.weights(trainer.classifier, viewed)
        assert all(np.isfinite(array).all() for array in arrays.values())
        checkpoints.save(arrays, trainer.state_arrays(), state)

    return turn


def restore(folder: str, backbone: str) -> Callable[[], int]:
    """What the loop does when it goes on."""
    from birdtune.models import classifier
    from birdtune.training.checkpoints import Checkpoints, State

    trainer = networks.trainer("auto", 32, backbone=backbone)
    checkpoints = Checkpoints(Path(folder), 2)
    checkpoints.save(classifier.weights(trainer.classifier), trainer.state_arrays(), State(epoch=1))

    def turn() -> int:
        saved, complaints = checkpoints.newest()
        assert saved is not None and not complaints
        trainer.restore(saved)
        return saved.state.epoch

    return turn


def write_alone(folder: str, backbone: str) -> Callable[[], int]:
    """As many bytes as a checkpoint has."""
    block = np.random.default_rng(0).bytes(1 << 24)
    n_bytes = networks.trainer("auto", 32, backbone=backbone).state_bytes
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)

    def turn() -> int:
        with path.open("wb") as file:
            for begin in range(0, n_bytes, len(block)):
                file.write(block[: n_bytes - begin])
            os.fsync(file.fileno())
        return n_bytes

    return turn
