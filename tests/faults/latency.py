"""How long the job takes from SIGTERM to its end, stage by stage, at the settings of a user (see torture.py --signals).

    settings ─▶ measure ─▶ a table: stage, moment, seconds to the exit, exit code, what run.json says
"""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers_command import STAGES, Command, lengths, make_demo_input, run

# Docker sends SIGKILL ten seconds after SIGTERM; two are left for what is slower elsewhere.
PROMISED_S = 8.0
# Training has many phases: building, first weights, compiling, updates, validation, saving.
_MOMENTS = {"start": 1, "prepare": 3, "load": 2, "train": 8, "evaluate": 3, "export": 5, "report": 2}
# What a stage leaves, without which it is done again; and all that is made anew with it.
_RESULTS = {
    "prepare": ("cache", "logs", "checkpoints", "reports", "model"),
    "train": ("logs", "checkpoints", "reports", "model"),
    "evaluate": ("reports/1/metrics.json",),
    "export": ("model",),
    "report": ("reports/1/report.html",),
    "load": ("reports/1/report.html",),
}


@dataclass(frozen=True)
class Sample:
    """One interruption."""

    stage: str
    after_s: float
    seconds: float
    cpu_s: float  # that the command computed in them: how long it would take on an idle machine with one core
    exit_code: int
    status: str
    errors: tuple[str, ...]
    orphans: int
    last_line: str  # what it said last before its end

    @property
    def is_stopped(self) -> bool:
        """Whether it ended as a stopped job should."""
        if self.exit_code == 0:  # it was done before it could be stopped
            return self.status == "done" and not self.errors and not self.orphans
        lines = len(self.errors) == 1 and self.errors[0].startswith("birdtune: stopped by")
        return self.exit_code == 143 and lines and not self.orphans

    @property
    def is_fine(self) -> bool:
        """Whether it kept what is promised."""
        return self.is_stopped and self.seconds <= PROMISED_S


def measure(folder: Path, seed: int, settings: Sequence[str]) -> int:
    """Interrupt each stage at some moments of it and print the table; 0 if all kept the promise."""
    rng = random.Random(seed)
    arguments = ["run", f"--input={make_demo_input(folder / 'input', sources_per_class=6)}",
                 "--model.checkpoint=none", f"--output={folder / 'output'}", *settings]  # fmt: skip
    whole = run([*arguments, "--train.epochs=2"])
    if whole.process.returncode:
        print(f"the undisturbed run failed:\n{whole.text()}")
        return 1
    seconds = lengths(whole)
    print("undisturbed: " + ", ".join(f"{stage} {length:.1f} s" for stage, length in seconds.items()))
    titles = f"{'stage':<10}{'after':>9}{'to the exit':>13}{'cpu':>9}{'exit':>6}  {'run.json':<12}{'load':>5}"
    print(f"\n{titles}  its last line", flush=True)
    samples = []
    # Backwards, so that what a stage needs is there.
    for stage in ("start", "load", *(stage for stage in STAGES[::-1] if stage != "load")):
        for after_s in moments(seconds[stage], _MOMENTS[stage], rng):
            for name in _RESULTS.get(stage, ()):
                path = folder / "output" / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            sample = interrupt(Command([*arguments, "--train.epochs=2"]), stage, after_s, folder / "output")
            if sample is not None:
                samples.append(sample)
                print(row(sample), flush=True)
    worst = max(samples, key=lambda sample: sample.seconds)
    wrong = [sample for sample in samples if not sample.is_fine]
    print(f"\nverdict: {len(samples)} interruptions, slowest {worst.seconds:.1f} s in {worst.stage}; "
          f"{len(wrong)} not as promised ({PROMISED_S:.0f} s, exit 143, one line, no process left)")  # fmt: skip
    return 1 if wrong else 0


def moments(length: float, n: int, rng: random.Random) -> Iterator[float]:
    """Random moments of a stage, one in each n-th part of it."""
    for part in range(n):
        yield (part + rng.uniform(0.05, 0.95)) / n * length


def interrupt(command: Command, stage: str, after_s: float, output: Path) -> Sample | None:
    """SIGTERM some time after a stage began; None if the command ended before."""
    try:
        if stage == "start":
            command.wait_until(command.listens)
        if not command.reach(stage, after_s):
            return None
        met, began = command.stage, command.stage_began(command.stage) or 0.0
        computed = _cpu_s(command.process.pid) + _ended_cpu_s()
        sent = time.monotonic()
        command.signal(signal.SIGTERM)
        code = command.wait()
        seconds = time.monotonic() - sent
        cpu_s = _ended_cpu_s() - computed
        status = json.loads((output / "run.json").read_text("utf-8"))["status"]
        errors = tuple(line.text for line in command.errors)
        last_line = command.lines[-1].text.strip() if command.lines else ""
        n_left = len(command.orphans())
        return Sample(met, sent - began, seconds, cpu_s, code, status, errors, n_left, last_line)
    finally:
        command.end()


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used, its ended children included."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _ended_cpu_s() -> float:
    """Processor time of all processes that were started here and have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def row(sample: Sample) -> str:
    """A line of the table."""
    odd = "" if sample.is_stopped else f" NOT AS PROMISED: {sample.errors}, {sample.orphans} processes left"
    seconds = f"{sample.after_s:>7.1f} s{sample.seconds:>11.1f} s{sample.cpu_s:>7.1f} s"
    rest = f"{sample.exit_code:>6}  {sample.status:<12}{os.getloadavg()[0]:>5.1f}"
    return f"{sample.stage:<10}{seconds}{rest}  {sample.last_line[:60]}{odd}"
