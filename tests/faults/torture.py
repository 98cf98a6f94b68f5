"""Kill the job again and again, and see whether anything comes out otherwise.

    python tests/faults/torture.py [--kills 20] [--seed 1] [--keep FOLDER] [-- SETTINGS]     e.g. --init-from FOLDER
    python tests/faults/torture.py --signals [-- SETTINGS]

The job runs once undisturbed; then, in another folder, it is killed (SIGKILL) at random moments that are spread
over its stages, restarted each time, until all kills are spent and it ends. Weights, history, figures, model and
books of the two must be the same. Every second kill takes the main process alone, so that it shows whether its
workers go with it. Prints a table and a verdict; exits 0 if nothing was lost, else 1.

With --signals: how long the job takes from SIGTERM to its end in every stage, at the settings given (default: the
full network and batches of 32, as a user would run it). Needs the packages of requirements.txt: any Python that
has them, or .venv, which `./entrypoint.sh` makes.
"""

import argparse
import contextlib
import importlib.util
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers_command import QUICK, ROOT, STAGES, Command, lengths, make_demo_input, run
from helpers_compare import Findings, compare
from latency import measure

# So that a kill meets a checkpoint within the epoch.
ALWAYS_SAVING = "--train.checkpoint-minutes=0.00001"
# Where kills go: stages by name, `epoch` within an epoch after some new checkpoints, `checkpoint` while one is
# being written. The order is that of a job; which of them a few kills take is said by `_FIRST`.
PLACES = ("start", "prepare", "load", "train", "epoch", "checkpoint", "evaluate", "export", "report")
_SHARES = {"start": 1, "prepare": 3, "load": 1, "train": 2, "epoch": 4, "checkpoint": 3, "evaluate": 2, "export": 3,
           "report": 1}  # fmt: skip
_FIRST = ("epoch", "prepare", "export", "checkpoint", "evaluate", "train", "start", "report", "load")
# Of a stage's length: its end is left out, where a kill would fall into the next if the machine is faster by then.
# Of training the beginning is meant, where the network is built and compiled; what is prepared stays so, and each
# kill takes a part of it.
_LATEST = {"prepare": 0.3, "train": 0.3}
_LATEST_OTHERS = 0.7


@dataclass
class Kill:
    """One kill: where it was meant to be, and what came of it."""

    place: str
    group: bool
    stage: str = ""
    after_s: float = 0.0
    next_said: str = ""


def plan(kills: int, rng: random.Random) -> list[str]:
    """Where the kills go, in the order of the job."""
    share = {place: int(place in _FIRST[:kills]) for place in PLACES}
    while sum(share.values()) < kills:
        share[max(PLACES, key=lambda place: _SHARES[place] / (share[place] + 1))] += 1
    places = [place for place in PLACES for _ in range(share[place])]
    # The start is passed every time, so it can be killed at any time.
    starts = share["start"]
    rest = places[starts:]
    for _ in range(starts):
        rest.insert(rng.randrange(len(rest) + 1), "start")
    return rest


class Torturer:
    """Kills a job in one output folder until the kills are spent."""

    def __init__(self, arguments: Sequence[str], output: Path, seconds: dict[str, float], rng: random.Random) -> None:
        self.arguments, self.output, self.seconds, self.rng = arguments, output, seconds, rng
        self.kills: list[Kill] = []
        self.orphans: list[int] = []
        self.last: Command | None = None

    def run(self, places: Sequence[str]) -> Iterator[Kill]:
        """Kill at each place; then let it end. Yields each kill when it is known what the next start said."""
        for number, place in enumerate(places):
            kill = Kill(place, group=number % 2 == 0)
            command = self._start()
            try:
                met = self._wait_for(command, place)
                if not met:
                    break
                kill.stage, kill.after_s = command.stage, time.monotonic() - (command.stage_began(command.stage) or 0)
                command.kill(group=kill.group)
                self.orphans += command.orphans()
            finally:
                command.end()
            if self.kills:
                self.kills[-1].next_said = went_on(command)
                yield self.kills[-1]
            self.kills.append(kill)
        self.last = self._start()
        self.last.wait()
        self.orphans += self.last.orphans()
        if self.kills:
            self.kills[-1].next_said = went_on(self.last)
            yield self.kills[-1]

    def _start(self) -> Command:
        return Command([*self.arguments, f"--output={self.output}"])

    def _wait_for(self, command: Command, place: str) -> bool:
        """Wait for the moment of a kill; False if the job ended before."""
        if place not in ("epoch", "checkpoint"):
            latest = _LATEST.get(place, _LATEST_OTHERS)
            return command.reach(place, self.rng.uniform(0, latest) * self.seconds[place])
        command.wait_until(lambda: command.stage not in ("start", "prepare", "load"))
        self._wait_for_checkpoints(command, self.rng.randint(1, 6))
        if place == "checkpoint":
            command.wait_until(lambda: command.stage != "train" or any(self._being_written()))
            time.sleep(self.rng.choice([0, 0, 0.002, 0.01]))
        else:
            time.sleep(self.rng.uniform(0, 0.1))
        return command.running

    def _wait_for_checkpoints(self, command: Command, n: int) -> None:
        seen = set(self._checkpoints())
        while n and command.running and command.stage == "train":
            new = set(self._checkpoints()) - seen
            n -= min(n, len(new))
            seen |= new
            time.sleep(0.001)

    def _checkpoints(self) -> list[str]:
        return [path.name for path in self.output.glob("checkpoints/*/epoch-*")]

    def _being_written(self) -> Iterator[Path]:
        return self.output.glob("checkpoints/*/.unfinished*")


def went_on(command: Command) -> str:
    """What a start said about where it goes on."""
    texts = [line.text.strip() for line in command.lines]
    said = [text.split(",")[0] for text in texts if " decoded, " in text]
    said += [text.split(", logs")[0] for text in texts if text.startswith(("version", "resuming", "nothing to do"))]
    first = next((stage for stage in STAGES[2:] if command.stage_began(stage)), None)
    return "; ".join([*said, *([f"begins with {first}"] if first else [])]) or "nothing yet"


def torture(folder: Path, kills: int, seed: int, settings: Sequence[str]) -> int:
    """The whole of it; 0 if nothing was lost."""
    began = time.monotonic()
    arguments = ["run", f"--input={make_demo_input(folder / 'input')}", *QUICK, ALWAYS_SAVING, *settings]
    straight = run([*arguments, f"--output={folder / 'straight'}"])
    if straight.process.returncode:
        print(f"the undisturbed run failed:\n{straight.text()}")
        return 1
    seconds = lengths(straight)
    print("undisturbed: " + ", ".join(f"{stage} {length:.1f} s" for stage, length in seconds.items()), flush=True)
    done, findings = kill_and_compare(arguments, folder / "straight", folder / "killed", seconds, kills, seed)
    return tell(findings, done, kills, time.monotonic() - began)


def kill_and_compare(
    arguments: Sequence[str], straight: Path, killed: Path, seconds: dict[str, float], kills: int, seed: int
) -> tuple[int, Findings]:
    """Torture a job in the folder `killed`, and compare it with the folder where nothing disturbed it.

    Returns:
        how many kills there were (fewer than asked for, if the job was done before), and the comparison.
    """
    rng = random.Random(seed)
    torturer = Torturer(arguments, killed, seconds, rng)
    print(f"\n{'kill':>4}  {'meant for':<11}{'fell into':<11}{'after':>8}  {'process':<8}what the next start said")
    for number, kill in enumerate(torturer.run(plan(kills, rng)), start=1):
        who = "group" if kill.group else "main"
        row = f"{number:>4}  {kill.place:<11}{kill.stage:<11}{kill.after_s:>6.2f} s  {who:<8}{kill.next_said}"
        print(row, flush=True)
    last = torturer.last
    assert last is not None
    if last.process.returncode:
        print(last.text())
    return len(torturer.kills), [
        ("the last start ended well", f"exit code {last.process.returncode}" if last.process.returncode else ""),
        ("no process was left over", f"{torturer.orphans}" if torturer.orphans else ""),
        *compare(straight, killed),
    ]


def tell(findings: Findings, done: int, wanted: int, seconds: float) -> int:
    """Print what was compared, and the verdict; 0 if all was well."""
    print()
    for what, fault in findings:
        print(f"  {'ok   ' if not fault else 'WRONG'}  {what}{f': {fault}' if fault else ''}")
    wrong = [what for what, fault in findings if fault]
    verdict = "something was lost" if wrong else "nothing was lost"
    print(f"\nverdict: {done} of {wanted} kills, {verdict} ({seconds:.0f} s)")
    return 1 if wrong else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    parser.add_argument("--signals", action="store_true", help="measure how quickly SIGTERM ends each stage")
    parser.add_argument("settings", nargs="*", help="further settings of the job, after --")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="birdtune-torture-")))
        if options.signals:
            return measure(folder, options.seed, options.settings)
        return torture(folder, options.kills, options.seed, options.settings)


def use_venv() -> None:
    """Go on with the project's own Python, if this one lacks the packages."""
    own = ROOT / ".venv/bin/python"
    if importlib.util.find_spec("tensorflow") is None and own.exists():
        os.execv(own, [str(own), *sys.argv])


if __name__ == "__main__":
    use_venv()
    sys.exit(main(sys.argv[1:]))
