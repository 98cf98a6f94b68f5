"""runtime.lock: one job a folder, whatever became of the job before, and on file systems without locks."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from makers import ordinary_folder

from birdtune.errors import BusyError, InputError, SettingsError
from birdtune.runtime import lock, mounts
from birdtune.runtime.lock import LEASE_NAME, LOCK_NAME, OWNER_NAME, alone_in
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import is_chief, rank

CODE = Path(lock.__file__).parents[2]
OTHER = {"command": "train", "host": "spot-7", "pid": 7, "since": "2026-01-02T03:04:05Z"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    monkeypatch.setattr(lock, "LEASE_S", 1.5)
    monkeypatch.setattr(lock, "RENEWAL_S", 0.2)


@pytest.fixture(params=["one machine", "shared", "no flock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system of the output folder is like."""
    monkeypatch.setattr(mounts, "is_shared", lambda folder: request.param == "shared")
    if request.param == "no flock":
        monkeypatch.setattr("fcntl.flock", refuse)
    return str(request.param)


def refuse(*_: object) -> None:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def enter(folder: Path) -> list[str]:
    """Take a folder and give it back. Returns the warnings."""
    warnings: list[str] = []

    class Listening(Journal):
        def warn(self, line: str, **_: Any) -> None:
            warnings.append(line)

    with alone_in(folder, Listening(quiet=True)):
        owner = json.loads((folder / OWNER_NAME).read_text())
        assert owner["pid"] == os.getpid() and owner["since"].startswith("20")
    assert set(left(folder)) <= {LOCK_NAME}
    return warnings


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_job_is_refused_with_who_where_and_since_when(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "first"
    with alone_in(folder, Journal(quiet=True)):
        owner = json.loads((folder / OWNER_NAME).read_text())
        with pytest.raises(BusyError) as caught, alone_in(folder, Journal(quiet=True)):
            raise AssertionError("two jobs in one folder")
        enter(tmp_path / "other")
    assert caught.value.exit_code == 75
    who = f"on host {owner['host']}, process {os.getpid()}, since {owner['since']}"
    assert who in str(caught.value) and who in caught.value.who and "--output" in str(caught.value)
    assert str(caught.value).startswith(f"{folder}: another job is working in this folder: `birdtune ")
    assert enter(folder) == []


def test_whatever_a_job_raises_gives_the_folder_back(tmp_path: Path, kind: str) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path, Journal(quiet=True)):
        raise KeyError
    assert set(left(tmp_path)) <= {LOCK_NAME}
    assert enter(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from birdtune.runtime import lock, mounts
from birdtune.runtime.log import Journal
mounts.is_shared = lambda folder: sys.argv[2] == "shared"
lock.LEASE_S, lock.RENEWAL_S = 1.5, 0.2
with lock.alone_in(Path(sys.argv[1]), Journal(quiet=True)):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["one machine", "shared"])
def test_a_job_that_was_killed_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(mounts, "is_shared", lambda folder: where == "shared")
    subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, where], env=os.environ | {"PYTHONPATH": str(CODE)}, check=False
    )
    assert OWNER_NAME in left(tmp_path)
    [warning] = enter(tmp_path)
    assert warning.startswith("The last job here ended without finishing: `birdtune ") and "process " in warning


def test_the_lease_of_a_job_on_another_machine_is_waited_for_until_it_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "is_shared", lambda folder: True)
    marker = tmp_path / LEASE_NAME
    marker.write_text("filelock/2\npid=7\nhost=spot-7\nmode=lease\nduration=1.5\ntoken=0\n")
    (tmp_path / OWNER_NAME).write_text(json.dumps(OTHER))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            os.utime(marker)

    other = threading.Thread(target=renew)
    other.start()
    with pytest.raises(BusyError, match="`birdtune train` on host spot-7, process 7, since 2026-01-02T03:04:05Z"):
        enter(tmp_path)
    ended.set()
    other.join()
    [warning] = enter(tmp_path)
    assert "on host spot-7" in warning


def test_a_job_that_lost_its_lease_ends_with_75_and_touches_nothing(tmp_path: Path) -> None:
    script = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print('in', flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, "shared"], env=os.environ | {"PYTHONPATH": str(CODE)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stdout is not None and job.stdout.readline() == "in\n"
        (tmp_path / "new").write_text("another's")
        (tmp_path / "new").replace(tmp_path / LEASE_NAME)
        (tmp_path / OWNER_NAME).write_text(json.dumps(OTHER))
        job.wait(timeout=60)
        assert job.stderr is not None
        error = job.stderr.read()
    assert job.returncode == 75
    assert error.startswith(f"birdtune: error: {tmp_path}: this job lost its lock") and error.count("\n") == 1
    assert "on host spot-7" in error
    assert (tmp_path / LEASE_NAME).read_text() == "another's"


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff\xfe", b'{"host": "\\u001b[2J\\nx", "command": null}'])
def test_a_damaged_or_forged_record_is_shown_safely(tmp_path: Path, record: bytes) -> None:
    (tmp_path / OWNER_NAME).write_bytes(record)
    [warning] = enter(tmp_path)
    assert warning.isprintable()


def test_a_folder_or_a_lock_that_may_not_be_written_is_reported() -> None:
    with ordinary_folder() as folder:
        (folder / "output").mkdir()
        (folder / "output").chmod(0o555)
        with pytest.raises(InputError, match="cannot be written"):
            enter(folder / "output")
        (folder / LOCK_NAME).touch()
        (folder / LOCK_NAME).chmod(0)
        with pytest.raises(InputError, match=rf"\.lock: cannot be written .*uid {os.geteuid()}"):
            enter(folder)


def task(kind: str, index: int, **cluster: list[str]) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_of_a_distributed_job_the_chief_alone_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank(), is_chief()) == (0, True)
    two = {"worker": ["a:1", "b:1"]}
    for text, number in [
        (task("worker", 0, **two), 0), (task("worker", 1, **two), 1), (task("chief", 0, chief=["c:1"], **two), 0),
        (task("worker", 0, chief=["c:1"], **two), 1), ("", 0),
    ]:  # fmt: skip
        monkeypatch.setenv("TF_CONFIG", text)
        assert rank() == number, text
    monkeypatch.setenv("TF_CONFIG", task("worker", 1, **two))
    with alone_in(tmp_path / "output", Journal(quiet=True)):
        assert not (tmp_path / "output").exists()
    monkeypatch.setenv("TF_CONFIG", "[1]")
    with pytest.raises(SettingsError, match=r"TF_CONFIG=\[1\]: expected"):
        rank()


def test_a_lock_that_is_just_given_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 60.0)
    with (tmp_path / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        assert enter(tmp_path) == []
        timer.join()
