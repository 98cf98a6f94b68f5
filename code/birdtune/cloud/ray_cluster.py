"""Commands of birdtune on the nodes of a Ray cluster that stands.

    connected ─▶ parts: command lines that do not depend on each other, one a node or GPU at a time
              ─▶ together: one command line on several nodes at once, with TF_CONFIG

Each is a process of its own below a task of Ray: it saves when it is stopped, and does not outlive its node. Ray says
when a node is lost; whether an exit code is worth another try, birdtune knows better (errors.py).
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtune.errors import (
    EXIT_DEFECT,
    EXIT_DONE,
    EXIT_INPUT,
    EXIT_USAGE,
    BirdtuneError,
    InputError,
    RetryableError,
    UsageError,
    shown,
)  # fmt: skip
from birdtune.options import ENVIRONMENT_PREFIX
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import Cluster
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count, some

_TRIES = 5
_RUN_AGAIN = "The reasons stand above. Run again to continue; what was finished is safe."
_POLL_S, _ENDING_S = 0.5, 60.0
_ROOM_S = 60.0
_KINDS: dict[int, type[BirdtuneError]] = {
    EXIT_DEFECT: BirdtuneError, EXIT_USAGE: UsageError, EXIT_INPUT: InputError,
}  # fmt: skip


# ---- what runs on a node; Ray imports it there ---------------------------------------------------


def run_command(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
    """Run a command of birdtune in a working folder; its exit code, negative where a signal ended it."""
    libc, signum = ctypes.CDLL(None), signal.SIGKILL
    process = subprocess.Popen(
        [sys.executable, "-m", "birdtune", *arguments], env={**os.environ, **environment}, cwd=folder,
        preexec_fn=lambda: libc.prctl(1, signum),  # PR_SET_PDEATHSIG: it does not outlive a node that Ray gave up
    )  # fmt: skip
    try:
        while process.poll() is None:
            time.sleep(0.1)  # Ray's cancelling gets through here, and not through a wait
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_S)
        process.kill()
    return process.returncode


def free_address() -> str:
    """HOST:PORT of a port that is free on this node."""
    with socket.socket() as found:
        found.bind(("", 0))
        return f"{importlib.import_module('ray').util.get_node_ip_address()}:{found.getsockname()[1]}"


# ---- the cluster, seen by the command that shares out --------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a process has of a node."""

    cpus: int
    gpus: int = 0

    def __str__(self) -> str:
        return f"each with {count(self.cpus, 'core')}" + (f" and {count(self.gpus, 'GPU')}" if self.gpus else "")

    def options(self) -> dict[str, int]:
        """As Ray names them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


class RayCluster:
    """A cluster of Ray that this process is connected to."""

    def __init__(self, ray: Any, journal: Journal, interrupts: Interrupts) -> None:
        self._ray, self._journal, self._interrupts = ray, journal, interrupts
        given = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
        self._environment, self._folder = given, str(Path.cwd())

    def nodes(self) -> list[Claim]:
        """What each node that is alive has, the largest first; heads without cores are left out."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        found = [Claim(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive]
        return sorted((node for node in found if node.cpus), key=lambda node: (node.gpus, node.cpus), reverse=True)

    def parts(self, what: str, lines: Sequence[Sequence[str]], *, on_gpu: bool) -> None:
        """Run command lines, each where there is room, and again elsewhere if its node is lost or its code allows it.

        Raises:
            RetryableError: some did not end well, and may another time.
            UsageError, InputError, BirdtuneError: one cannot end well; the others are stopped.
            Interrupted: all are stopped.
        """
        claim = _share(self.nodes(), on_gpu=on_gpu)
        self._journal.say(f"{what}: {count(len(lines), 'part')} on {count(len(self.nodes()), 'node')}, {claim}")
        how = {"max_retries": 0, "scheduling_strategy": "SPREAD", **claim.options()}
        environment = {f"{ENVIRONMENT_PREFIX}PREPARE__WORKERS": str(claim.cpus), **self._environment}
        tries, lost, running = dict.fromkeys(range(len(lines)), 1), list[str](), dict[Any, int]()
        for number in tries:
            running[self._begin(lines[number], environment, how)] = number
        ended = contextlib.closing(self._ended(running))
        with ended as each, self._journal.progress(what, len(lines), "parts") as progress:
            for number, why in each:
                if why is None:
                    progress.advance()
                    continue
                self._journal.warn(f"part {number + 1} of {len(lines)} {why}; try {tries[number]} of {_TRIES}")
                tries[number] += 1
                if tries[number] <= _TRIES:
                    running[self._begin(lines[number], environment, how)] = number
                else:
                    lost.append(str(number + 1))
        if lost:
            raise RetryableError(
                f"{count(len(lost), 'part')} of {len(lines)} did not end well in {_TRIES} tries: {some(lost)}. "
                f"{_RUN_AGAIN}"
            )

    def together(self, line: Sequence[str], n_nodes: int | None) -> None:
        """Run a command line on several nodes at once, as the processes of one job.

        Args:
            n_nodes: on how many; None: on all that have a GPU, and where none has, on all.

        Raises: as `parts`.
        """
        for attempt in range(1, _TRIES + 1):
            group, claim, n = self._room(n_nodes)
            self._journal.say(f"{n} processes on {count(n, 'node')}, {claim}")
            try:
                reasons = self._together(line, group, claim, n)
            finally:
                self._ray.util.remove_placement_group(group)
            if not reasons:
                return
            self._journal.warn(f"{'; '.join(reasons)}; try {attempt} of {_TRIES}")
        raise RetryableError(f"the processes did not end well in {_TRIES} tries. {_RUN_AGAIN}")

    def _together(self, line: Sequence[str], group: Any, claim: Claim, n: int) -> list[str]:
        """One try; why it did not end well."""
        place = importlib.import_module("ray.util.scheduling_strategies").PlacementGroupSchedulingStrategy
        places = [place(group, placement_group_bundle_index=number) for number in range(n)]
        hows = [{"max_retries": 0, "scheduling_strategy": each} for each in places]
        ask = self._ray.remote(free_address)
        try:
            asked = [ask.options(num_cpus=0, **how).remote() for how in hows]
            addresses = tuple(self._ray.get(asked, timeout=_ROOM_S))
        except self._ray.exceptions.RayError as fault:
            return [f"a node was lost: {_short(fault)}"]
        running = {}
        for rank, how in enumerate(hows):
            environment = {**self._environment, **Cluster(addresses, rank).environment()}
            running[self._begin(line, environment, {**how, **claim.options()})] = rank
        with contextlib.closing(self._ended(running)) as ended:
            return [f"process {rank} {why}" for rank, why in ended if why is not None]

    def _begin(self, line: Sequence[str], environment: Mapping[str, str], how: Mapping[str, Any]) -> Any:
        return self._ray.remote(run_command).options(**how).remote(line, environment, self._folder)

    def _ended(self, running: dict[Any, int]) -> Generator[tuple[int, str | None], None, None]:
        """Tasks as they end, by number, and why not well; more may be added. Closed early, they save and end."""
        try:
            while running:
                self._interrupts.check()
                for done in self._ray.wait(list(running), timeout=_POLL_S)[0]:
                    yield running.pop(done), self._why(done)
        finally:
            for each in running:
                self._ray.cancel(each)
            if running:
                self._ray.wait(list(running), num_returns=len(running), timeout=_ENDING_S)

    def _room(self, n_nodes: int | None) -> tuple[Any, Claim, int]:
        """Whole nodes, all at once, as soon as there are so many; what each gives, and how many they are."""
        while True:
            nodes = self.nodes()
            usual = [node for node in nodes if node.gpus] or nodes
            n = n_nodes or max(1, len(usual))
            chosen = (usual if len(usual) >= n else nodes)[:n] or [Claim(1)]
            claim = Claim(min(node.cpus for node in chosen), min(node.gpus for node in chosen))
            bundle = {"CPU": claim.cpus, **({"GPU": claim.gpus} if claim.gpus else {})}
            group = self._ray.util.placement_group([bundle] * n, strategy="STRICT_SPREAD")
            ready, until = group.ready(), time.monotonic() + _ROOM_S
            while time.monotonic() < until:
                self._interrupts.check()
                if self._ray.wait([ready], timeout=_POLL_S)[0]:
                    return group, claim, n
            # Nodes may have gone, or come, meanwhile.
            self._ray.util.remove_placement_group(group)
            self._journal.say(f"waiting for {count(n, 'node')} of the Ray cluster to be free, each with {bundle}")

    def _why(self, done: Any) -> str | None:
        """Why a task that may be tried again did not end well; None: it did. Raises as `parts` if it may not."""
        try:
            code = int(self._ray.get(done))
        except self._ray.exceptions.RayTaskError as fault:
            raise InputError(
                f"a node of the Ray cluster cannot run birdtune: {_short(fault)}. Expected the same image on all "
                f"nodes, and the working folder {shown(self._folder)}."
            ) from fault
        except self._ray.exceptions.RayError as fault:
            return f"was lost ({_short(fault)})"
        if code == EXIT_DONE:
            return None
        if code in _KINDS:
            raise _KINDS[code](f"a process on the Ray cluster ended with exit code {code}. Its reason stands above.")
        return f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _share(nodes: Sequence[Claim], *, on_gpu: bool) -> Claim:
    """What a part gets, so that the parts of a node do not get in each other's way."""
    if on_gpu and (with_gpu := [node for node in nodes if node.gpus]):
        return Claim(max(1, min(node.cpus // node.gpus for node in with_gpu)), 1)
    return Claim(min((node.cpus for node in nodes), default=1))


def _short(fault: BaseException) -> str:
    lines = [line for line in str(fault).strip().splitlines() if line.strip()] or [type(fault).__name__]
    return shown((lines[-1] if "Traceback" in lines[0] or "ray::" in lines[0] else lines[0]).strip()[:200])


@contextlib.contextmanager
def connected(journal: Journal, interrupts: Interrupts) -> Iterator[RayCluster]:
    """The cluster of RAY_ADDRESS, or of the node that this is.

    Raises:
        InputError: Ray is not installed.
        RetryableError: there is no cluster, or it cannot be reached.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as fault:
        raise InputError(
            "--engine ray: Ray is not installed. Install it: ./entrypoint.sh extras ray (in an image: build it with "
            "--build-arg EXTRAS=ray)."
        ) from fault
    code = str(Path(__file__).parents[2])  # by which the nodes find birdtune: the same image has it in the same place
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address="auto", logging_level="warning", runtime_env={"env_vars": {"PYTHONPATH": code}})
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise RetryableError(
            f"--engine ray: no Ray cluster can be reached ({_short(fault)}). Expected one that stands: submit the "
            "command with `ray job submit`, run it on a node of the cluster, or name its head by RAY_ADDRESS."
        ) from fault
    try:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)  # Ray ends at once
        yield RayCluster(ray, journal, interrupts)
    finally:
        ray.shutdown()
