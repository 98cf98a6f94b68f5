"""SIGTERM and SIGINT at random moments: one line, the right exit code, no process left behind, nothing lost."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_command import Command, Straight
from helpers_compare import books, compare_results

pytestmark = pytest.mark.long

TERM, INT = signal.SIGTERM, signal.SIGINT


def record(output: Path) -> dict[str, Any]:
    found = json.loads((output / "run.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def assert_stopped(command: Command, signum: int, *, lines: int | None = 1, then: str = "") -> None:
    """It ended as a stopped command should: by its code, with one line and no traceback, with all its processes.

    Args:
        then: what else may stand behind the name of the signal.
    """
    assert command.wait() == 128 + signum, command.text()
    said = [line.text for line in command.errors]
    stopped = f"birdtune: stopped by {signal.Signals(signum).name}"
    expected = {f"{stopped}; {words}" for words in ("run again to continue", then) if words}
    assert set(said) <= expected and (lines is None or len(said) == lines), command.text()
    assert "Traceback" not in command.text()
    assert command.orphans() == []


# ---- the job ------------------------------------------------------------------------------------


class Interrupted:
    """One job that is stopped in stage after stage, and started again each time."""

    def __init__(self, straight: Straight, output: Path) -> None:
        self.straight, self.output = straight, output
        self.seconds = dict(straight.seconds)

    def start(self) -> Command:
        return Command([*self.straight.arguments, f"--output={self.output}"])

    def stop_in(self, stage: str, signum: int, *, how: str = "one") -> Command:
        """Stop it at a random moment of a stage; `how`: one signal, two of them, or one to the whole group."""
        while True:
            command = self.start()
            if command.reach(stage, random.uniform(0, 0.8) * self.seconds[stage]):
                self._stop(command, signum, how)
            if command.wait() != 0:
                return command
            # It was faster than when it was timed, on a busier machine, and is done. To take one result away would
            # have a stage made twice, which is what the books are looked at for: all of it begins anew.
            shutil.rmtree(self.output)
            self.seconds[stage] /= 2

    def stop_when(self, condition: Callable[[Command], object], signum: int) -> Command:
        """Stop it as soon as something is so."""
        command = self.start()
        assert command.wait_until(lambda: condition(command), poll_s=0.01), command.text()
        self._stop(command, signum, "one")
        return command

    def _stop(self, command: Command, signum: int, how: str) -> None:
        try:
            command.signal(signum, group=how == "group")
            if how == "two":
                time.sleep(random.uniform(0, 0.05))
                command.signal(signum)  # which may find it gone already
            if command.wait() == 0:
                return
            assert_stopped(command, signum, lines=1 if how != "two" else None)
            found = record(self.output)
            if how != "two":
                assert (found["status"], found["exit_code"]) == ("interrupted", 128 + signum), command.text()
                assert signal.Signals(signum).name in found["error"] and found["finished"]
                assert list(self.output.rglob(".unfinished*")) == []
        finally:
            command.end()


def test_a_job_that_is_stopped_in_every_stage_comes_to_the_same(straight: Straight, tmp_path: Path) -> None:
    output = tmp_path / "output"
    job = Interrupted(straight, output)
    # As Ctrl-C at a terminal does it: the workers get it as well, and say nothing.
    job.stop_in("prepare", INT, how="group")
    job.stop_in("prepare", TERM)
    job.stop_in("load", INT)
    job.stop_when(lambda command: command.said("  epoch   1 of"), INT)
    resumed = job.stop_when(lambda command: command.said("  resuming before epoch"), TERM)
    assert resumed.said("version 1: going on")
    job.stop_in("train", TERM, how="two")
    job.stop_in("evaluate", INT)
    job.stop_when(lambda command: command.stage == "export" and command.workers(), TERM)
    job.stop_in("report", TERM)
    last = job.start()
    assert last.wait() == 0, last.text()
    findings = compare_results(straight.output, output)
    assert [finding for finding in findings if finding[1]] == []
    assert books(output) == []


# ---- the other commands, and the start ----------------------------------------------------------


@pytest.mark.parametrize("signum", [TERM, INT])
def test_the_very_start_heeds_signals(signum: int, straight: Straight, tmp_path: Path) -> None:
    command = Command([*straight.arguments, f"--output={tmp_path / 'output'}"])
    try:
        assert command.wait_until(command.listens)
        command.signal(signum)
        assert_stopped(command, signum)
    finally:
        command.end()


@pytest.mark.parametrize(
    ("name", "signum", "after_s"), [("predict", TERM, 4.0), ("embed", INT, 4.0), ("check", INT, 2.0)]
)
def test_other_commands_stop_too_and_leave_nothing(
    name: str, signum: int, after_s: float, straight: Straight, tmp_path: Path
) -> None:
    arguments = {
        "predict": [str(straight.input / "data"), f"--out={tmp_path / 'out'}", f"--output={straight.output}"],
        "embed": [str(straight.input / "data"), f"--out={tmp_path / 'out'}", f"--output={straight.output}"],
        "check": [f"--input={straight.input}", "--model.checkpoint=none", f"--output={tmp_path / 'output'}"],
    }[name]
    while True:
        command = Command([name, *arguments])
        try:
            assert command.wait_until(command.listens)
            time.sleep(random.uniform(0, after_s))
            if not command.running:
                after_s /= 2
                continue
            command.signal(signum)
            if command.wait() == 0:  # too late
                after_s /= 2
                continue
            # Before it has begun it says no more than any command.
            nothing = f"{tmp_path / 'out'} was not written, and nothing is kept"
            assert_stopped(command, signum, then=nothing if name != "check" else "")
            assert list(tmp_path.rglob(".unfinished*")) == [] and not (tmp_path / "out").exists()
            return
        finally:
            command.end()
            (tmp_path / "out").unlink(missing_ok=True)


def test_a_demonstration_that_is_stopped_leaves_no_half_of_its_sounds(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = Command(["demo", f"--output={output}", "--model.backbone=vggish-small"])
    try:
        assert command.wait_until(lambda: list(output.glob(".unfinished*/data/*/*")))
        time.sleep(random.uniform(0, 2))
        command.signal(TERM)
        assert_stopped(command, TERM)
    finally:
        command.end()
    assert not (output / "demo-input").exists() and list(output.glob(".unfinished*")) == []
