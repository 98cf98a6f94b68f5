"""The real command in a process of its own, watched from outside: what it says and when, and what it leaves behind.

    arguments ─▶ Command ─▶ lines with their times, the stage it is in, its exit code, processes left over

Only processes that were started here are ever signalled: the command's own, by its id, or its process group, which
it leads because it was started in a session of its own.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# Stage → how the line begins that says it has begun. While it loads TensorFlow, it says which version it makes.
_SIGNS = {"prepare": "prepare:", "load": "version ", **{
    stage: f"{stage}:" for stage in ("train", "evaluate", "export", "report")
}}  # fmt: skip
STAGES = tuple(_SIGNS)

# The reduced network, few and small epochs: what is tried is not how well it learns.
QUICK = (
    "--model.backbone=vggish-small", "--model.checkpoint=none", "--train.epochs=4", "--train.batch-size=8",
    "--train.jit=false", "--model.dropout=0.2", "--train.jitter-s=0.24", "--evaluate.bootstrap=200",
    "--prepare.workers=2",
)  # fmt: skip

# By it the descendants of a command are known, wherever they were moved to.
_MARK = "FAULTS_COMMAND"
_numbers = itertools.count()
_PATIENCE_S = 300.0
_POLL_S = 0.0005


@dataclass(frozen=True)
class Line:
    """A line that the command wrote, and when (time.monotonic)."""

    at: float
    text: str


@dataclass(frozen=True)
class Straight:
    """A job that ran from its beginning to its end undisturbed."""

    input: Path
    output: Path
    arguments: tuple[str, ...]  # without the output folder
    seconds: dict[str, float]  # of each stage


class Command:
    """`birdtune ARGUMENTS`, started.

    Args:
        environment: variables beside those of this process.
    """

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self.began = time.monotonic()
        self.lines: list[Line] = []
        self.errors: list[Line] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "birdtune", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            cwd=cwd,
            env=self._environment(environment or {}),
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BIRDTUNE_")}
        return {
            **inherited, "PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2", **more, _MARK: self.mark,
        }  # fmt: skip

    @staticmethod
    def _read(pipe: IO[str] | None, lines: list[Line]) -> None:
        assert pipe is not None
        with pipe:
            for text in pipe:
                lines.append(Line(time.monotonic(), text.rstrip("\n")))

    # ---- what it says -----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether its first process is still there."""
        return self.process.poll() is None

    def said(self, start: str) -> Line | None:
        """The first line that begins so."""
        return next((line for line in list(self.lines) if line.text.startswith(start)), None)

    @property
    def stage(self) -> str:
        """The stage that it named last; "start" before the first."""
        texts = [line.text for line in list(self.lines)]
        named = [stage for text in texts for stage, sign in _SIGNS.items() if text.startswith(sign)]
        return named[-1] if named else "start"

    def stage_began(self, stage: str) -> float | None:
        """When it named the stage."""
        if stage == "start":
            return self.began
        line = self.said(_SIGNS[stage])
        return line.at if line else None

    def wait_until(self, condition: Callable[[], object], *, poll_s: float = _POLL_S) -> bool:
        """Wait for a condition; False if the command ended first."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if condition():
                return True
            if not self.running:
                return bool(condition())
            time.sleep(poll_s)
        self.end()
        raise AssertionError(f"nothing happened for {_PATIENCE_S:.0f} s; it said:\n{self.text()}")

    def reach(self, stage: str, after_s: float) -> bool:
        """Wait until it is some time into a stage, or a later one if it leaves this out; False if it ended first."""
        order = ("start", *STAGES)
        if not self.wait_until(lambda: order.index(self.stage) >= order.index(stage)):
            return False
        moment = (self.stage_began(stage) or time.monotonic()) + after_s
        return self.wait_until(lambda: time.monotonic() >= moment) and self.running

    def wait(self) -> int:
        """Wait for its end; the exit code (negative: the signal that ended it)."""
        self.wait_until(lambda: False, poll_s=0.01)
        for reader in self._readers:
            reader.join(_PATIENCE_S)
        return self.process.wait()

    def text(self) -> str:
        """Everything it wrote, for people who look into a failure."""
        return "\n".join(line.text for line in [*self.lines, *self.errors])

    # ---- how it is ended --------------------------------------------------------------------------

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Signal its first process, as `docker stop` and schedulers do, or its group, as a terminal does."""
        if group:
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)

    def kill(self, *, group: bool) -> None:
        """SIGKILL, to its first process or to its whole process group."""
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def workers(self) -> list[int]:
        """Processes that this command has spawned and that run now."""
        found = []
        for pid in self.left_over():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def end(self) -> None:
        """See to it that nothing of it runs on."""
        for pid in [self.process.pid, *self.left_over()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def left_over(self) -> list[int]:
        """Processes beside the first that carry its mark: workers and what they started."""
        needle = f"{_MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone, or somebody else's
            if needle in variables and int(folder.name) != self.process.pid:
                found.append(int(folder.name))
        return found

    def orphans(self, *, within_s: float = 20.0) -> list[int]:
        """Processes that still run some time after the first one has gone."""
        deadline = time.monotonic() + within_s
        while (left := self.left_over()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def listens(self) -> bool:
        """Whether it has come so far as to handle SIGTERM itself (the interpreter's start takes a moment)."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        except OSError:
            return False
        caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def lengths(undisturbed: Command) -> dict[str, float]:
    """Seconds of each stage of a whole run that nothing disturbed."""
    begins = [undisturbed.stage_began(stage) for stage in ("start", *STAGES)]
    ends = [*begins[1:], undisturbed.lines[-1].at]
    return {
        stage: end - begin
        for stage, begin, end in zip(("start", *STAGES), begins, ends, strict=True)
        if begin is not None and end is not None
    }


def run(arguments: Sequence[str], **how: Any) -> Command:
    """Run a command to its end."""
    command = Command(arguments, **how)
    command.wait()
    return command


def make_demo_input(folder: Path, *, sources_per_class: int = 3, most_calls: int = 2) -> Path:
    """A small input folder of the demonstration's birds, with its broken files."""
    program = (
        "import sys; from pathlib import Path; from birdtune.pipeline.demo import make_data\n"
        f"make_data(Path(sys.argv[1]), sources_per_class={sources_per_class}, calls_per_source=(1, {most_calls}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code")}
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment)
    return folder
