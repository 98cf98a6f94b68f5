"""Two jobs on one output folder, by the real command: who gets it, who is told what, what a dead one leaves."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_input import write_good

from birdtune.runtime.files import read_json

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
RECORD = ".lock.json"

# The command on a file system without flock, as some network file systems are.
WITHOUT_FLOCK = """
import errno, fcntl, os, sys
def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refuse
from birdtune.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

# One of several that start at the same moment; who has the folder holds it until standard input ends.
STARTER = """
import errno, fcntl, os, sys
from pathlib import Path
def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
fcntl.flock = refuse
from birdtune.errors import BusyError
from birdtune.runtime.log import Journal
from birdtune.runtime.lock import alone_in
print("ready", flush=True)
sys.stdin.readline()
try:
    with alone_in(Path(sys.argv[1]), Journal(quiet=True)):
        print("won", flush=True)
        sys.stdin.read()
except BusyError as fault:
    print("lost", fault, flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "data"
    write_good(folder)
    return folder


def arguments(command: str, data: Path, output: Path) -> list[str]:
    settings = {
        "data": data, "input": data.parent, "output": output, "model.backbone": "vggish-small",
        "model.checkpoint": "none", "train.epochs": 1000, "prepare.workers": 2,
    }  # fmt: skip
    return [command, *(f"--{name}={value}" for name, value in settings.items())]


@contextlib.contextmanager
def job(command: str, data: Path, output: Path, how: tuple[str, ...] = ("-m", "birdtune")) -> Iterator[Any]:
    """A job under way, ended at the latest with the block."""
    process = subprocess.Popen(
        [sys.executable, *how, *arguments(command, data, output)], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("BIRDTUNE_")}
    return own | {"PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2"}


def run(
    command: str, data: Path, output: Path, how: tuple[str, ...] = ("-m", "birdtune")
) -> subprocess.CompletedProcess[str]:
    with job(command, data, output, how) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def until_at_work(process: Any, output: Path) -> dict[str, Any]:
    """Wait until a job has its folder; its record."""
    deadline = time.monotonic() + 60
    while True:
        record = read_json(output / RECORD)
        if isinstance(record, dict) and record.get("pid") == process.pid:
            return record
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_job_is_told_who_is_at_work_and_the_first_is_not_disturbed(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with job("prepare", data, output) as first:
        record = until_at_work(first, output)
        first.send_signal(signal.SIGSTOP)  # as long as this takes
        os.waitid(os.P_PID, first.pid, os.WSTOPPED)
        before = content(output)
        second = run("run", data, output)
        check = run("check", data, output)
        assert content(output) == before
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=120)
    assert second.returncode == 75
    assert second.stdout == ""
    assert second.stderr.startswith(
        f"birdtune: error: {output}: another job is working in this folder: `birdtune prepare` on host "
        f"{record['host']}"
    )
    assert f", process {first.pid}, since {record['since']}." in second.stderr
    assert second.stderr.count("\n") == 1
    assert check.returncode == 0, check.stderr
    assert check.stdout.startswith(
        f"note: nothing is written to {output}, where a job is at work: `birdtune prepare`"
    )
    assert "18 usable" in check.stdout
    assert (first.returncode, err) == (0, "")
    assert "18 recordings of 3 classes" in out
    assert not (output / RECORD).exists()


@pytest.mark.parametrize("how", [("-m", "birdtune"), ("-c", WITHOUT_FLOCK)], ids=["flock", "no flock"])
def test_a_job_that_was_killed_keeps_nobody_out(data: Path, tmp_path: Path, how: tuple[str, ...]) -> None:
    output = tmp_path / "output"
    with job("prepare", data, output, how) as first:
        until_at_work(first, output)
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        if not children.exists():
            pytest.skip("this kernel does not tell the children of a process")
        deadline = time.monotonic() + 60
        while not children.read_text():  # its workers
            assert first.poll() is None and time.monotonic() < deadline
        first.kill()
        first.wait()
        assert (output / RECORD).exists()
        again = run("prepare", data, output, how)
    assert (again.returncode, again.stderr) == (0, "")
    assert "note: The last job here ended without finishing: `birdtune prepare`" in again.stdout
    assert f"process {first.pid}," in again.stdout
    assert not (output / RECORD).exists()


def test_of_several_that_start_at_once_without_flock_one_has_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        folder.mkdir()
        if int(folder.name) % 2:  # of a job of this machine that is dead, so that there is one to take the place of
            gone = subprocess.Popen([sys.executable, "-c", STARTER, folder], env=environment(), text=True,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
            with gone:
                assert gone.stdin is not None and gone.stdout is not None
                gone.stdin.write("\n")
                gone.stdin.flush()
                assert [gone.stdout.readline() for _ in range(2)] == ["ready\n", "won\n"]
                gone.kill()
    starters = [
        (folder, subprocess.Popen([sys.executable, "-c", STARTER, folder], env=environment(), text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for folder in folders for _ in range(2)
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for _, starter in starters:
            stack.enter_context(starter)
            assert starter.stdout is not None and starter.stdout.readline() == "ready\n"
        for _, starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("\n")
            starter.stdin.flush()
        said: dict[Path, list[str]] = {folder: [] for folder in folders}
        for folder, starter in starters:
            assert starter.stdout is not None
            said[folder].append(starter.stdout.readline())
        for folder, lines in said.items():
            lost, won = sorted(lines)
            assert won == "won\n", folder
            assert lost.startswith(f"lost {folder}: another job is working in this folder: `birdtune ")
        for _, starter in starters:
            assert starter.stdin is not None
            starter.stdin.close()
    for folder in folders:
        assert {path.name for path in folder.iterdir()} <= {".lock"}
