"""Several processes train together: who they are, those of this machine, and what the others do.

    TF_CONFIG, --train.processes ─▶ world_of ─▶ started: the other processes of this machine
    the chief: tell ─▶ Task ─▶ follow: the stage `train` in each other process, which then ends

The chief alone prepares, validates, evaluates and writes. The others take from it what is trained on: the dataset and
all weights. Features they read in the chief's output folder; where that is not theirs too, they make their own.
"""

import contextlib
import os
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from birdtune.config import Config
from birdtune.data import augment
from birdtune.data import dataset as data
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.errors import (
    EXIT_DEFECT,
    EXIT_DONE,
    BirdtuneError,
    InputError,
    Interrupted,
    ProcessLostError,
    RetryableError,
    SettingsError,
    shown,
)  # fmt: skip
from birdtune.models.head_start import HeadStart
from birdtune.runtime import rank, workers
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Journal, print_error
from birdtune.runtime.rank import Cluster
from birdtune.runtime.runs import Run
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import UNFINISHED
from birdtune.runtime.tensorflow_import import load_tensorflow
from birdtune.runtime.text import some
from birdtune.training.job import Job
from birdtune.training.served_model import ServedModel
from birdtune.training.world import World

_GPUS = "CUDA_VISIBLE_DEVICES"
_LOOPBACK = "127.0.0.1"
_ENDING_S = 10.0
# Settings that all processes must have alike; paths may differ.
_ALIKE = ("audio.", "labels.", "split.", "model.", "train.", "augment.")
_PATHS = frozenset(
    {
        "model.checkpoint", "labels.map", "labels.table", "labels.annotations", "labels.review", "labels.taxonomy",
        "split.file", "train.sample-weights", "model.keep-classes",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What the chief tells the others.

    Attributes:
        mark: a file in the chief's cache, by which others see whether they have the same folder.
        record: of run.json, what training goes by.
    """

    settings: dict[str, Any]
    output: str
    dataset: Dataset
    base: ServedModel | None
    head_start: HeadStart | None
    version: int
    record: dict[str, Any]
    mark: str


@dataclass(frozen=True)
class _Ended:
    """What the chief tells where there is nothing to train: nothing was due, or it had to end."""

    exit_code: int = EXIT_DONE
    text: str = ""
    signum: int = 0


# ---- who they are --------------------------------------------------------------------------------


def world_of(config: Config) -> World:
    """The processes that train, as TF_CONFIG and the settings say.

    Of several GPUs this process is left its own, so that TensorFlow must not be loaded yet.

    Raises:
        SettingsError: these do not go together, or with the GPUs of this machine.
    """
    world = World(_cluster(config), _gpus())
    if world.size > 1:
        os.environ.update(_gpu(world.cluster, world.gpus))
    return world


def _cluster(config: Config) -> Cluster:
    given, n_gpus = rank.cluster(), len(_gpus())
    wanted = config.train.processes
    if wanted is not None and wanted > 1 and not given.is_one_a_machine:
        raise SettingsError(
            f"--train.processes {wanted}: TF_CONFIG names several processes on a machine already. Leave one of the "
            "two out."
        )
    has_own_gpu = n_gpus == 1 and _GPUS in os.environ
    if n_gpus and max(wanted or 1, 1 if has_own_gpu else given.local_rank + 1) > n_gpus:
        raise SettingsError(
            f"this machine has {n_gpus} GPUs that this process may use ({_GPUS}), and each needs one of its own. Lower "
            "--train.processes, or the number of processes in TF_CONFIG."
        )
    gains = given.is_one_a_machine and not _trains_head_alone(config)
    n = wanted or (max(1, n_gpus) if gains else 1)
    if n == 1:
        return given
    if given.addresses:
        return given.spread(n)
    return Cluster(tuple(f"{_LOOPBACK}:{port}" for port in _free_ports(n)))


def _gpu(cluster: Cluster, gpus: Sequence[str]) -> dict[str, str]:
    """What shows a process its own GPU alone, where there are several."""
    return {_GPUS: gpus[cluster.local_rank]} if len(gpus) > 1 else {}


def _trains_head_alone(config: Config) -> bool:
    """Whether the embeddings that are trained on stay the same, so that an update is a matter of microseconds."""
    moves = bool(augment.active(config.augment)) or config.train.jitter_s > 0
    return config.model.freeze_point == "all-but-head" and not moves


def _gpus() -> list[str]:
    """GPUs that this process may use, as CUDA names them; none where TensorFlow is built for CPUs."""
    try:
        metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        return []
    if (named := os.environ.get(_GPUS)) is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


# ---- those of this machine -----------------------------------------------------------------------


@contextlib.contextmanager
def started(config: Config, world: World) -> Iterator[None]:
    """Start the other processes of this machine, if `--train.processes` asks for any, and wait for all of the job.

    TensorFlow is loaded here, and must not have computed anything yet. With the block the processes end, too.

    Raises:
        ProcessLostError: not all of them came.
    """
    n_here = world.size // rank.cluster().size
    here = [world.cluster.at(world.cluster.rank + k) for k in range(1, n_here)]
    context = get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_child, daemon=True, args=(config, each, n_here, _gpu(each, world.gpus), os.getpid()))
        for each in here
    ]

    def check() -> None:
        for process, each in zip(processes, here, strict=True):
            if process.exitcode is not None:
                raise ProcessLostError(f"process {each.rank} ended ({process.exitcode}) before training. Run again.")

    try:
        for process in processes:
            process.start()
        _connect(world, n_here, check)
        yield
        tell_end(world)
    except BaseException as fault:
        tell_end(world, fault)
        raise
    finally:
        _end(processes, _ENDING_S if world.is_connected else 0.0)


def _connect(world: World, n_here: int, check: Callable[[], None]) -> None:
    """Meet the others, with a share of the cores of this machine where there is no GPU."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what TensorFlow says of processes that ended is said in one line
    load_tensorflow()
    from birdtune.training import devices

    devices.prepare_devices()
    devices.share_cores(n_here)
    world.connect(check)


def _end(processes: list[BaseProcess], patience_s: float) -> None:
    """Wait for processes that are about to end, since others have; and end those that are not."""
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.join(patience_s)
    for process in begun:
        if process.exitcode is None:
            process.kill()
            process.join()


def _child(config: Config, cluster: Cluster, n_here: int, gpu: dict[str, str], parent: int) -> None:
    """What another process of this machine does from its first to its last line."""
    os.environ.update({**cluster.environment(), **gpu})
    workers.end_with_parent(parent)
    journal, interrupts, code = Journal(quiet=True), Interrupts(), EXIT_DEFECT
    try:
        with interrupts.watching():
            world = World(cluster)
            _connect(world, n_here, lambda: None)
            code = _train(config, world, journal, interrupts)
    except Interrupted as stop:  # the chief says so
        code = stop.exit_code
    except BirdtuneError as fault:
        print_error(f"process {cluster.rank}: error: {fault}")
        code = fault.exit_code
    except Exception:
        print_error(f"process {cluster.rank}: {traceback.format_exc()}")
    os._exit(code)


# ---- what the chief tells, and the others do -----------------------------------------------------


@contextlib.contextmanager
def together(job: Job) -> Iterator[None]:
    """The other processes train what the chief trains in this block. Raises as `started`, and as `World.sum`."""
    world = job.world
    if world.size == 1:
        yield
        return
    with contextlib.nullcontext() if world.is_connected else started(job.config, world):
        n_machines = world.cluster.n_machines
        of_machines = f" on {n_machines} machines" if n_machines > 1 else ""
        job.journal.say(f"  {world.size} processes{of_machines}, each of which computes its part of every batch")
        if _trains_head_alone(job.config):
            job.journal.warn("Only the head is trained, on embeddings that are kept: several processes gain nothing.")
        _tell(job)
        yield
        world.end()


def _tell(job: Job) -> None:
    """The chief tells the others what to train, and waits until they have its features. Raises as `World.sum`."""
    assert job.run.version is not None
    mark = make_folder(job.config.output / "cache") / f"{UNFINISHED}{secrets.token_hex(8)}"
    mark.touch()
    try:
        record = {name: job.run.record.get(name) for name in ("precision", "frozen_kept")}
        job.world.is_told = True
        job.world.broadcast(
            Task(_alike(job.config), job.config.model.output, job.dataset, job.base, job.head_start, job.run.version,
                 record, mark.name)
        )  # fmt: skip
        job.world.barrier()
    finally:
        mark.unlink(missing_ok=True)
    job.world.barrier()  # some may have to make their features first


def tell_end(world: World, fault: BaseException | None = None) -> None:
    """The chief tells the others, if they still wait for it, that there is nothing to train; unless they are gone."""
    if not world.is_chief or world.is_told or not world.is_connected:
        return
    world.is_told = True
    ended = _Ended()
    if fault is not None:
        code = getattr(fault, "exit_code", EXIT_DEFECT)
        ended = _Ended(code, str(fault), fault.signum if isinstance(fault, Interrupted) else 0)
    with contextlib.suppress(ProcessLostError):
        world.broadcast(ended)


def follow(config: Config, world: World, journal: Journal, interrupts: Interrupts) -> int:
    """Train as the chief tells, and leave nothing. Returns the exit code 0.

    Raises:
        ProcessLostError: another process ended, or did not come.
        InputError: this process has other settings or other recordings than the chief.
        Interrupted: all stopped.
    """
    with started(config, world):
        return _train(config, world, journal, interrupts)


def _train(config: Config, world: World, journal: Journal, interrupts: Interrupts) -> int:
    told: Task | _Ended = world.broadcast(_Ended())
    if isinstance(told, _Ended):
        return _ended(told)
    _require_alike(config, told, world.cluster.rank)
    config = told.dataset.settled(config.with_output(told.output))
    store = _features(config, told, world, journal, interrupts)
    from birdtune.pipeline.stages import train

    run = Run(config, journal)
    run.version = told.version
    run.record.update(told.record)
    train(Job(run, told.dataset, store, interrupts, told.base, told.head_start, world=world))
    world.end()
    return EXIT_DONE


def _ended(told: _Ended) -> int:
    if told.signum:
        raise Interrupted(told.signum)
    if told.exit_code == EXIT_DONE:
        return EXIT_DONE
    kinds: dict[int, type[BirdtuneError]] = {
        InputError.exit_code: InputError, RetryableError.exit_code: RetryableError
    }  # fmt: skip
    raise kinds.get(told.exit_code, BirdtuneError)(f"process 0, which prepares, ended: {told.text}")


def _alike(config: Config) -> dict[str, Any]:
    settings = {name: value for name, value in config.flat().items() if name.startswith(_ALIKE)}
    return {name: value for name, value in settings.items() if name not in _PATHS}


def _require_alike(config: Config, told: Task, number: int) -> None:
    own = _alike(config.with_output(told.output))
    if others := [name for name, value in told.settings.items() if own.get(name) != value]:
        differ = some([f"{name} ({shown(own.get(name))}, there {shown(told.settings[name])})" for name in others])
        raise SettingsError(
            f"process {number} was started with other settings than process 0: {differ}. Give all processes the same."
        )


def _features(
    config: Config, told: Task, world: World, journal: Journal, interrupts: Interrupts
) -> FrameStore:
    """The features of the chief's recordings: in its own folder, if this process has it; else made here."""
    cache = config.output / "cache"
    is_shared = (cache / told.mark).exists()
    world.barrier()
    make: Callable[[], object] = lambda: None  # noqa: E731
    if not is_shared:
        # In a place of its own: whatever this folder is, nobody else writes there.
        first = world.cluster.first_here
        world.fills_cache = world.cluster.rank == first
        own = config.model_copy(update={"output": cache / f"process-{first}"})
        cache = own.output / "cache"
        if world.fills_cache:
            make = lambda: data.prepare(own, told.dataset.spec, journal, interrupts)  # noqa: E731
    make()
    world.barrier()
    store = FrameStore(cache, told.dataset.spec, config.audio)
    lacking = [recording.name for recording in told.dataset.recordings if recording.content not in store]
    if lacking:
        raise InputError(
            f"process {world.cluster.rank} has no features of {some(lacking)} in {shown(store.folder)}. All processes "
            "need the same input folder with the same recordings, or the same output folder."
        )
    return store
