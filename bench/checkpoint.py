"""A checkpoint of every epoch: VGGish with Adam's moments, 866 MB, written while training goes on; and read back.

    Trainer, Saver ─▶ seconds that training is held up as share of an epoch of a minute, and until all is written
    the newest checkpoint ─▶ seconds to go on from it
    `run`, SIGTERM, busy processes ─▶ seconds to its end

Beside it: the same bytes written and synced to the same disk, nothing else.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench import networks
from bench.frames import make_clips
from bench.harness import (
    ROOT,
    Line,
    Measure,
    Result,
    Settings,
    as_users_have_it,
    birdtune,
    candidate,
    figure,
    interleaved,
)

_EPOCH_S = 60.0
_SHARE, _RESTORE_S, _STOP_S = 0.01, 5.0, 4.0
_BUSY, _WARM_UPDATES = 5, 3


def measure(settings: Settings) -> Result:
    """Saves and restores take turns, each in a process and folder of its own; then jobs are stopped."""
    backbone = "vggish-small" if settings.quick else "vggish"
    rounds = 1 if settings.quick else 7
    with ExitStack() as stack:
        children = {
            name: candidate(
                stack, settings, f"bench.checkpoint:{name}", str(settings.folder / name), backbone
            )
            for name in ("save", "restore", "write_alone")
        }
        seconds = interleaved(children, rounds=rounds)
        n_bytes = int(children["write_alone"].value)
        saves = children["save"].values[-rounds:]
    restore, alone = (Measure(name, seconds[name]) for name in ("restore", "write_alone"))
    held_up, whole = (Measure(name, [save[name] for save in saves]) for name in ("held up", "whole"))
    stops = _stops(settings, backbone)
    stop, share = Measure("stop", stops), held_up.median / _EPOCH_S
    copied = figure(statistics.median(save["copied"] for save in saves))
    lines = [
        Line("training is held up, as a share of an epoch of a minute", f"{held_up.text()}: {share:.1%}", "", None,
             f"≤ {_SHARE:.0%}", share <= _SHARE,
             f"{copied} until weights are looked through for NaN and all is copied; the rest, updates take longer"),
        Line("until it is written", whole.text(), f"{n_bytes / 1e6:,.0f} MB written and synced alone: {alone.text()}",
             None, "", None, "beside training: hashed, written, synced, older ones removed"),
        Line("going on from it", restore.text(), "", None, f"≤ {figure(_RESTORE_S)}", restore.median <= _RESTORE_S,
             "read, compared with its checksums, put into network and optimizer"),
        Line(f"from SIGTERM to the end of `run`, beside {_BUSY} busy processes", stop.text(), "", None,
             f"≤ {figure(_STOP_S)}", stop.median <= _STOP_S, "within an epoch; a checkpoint is saved"),
    ]  # fmt: skip
    details = {"s": seconds, "saves": saves, "stops": stops, "bytes": n_bytes}
    return Result("checkpoint", lines, details)


def save(folder: str, backbone: str, batch_size: int = 32) -> Callable[[], dict[str, float]]:
    """What the loop does at the end of each epoch, and updates until it is written, beside as many without it."""
    from birdtune.models import classifier
    from birdtune.training.checkpoints import Checkpoints, State
    from birdtune.training.saver import Saver
    from birdtune.training.step import viewed

    trainer = networks.trainer("auto", batch_size, backbone=backbone)
    saver, state = Saver(Checkpoints(Path(folder), 2)), State()
    batch = networks.batch_of(*networks.patches_of(batch_size, 0))

    def update() -> None:
        _, weight, gradients = trainer.gradients(batch, 0)
        float(trainer.apply(gradients, weight, 1e-4))

    def turn() -> dict[str, float]:
        state.epoch += 1
        began = time.perf_counter()
        arrays = classifier.weights(trainer.classifier, viewed)
        assert all(np.isfinite(array).all() for array in arrays.values())
        saver.begin(arrays, trainer.state_arrays(), state)
        del arrays
        copied, n_updates = time.perf_counter(), 0
        while saver.is_busy or not n_updates:
            update()
            n_updates += 1
        written = time.perf_counter()
        saver.settle()
        for _ in range(n_updates):
            update()
        alone = time.perf_counter() - written
        return {"copied": copied - began, "whole": written - began, "held up": written - began - alone}

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


# ---- stopping ------------------------------------------------------------------------------------


def _stops(settings: Settings, backbone: str) -> list[float]:
    """Seconds from SIGTERM to the end of a job that trains, beside busy processes, in each round."""
    data, output = settings.folder / "songs", settings.folder / "stopped"
    make_clips(data, 80, 16_000, 1, settings.seed, seconds=2.0 if settings.quick else 10.0)
    places = ["--data", str(data), "--output", str(output)]
    birdtune("prepare", *places)()
    job = ["run", *places, "--model.checkpoint", "none", "--model.backbone", backbone, "--train.epochs", "1000"]
    return [_stop([*job, "--train.seed", str(number)]) for number in range(1 if settings.quick else 3)]


def _stop(job: list[str]) -> float:
    paths = {"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with subprocess.Popen(
        [sys.executable, "-m", "bench.checkpoint", *job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=as_users_have_it(paths),
    ) as process, ExitStack() as stack:  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        if not any("warm" in line for line in process.stdout):
            raise RuntimeError(f"{' '.join(job)}: ended with {process.wait()} before it could be stopped")
        for _ in range(_BUSY):
            stack.callback(stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"])).kill)
        time.sleep(1.0)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        if process.wait() != 128 + signal.SIGTERM:
            raise RuntimeError(f"{' '.join(job)}: ended with {process.returncode}")
        return time.perf_counter() - began


def run_and_tell(arguments: list[str]) -> int:
    """birdtune's own command, but it tells when it has done a few updates."""
    from birdtune import cli
    from birdtune.runtime import log

    advance = log.Progress.advance

    def count(self: log.Progress, n: int = 1, note: str = "") -> None:
        advance(self, n, note)
        if self._what.startswith("epoch") and self._done == _WARM_UPDATES:
            print("warm", flush=True)

    log.Progress.advance = count  # type: ignore[method-assign]
    return cli.main(arguments)


if __name__ == "__main__":
    from birdtune.__main__ import _end

    _end(run_and_tell(sys.argv[1:]))
