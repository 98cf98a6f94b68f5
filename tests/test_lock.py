"""runtime.lock and runtime.holder: one job a folder, whoever died there before, and whatever the file system lacks.

Other machines are records written as they would write them; file systems are stood in for by what they refuse.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from makers import ordinary_folder

from birdtune.errors import BusyError, InputError, Interrupted
from birdtune.runtime import holder as holders
from birdtune.runtime import lock
from birdtune.runtime.events import Journal
from birdtune.runtime.holder import Holder, Verdict, judge, look, myself
from birdtune.runtime.lock import RECORD_NAME, alone_in

CODE = Path(lock.__file__).parents[1]
NO_PROCESS = (1 << 22) - 1  # above what any machine of the tests counts to


@pytest.fixture(autouse=True)
def _on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests lie on, it is told as an ordinary disk; and nobody waits longer than needed."""
    monkeypatch.setattr(holders, "_filesystem", lambda *_: "ext4")
    monkeypatch.setattr(lock, "_SETTLE_S", 0.05)
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.3)


def refuse(*_: object) -> None:
    """What a file system says to that which it does not know."""
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(holders, "_filesystem", lambda *_: "nfs")


@pytest.fixture
def on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_filesystem", lambda *_: "nfs4")


def me(folder: Path, **changes: Any) -> Holder:
    """A record of this process, as it would be written in a folder, with changes."""
    (folder / lock.LOCK_NAME).touch()
    with (folder / lock.LOCK_NAME).open() as file:
        mine = myself("0" * 32, folder, file.fileno(), flock=True)
    return mine.model_copy(update=changes)


def elsewhere(folder: Path, **changes: Any) -> Holder:
    """The record of a job in a container of another machine, on a network file system."""
    there = {
        "host": "spot-7", "container": "0123456789ab", "pid": 7, "since": "2026-01-02T03:04:05Z",
        "boot": "another", "namespace": "pid:[7]", "filesystem": "nfs4", "device": 77,
    }  # fmt: skip
    return me(folder, **there | changes)


def leave(folder: Path, record: Holder | bytes, age_s: float = 0.0) -> Path:
    """Put a record into a folder, with its last sign of life that long ago."""
    path = folder / RECORD_NAME
    path.write_bytes(record if isinstance(record, bytes) else record.model_dump_json().encode())
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def enter(folder: Path) -> list[str]:
    """Take a folder and give it back. Returns what was told of who had it before."""
    told: list[str] = []

    class Told(Journal):
        def warn(self, line: str) -> None:
            told.append(line)

    with alone_in(folder, Told(quiet=True)):
        found = look(folder / RECORD_NAME)
        assert found is not None and found.holder is not None and found.holder.pid == os.getpid()
    assert left(folder) == [lock.LOCK_NAME], "nothing but the lock file stays"
    return told


def refused(folder: Path) -> str:
    """Fail to take a folder. Returns what is told of who has it."""
    before = look(folder / RECORD_NAME)
    with pytest.raises(BusyError) as caught, alone_in(folder, Journal(quiet=True)):
        raise AssertionError("two jobs in one folder")
    assert caught.value.exit_code == 75
    assert look(folder / RECORD_NAME) == before, "the other's record is as it was"
    assert not list(folder.glob(".unfinished-*"))
    return str(caught.value)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- one job a folder ---------------------------------------------------------------------------


def test_the_second_job_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path, Journal(quiet=True)):
        text = refused(tmp_path)
        enter(tmp_path / "other")
    record = me(tmp_path)
    assert text.startswith(f"{tmp_path}: another job is working in this folder: `birdtune ")
    for part in (
        f"on host {record.host}",
        f"process {os.getpid()}, since 20",
        "last sign of life",
        "--output",
    ):
        assert part in text
    assert "is free in" not in text, "a process of this machine is known to be there"


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_second_job_is_told_as_well(tmp_path: Path) -> None:
    with alone_in(tmp_path, Journal(quiet=True)):
        assert f"process {os.getpid()}" in refused(tmp_path)
    enter(tmp_path)


def test_what_a_job_raises_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path, Journal(quiet=True)):
        raise KeyError
    assert left(tmp_path) == [lock.LOCK_NAME]


def test_a_lock_that_nobody_tells_of_is_told_as_such(tmp_path: Path) -> None:
    with (tmp_path / lock.LOCK_NAME).open("w") as file:
        lock.fcntl.flock(file, lock.fcntl.LOCK_EX)
        assert "it left no readable record" in refused(tmp_path)
        leave(tmp_path, me(tmp_path, pid=NO_PROCESS))
        assert "it left no readable record" in refused(tmp_path), "who is dead does not hold it"


def test_a_lock_that_is_just_given_back_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 60.0)
    with (tmp_path / lock.LOCK_NAME).open("w") as file:
        lock.fcntl.flock(file, lock.fcntl.LOCK_EX)
        monkeypatch.setattr(lock.time, "sleep", lambda _: lock.fcntl.flock(file, lock.fcntl.LOCK_UN))
        enter(tmp_path)


# ---- the dead -----------------------------------------------------------------------------------


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.usefixtures("without_flock")
def test_a_process_of_this_machine_that_ended_is_dead_at_once(tmp_path: Path) -> None:
    leave(tmp_path, me(tmp_path, pid=ended_process(), host="here", container=None, since="then"))
    [told] = enter(tmp_path)
    assert told.startswith("The job that had this folder is dead (its process has ended): `birdtune ")
    assert "on host here, process " in told
    assert told.endswith(", since then. Going on in its place.")


@pytest.mark.usefixtures("without_flock")
def test_a_number_that_another_process_has_by_now_is_no_life(tmp_path: Path) -> None:
    start = me(tmp_path).process_start
    assert start is not None
    leave(tmp_path, me(tmp_path, process_start=start - 1))
    assert "its process has ended" in enter(tmp_path)[0]


@pytest.mark.usefixtures("without_flock")
def test_a_process_that_nobody_has_asked_for_since_it_ended_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = holders._process(process.pid)
    assert found is not None
    leave(tmp_path, me(tmp_path, pid=process.pid, process_start=found[1]))
    assert f"process {process.pid}," in refused(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table
    assert "its process has ended" in enter(tmp_path)[0]
    with process:
        pass


@pytest.mark.usefixtures("without_flock")
def test_the_living_process_of_another_user_is_alive() -> None:
    first = holders._process(1)
    if first is None:
        pytest.skip("/proc hides the processes of others here")
    with ordinary_folder() as folder:
        leave(folder, me(folder, pid=1, process_start=first[1]), age_s=9999)
        assert "process 1," in refused(folder)


def test_a_process_that_gave_no_sign_for_long_is_alive_all_the_same(tmp_path: Path) -> None:
    # Stopped by SIGSTOP or by a paused container: it will go on.
    with alone_in(tmp_path, Journal(quiet=True)):
        os.utime(tmp_path / RECORD_NAME, (0, 0))
        text = refused(tmp_path)
    assert "last sign of life" in text and "is free in" not in text


def test_another_container_of_this_machine_is_dead_when_the_system_has_its_lock_back(tmp_path: Path) -> None:
    there = me(tmp_path, namespace="pid:[7]", pid=1, filesystem="fuse.x")
    leave(tmp_path, there)
    assert "the system has taken its lock back" in enter(tmp_path)[0]


@pytest.mark.parametrize("changes", [{"flock": False}, {"device": 7}, {"lock": 7}, {"boot": None}])
def test_where_the_lock_proves_nothing_another_container_is_waited_for(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    # Two mounts of one bucket on one machine know two locks; so do two files, when somebody deletes the first.
    there = me(tmp_path, namespace="pid:[7]", pid=1, filesystem="fuse.x", **changes)
    leave(tmp_path, there, age_s=80)
    assert re.search(r"the folder is free in (10|\d(\.\d)?) s\.$", refused(tmp_path))
    leave(tmp_path, there, age_s=100)
    assert re.search(r"\(no sign of life for 1 min \d\d s\)", enter(tmp_path)[0])


def test_what_a_disk_holds_from_before_the_machine_was_started_is_past(tmp_path: Path) -> None:
    leave(tmp_path, me(tmp_path, boot="an earlier one", pid=os.getpid()))
    assert "it ran before this machine was last started" in enter(tmp_path)[0]


def test_a_copy_of_a_folder_at_work_is_free(tmp_path: Path) -> None:
    with alone_in(tmp_path / "first", Journal(quiet=True)):
        (tmp_path / "copy").mkdir()
        for name in left(tmp_path / "first"):
            (tmp_path / "copy" / name).write_bytes((tmp_path / "first" / name).read_bytes())
        assert "its record came here with a copy of the folder" in enter(tmp_path / "copy")[0]


@pytest.mark.usefixtures("on_nfs")
@pytest.mark.parametrize("flock", [True, False])
def test_a_job_on_another_machine_lives_as_long_as_it_gives_signs_of_it(tmp_path: Path, flock: bool) -> None:
    leave(tmp_path, elsewhere(tmp_path, flock=flock), age_s=30)
    text = refused(tmp_path)
    assert "on host spot-7 (container 0123456789ab), process 7, since 2026-01-02T03:04:05Z" in text
    assert re.search(r"; last sign of life 3\d s ago\. Wait for it", text)
    assert re.search(r" If that job is dead, the folder is free in (1 min 00|5\d) s\.$", text)
    leave(tmp_path, elsewhere(tmp_path, flock=flock), age_s=95)
    [told] = enter(tmp_path)
    assert re.search(r"is dead \(no sign of life for 1 min \d\d s\): `birdtune .*spot-7", told)


@pytest.mark.usefixtures("on_nfs")
def test_a_sign_of_life_from_the_future_keeps_nobody_out_for_long(tmp_path: Path) -> None:
    leave(tmp_path, elsewhere(tmp_path), age_s=-3 * 365 * 86_400)
    assert len(enter(tmp_path)) == 1


def test_time_is_told_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "_filesystem", lambda *_: "nfs4")
    leave(tmp_path, elsewhere(tmp_path), age_s=5)
    monkeypatch.setattr(lock.time, "time", lambda: time.monotonic() + 1e9)
    assert re.search(r"last sign of life \d+ s ago", refused(tmp_path))


@pytest.mark.usefixtures("on_nfs")
def test_the_lock_of_a_machine_that_the_server_has_forgotten_to_forget_is_left_behind(tmp_path: Path) -> None:
    there = elsewhere(tmp_path)
    with (tmp_path / lock.LOCK_NAME).open("w") as file:
        lock.fcntl.flock(file, lock.fcntl.LOCK_EX)
        leave(tmp_path, there, age_s=600)
        text = refused(tmp_path)
        assert re.search(r"last sign of life 10 min \d\d s ago.* is free in (5 min 00|4 min \d\d) s", text)
        leave(tmp_path, there, age_s=1000)
        assert "no sign of life for 16 min" in enter(tmp_path)[0]
        enter(tmp_path)


@pytest.mark.usefixtures("on_nfs")
def test_a_lock_held_on_this_machine_is_never_left_behind(tmp_path: Path) -> None:
    with (tmp_path / lock.LOCK_NAME).open("w") as file:
        lock.fcntl.flock(file, lock.fcntl.LOCK_EX)
        leave(tmp_path, me(tmp_path, namespace="pid:[7]"), age_s=99_999)  # a container that is paused
        text = refused(tmp_path)
    assert "last sign of life 27 h 46 min ago" in text and "is free in" not in text


# ---- what /proc and the record do not say -------------------------------------------------------


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("hidden", ["_process", "_namespace", "_system"])
def test_where_the_system_says_little_time_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setattr(holders, hidden, lambda *_: None)
    with alone_in(tmp_path, Journal(quiet=True)):
        assert re.search(r"is free in 1 min [23]\d s", refused(tmp_path))
        os.utime(tmp_path / RECORD_NAME, (0, 0))
        there = look(tmp_path / RECORD_NAME)
        assert there is not None
    leave(tmp_path, there.raw, age_s=80)
    refused(tmp_path)
    leave(tmp_path, there.raw, age_s=100)
    assert "no sign of life" in enter(tmp_path)[0]


def test_the_proc_of_another_namespace_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holders._process(os.getpid()) is not None
    monkeypatch.setattr(os, "getpid", lambda: NO_PROCESS)
    assert holders._process(os.getppid()) is None


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        deadline = time.monotonic() + 30
        while b"a) R 1" not in Path(f"/proc/{process.pid}/stat").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        found, own = holders._process(process.pid), holders._process(os.getpid())
    finally:
        process.kill()
        process.wait()
    assert found is not None and own is not None
    assert found[1] >= own[1]


DAMAGED = {
    "empty": b"", "half": b'{"token": "0', "a list": b"[]", "null": b"null", "not text": b"\xff\xfe\0",
    "deep": b"[" * 60_000, "long": b" " * 100_000, "digits": b'{"pid": ' + b"9" * 5000 + b"}",
    "no fields": b"{}",
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_record_keeps_nobody_out(tmp_path: Path, content: bytes) -> None:
    leave(tmp_path, content)
    [told] = enter(tmp_path)
    assert told == (
        "The job that had this folder is dead (its record is damaged): it left no readable record. "
        "Going on in its place."
    )


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.usefixtures("without_flock")
def test_where_others_may_be_writing_a_damaged_record_counts_for_a_while(
    tmp_path: Path, content: bytes
) -> None:
    leave(tmp_path, content, age_s=10)
    assert re.search(r"it left no readable record; last sign of life \d\d s ago", refused(tmp_path))
    leave(tmp_path, content, age_s=100)
    assert len(enter(tmp_path)) == 1


def test_a_damaged_record_proves_nothing_to_one_who_has_no_lock(tmp_path: Path) -> None:
    assert judge(None, me(tmp_path, flock=False)) == Verdict()


@pytest.mark.parametrize(
    "changes",
    [{"pid": -1}, {"pid": 0}, {"pid": 1 << 40}, {"pid": "7"}, {"pid": True}, {"host": None}, {"flock": 1}],
)
def test_a_record_of_wrong_types_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    fields = json.loads(me(tmp_path).model_dump_json())
    found = look(leave(tmp_path, json.dumps(fields | changes).encode()))
    assert found is not None and found.holder is None
    assert len(enter(tmp_path)) == 1


def test_a_record_with_more_fields_is_read(tmp_path: Path) -> None:
    fields = json.loads(me(tmp_path).model_dump_json())
    found = look(leave(tmp_path, json.dumps(fields | {"of a later version": 1}).encode()))
    assert found is not None and found.holder == me(tmp_path, since=fields["since"])


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_whatever_stands_in_the_records_place_is_neither_followed_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "output"
    folder.mkdir()
    outside.write_bytes(me(folder, flock=False).model_dump_json().encode())
    record = folder / RECORD_NAME
    {
        "pipe": lambda: os.mkfifo(record),
        "link": lambda: record.symlink_to(outside),
        "folder": lambda: record.mkdir(),
    }[kind]()
    with alone_in(folder, Journal(quiet=True)):
        assert record.is_file() and not record.is_symlink()
    assert outside.exists()


@pytest.mark.usefixtures("on_nfs")
def test_a_forged_record_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    forged = {"host": "\x1b[2J\nbirdtune: done", "container": "\u202e", "since": "\r", "command": "run`\0"}
    leave(tmp_path, elsewhere(tmp_path, **forged))
    text = refused(tmp_path)
    assert text.isprintable()
    assert r"\x1b[2J\nbirdtune: done (container \u202e)" in text


# ---- several at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_a_record_that_another_starter_put_there_since_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    monkeypatch.setattr(holders, "_filesystem", lambda *_: "nfs4")
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    faster = elsewhere(tmp_path, token="faster", flock=False).model_dump_json().encode()
    leave(tmp_path, elsewhere(tmp_path), age_s=100)
    clear_away = lock._Claim._clear_away

    def after_another(claim: lock._Claim, dead: holders.Found) -> None:
        leave(tmp_path, faster)
        clear_away(claim, dead)

    monkeypatch.setattr(lock._Claim, "_clear_away", after_another)
    with pytest.raises(BusyError, match="spot-7"), alone_in(tmp_path, Journal(quiet=True)):
        pass
    assert left(tmp_path) == [RECORD_NAME, lock.LOCK_NAME]
    assert (tmp_path / RECORD_NAME).read_bytes() == faster


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("links", [True, False])
def test_the_place_of_a_record_is_taken_by_one_starter_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    faster = elsewhere(tmp_path).model_dump_json().encode()
    put = lock._Claim._put

    def after_another(claim: lock._Claim) -> None:
        leave(tmp_path, faster)
        put(claim)

    monkeypatch.setattr(lock._Claim, "_put", after_another)
    with pytest.raises(BusyError, match="spot-7"), alone_in(tmp_path, Journal(quiet=True)):
        pass
    assert (tmp_path / RECORD_NAME).read_bytes() == faster
    assert left(tmp_path) == [RECORD_NAME, lock.LOCK_NAME]


@pytest.mark.usefixtures("without_flock")
def test_where_a_rename_overwrites_the_last_to_write_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = elsewhere(tmp_path).model_dump_json().encode()
    monkeypatch.setattr(lock.time, "sleep", lambda _: leave(tmp_path, faster))
    with pytest.raises(BusyError, match="spot-7"), alone_in(tmp_path, Journal(quiet=True)):
        pass
    assert (tmp_path / RECORD_NAME).read_bytes() == faster


# ---- signs of life ------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lock, "_BEAT_S", 0.02)
    yield


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("times", ["taken", "refused", "ignored"])
def test_a_job_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: str) -> None:
    utime = os.utime
    if times == "taken":
        monkeypatch.setattr(lock.os, "pwrite", refuse)  # as a full disk may, which has room for a time
    elif times == "refused":
        monkeypatch.setattr(lock.os, "utime", refuse)
    elif times == "ignored":
        monkeypatch.setattr(lock.os, "utime", lambda *_: None)
    with alone_in(tmp_path, Journal(quiet=True)):
        record = tmp_path / RECORD_NAME
        content = record.read_bytes()
        for _ in range(2):
            utime(record, (0, 0))
            until(lambda: record.stat().st_mtime > 0)
        assert record.read_bytes() == content


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("harm", ["deleted", "emptied", "overwritten"])
def test_a_record_that_is_lost_is_written_again(tmp_path: Path, harm: str) -> None:
    with alone_in(tmp_path, Journal(quiet=True)):
        record = tmp_path / RECORD_NAME
        content = record.read_bytes()
        record.unlink() if harm == "deleted" else record.write_bytes(b"" if harm == "emptied" else b"{}")
        until(lambda: record.exists() and record.read_bytes() == content)
        refused(tmp_path)
    assert left(tmp_path) == [lock.LOCK_NAME]


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_gone_is_left_to_those_who_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def gone(path: Path) -> None:
        looked.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with alone_in(tmp_path, Journal(quiet=True)):
        monkeypatch.setattr(lock, "look", gone)
        until(lambda: len(looked) > 2)
    assert look(tmp_path / RECORD_NAME) is not None, "nor is its end a fault of its own"


SLEEPER = """
import os, sys, time
from pathlib import Path
from birdtune import holder, lock
from birdtune.events import Journal
lock._BEAT_S = 0.02
with lock.alone_in(Path(sys.argv[1]), Journal(quiet=True)):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while TensorFlow is loaded
    print("in", flush=True)
    try:
        time.sleep(60)
    finally:
        print("wrote more", flush=True)
"""


def test_a_job_whose_place_was_taken_ends_at_once_and_touches_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, tmp_path], env=os.environ | {"PYTHONPATH": str(CODE)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as sleeper:  # fmt: skip
        assert sleeper.stdout is not None and sleeper.stdout.readline() == "in\n"
        other = elsewhere(tmp_path).model_dump_json().encode()
        new = tmp_path / "new"
        new.write_bytes(other)
        new.replace(tmp_path / RECORD_NAME)
        out, err = sleeper.communicate(timeout=60)
    assert (sleeper.returncode, out) == (75, "")
    assert err.startswith(f"birdtune: error: {tmp_path}: this job gave no sign of life for a while")
    assert "on host spot-7 (container 0123456789ab), process 7" in err and err.count("\n") == 1
    assert (tmp_path / RECORD_NAME).read_bytes() == other


def test_at_the_end_the_record_of_another_is_left_alone(tmp_path: Path) -> None:
    other = elsewhere(tmp_path).model_dump_json().encode()
    with alone_in(tmp_path, Journal(quiet=True)):
        (tmp_path / RECORD_NAME).write_bytes(other)
    assert (tmp_path / RECORD_NAME).read_bytes() == other


@pytest.mark.usefixtures("without_flock")
def test_a_start_that_is_stopped_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    for module, name in [(lock, "look"), (lock, "_place"), (lock, "_touch"), (lock.time, "sleep")]:
        with monkeypatch.context() as patch:
            leave(tmp_path, me(tmp_path, pid=NO_PROCESS))
            patch.setattr(module, name, stop)
            # `look` also serves the end; whoever stops there stops again, and the process ends.
            with pytest.raises(Interrupted), alone_in(tmp_path, Journal(quiet=True)):
                pass
        assert set(left(tmp_path)) <= {lock.LOCK_NAME, RECORD_NAME}
        enter(tmp_path)


# ---- rights -------------------------------------------------------------------------------------


def test_a_lock_file_that_may_only_be_read_is_locked_all_the_same() -> None:
    with ordinary_folder() as folder:
        (folder / lock.LOCK_NAME).touch()
        (folder / lock.LOCK_NAME).chmod(0o444)
        with alone_in(folder, Journal(quiet=True)):
            found = look(folder / RECORD_NAME)
            assert found is not None and found.holder is not None and found.holder.flock
            refused(folder)


def test_a_lock_file_that_cannot_be_opened_is_told_with_its_owner() -> None:
    with ordinary_folder() as folder:
        (folder / lock.LOCK_NAME).touch()
        (folder / lock.LOCK_NAME).chmod(0)
        uid = os.geteuid()
        with pytest.raises(
            InputError, match=rf"\.lock: cannot be opened by this user \(uid {uid}\); it belongs to"
        ):
            enter(folder)


def test_a_folder_that_may_not_be_written_is_told() -> None:
    with ordinary_folder() as folder:
        (folder / "output").mkdir()
        (folder / "output").chmod(0o555)
        with pytest.raises(InputError, match="cannot be written"):
            enter(folder / "output")


def test_everybody_may_read_who_is_at_work(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with alone_in(tmp_path, Journal(quiet=True)):
            assert (tmp_path / RECORD_NAME).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


# ---- what is known of a job ---------------------------------------------------------------------


def test_a_container_is_known_by_what_is_mounted_over_its_host_name() -> None:
    name = "0123456789ab" + "c" * 52
    inside = f"1 2 254:0 /var/lib/docker/containers/{name}/hostname /etc/hostname rw - ext4 /dev/vda rw"
    beside = f"1 2 0:9 / /var/lib/docker/containers/{name}/mounts/shm rw shared:7 - tmpfs shm rw"
    assert holders._container([inside.split()]) == "0123456789ab"
    assert holders._container([beside.split()]) is None


def test_the_file_system_is_told_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    mounts = ["1 2 0:41 / /a rw shared:1 - nfs4 server:/ rw", "1 2 0:42 / /b rw - fuse.bindfs x rw", "odd"]
    monkeypatch.setattr(holders, "_system", lambda _: "\n".join(mounts))
    parsed = holders._mounts()
    assert holders._filesystem(os.makedev(0, 41), parsed) == "nfs4"
    assert holders._filesystem(os.makedev(0, 42), parsed) == "fuse.bindfs"
    assert holders._filesystem(os.makedev(0, 43), parsed) is None


def test_this_machine_says_all_there_is(tmp_path: Path) -> None:
    record = me(tmp_path)
    assert None not in (record.boot, record.namespace, record.process_start)
    assert judge(record.model_copy(update={"flock": False}), record).certain
