"""birdtune.runtime.workers: many processes, none of which can take the run down."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from birdtune.errors import Interrupted, PassingError
from birdtune.runtime import workers
from birdtune.runtime.events import Interrupts
from birdtune.runtime.workers import Crashed, Isolated, run_tasks, worker_count

_offset = 0


def set_offset(offset: int) -> None:
    global _offset
    _offset = offset


def work(task: int) -> tuple[int, int]:
    """Task 13 kills its process as a decoder's fault would; what else may happen in one."""
    if task == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 14:
        raise ValueError("task 14 cannot be done")
    os.write(2, b"a codec complains\n")
    return task + _offset, os.getpid()


def slow(task: int) -> int:
    time.sleep(0.05)
    return task


def test_every_task_is_done_in_other_processes(capfd: pytest.CaptureFixture[str]) -> None:
    results = dict(
        run_tasks(work, range(12), n_workers=2, interrupts=Interrupts(), initializer=set_offset, initargs=(100,))
    )
    assert {task: result[0] for task, result in results.items()} == {task: task + 100 for task in range(12)}
    assert os.getpid() not in {result[1] for result in results.values()}
    assert capfd.readouterr().err == "", "what codecs say to the terminal is nobody's business"


def test_a_task_that_kills_its_worker_is_named_and_all_others_are_done() -> None:
    found = list(run_tasks(work, [1, 2, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11], n_workers=1, interrupts=Interrupts()))
    assert sorted(task for task, _ in found) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert [task for task, result in found if isinstance(result, Crashed)] == [13]


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="task 14 cannot be done"):
        list(run_tasks(work, [14], n_workers=1, interrupts=Interrupts()))


def refuse(reason: str) -> None:
    raise RuntimeError(reason)


def die(reason: str) -> None:
    os._exit(3)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_keeps_workers_from_being_set_up_is_raised_once_and_blames_no_task(n_workers: int) -> None:
    with pytest.raises(RuntimeError, match="there is no decoder"):
        list(
            run_tasks(
                work, range(9), n_workers=n_workers, interrupts=Interrupts(), initializer=refuse,
                initargs=("there is no decoder",),
            )
        )  # fmt: skip


def test_workers_that_end_before_they_begin_blame_no_task() -> None:
    found = run_tasks(work, range(9), n_workers=2, interrupts=Interrupts(), initializer=die, initargs=("",))
    with pytest.raises(PassingError, match=r"end before they have begun.*--prepare.workers 1"):
        next(found)


def test_processes_that_cannot_be_started_are_a_passing_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(_FakePool):
        def submit(self, function: Any, task: int) -> Future[int]:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "_pool", lambda *arguments: Pool())
    with pytest.raises(PassingError, match=r"No process can be started.*Resource temporarily unavailable"):
        list(run_tasks(work, [1], n_workers=1, interrupts=Interrupts()))


def test_no_tasks_need_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_pool", lambda *arguments: pytest.fail("a pool was started"))
    assert list(run_tasks(work, [], n_workers=2, interrupts=Interrupts())) == []


def test_a_stop_keeps_what_was_yielded() -> None:
    interrupts = Interrupts()
    done = []
    with interrupts.watching(), pytest.raises(Interrupted):
        for task, _ in run_tasks(slow, range(1000), n_workers=1, interrupts=interrupts):
            done.append(task)
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    assert done == [0, 1, 2]


def blocked(task: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_at_a_terminal_is_none_of_a_workers_business_from_its_birth() -> None:
    ((_, is_blocked),) = run_tasks(blocked, [1], n_workers=1, interrupts=Interrupts())
    assert is_blocked
    assert not blocked(0), "but of the parent's"


def hang(task: int) -> None:
    """A task that kills its worker the first time, and takes an hour the second time."""
    if os.path.lexists(_flag):
        Path(_flag).unlink()
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(3600)


_flag = ""


def set_flag(path: str) -> None:
    global _flag
    _flag = path


def test_a_task_that_is_tried_alone_can_be_stopped_too(tmp_path: Path) -> None:
    flag = tmp_path / "first"
    flag.touch()

    class OnceAlone(Interrupts):
        def check(self) -> None:
            if not flag.exists() and multiprocessing.active_children():
                raise Interrupted(15)

    tasks = run_tasks(
        hang, [1], n_workers=1, interrupts=OnceAlone(), initializer=set_flag, initargs=(str(flag),)
    )
    with pytest.raises(Interrupted):
        list(tasks)
    assert multiprocessing.active_children() == []


def test_tasks_are_taken_in_their_order_and_few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _FakePool()
    monkeypatch.setattr(workers, "_pool", lambda *arguments: pool)
    results = run_tasks(abs, range(30), n_workers=2, interrupts=Interrupts())
    first = next(results)
    assert pool.submitted == list(range(8)), "as many ahead as a stop may lose"
    assert sorted([first, *results]) == [(k, k) for k in range(30)]
    assert pool.submitted == list(range(30))


def test_a_worker_that_dies_with_nothing_to_do_costs_a_new_pool_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [_FakePool(break_at=0), _FakePool()]
    used = iter(pools)
    monkeypatch.setattr(workers, "_pool", lambda *arguments: next(used))
    found = list(run_tasks(abs, [3, 4, 5], n_workers=1, interrupts=Interrupts()))
    assert sorted(found) == [(3, 3), (4, 4), (5, 5)]
    assert pools[1].submitted == [3, 4, 5]


def test_what_was_in_flight_beside_a_crash_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(_FakePool):
        def submit(self, function: Any, task: int) -> Future[int]:
            # Only the first is known to have crashed when the others are looked at.
            return super().submit(function, task) if task == 1 else Future()

    monkeypatch.setattr(workers, "_pool", lambda *arguments: Pool(crash=True))
    monkeypatch.setattr(workers, "_alone", lambda function, task, *others: function(task))
    found = list(run_tasks(abs, [1, 2, 3, 4], n_workers=1, interrupts=Interrupts()))
    assert sorted(found) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_stop_is_heeded_between_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = Interrupts()
    monkeypatch.setattr(workers, "_pool", lambda *arguments: _FakePool(crash=True))

    def alone(function: Any, task: int, *others: Any) -> int:
        interrupts._signum = signal.SIGTERM  # comes while the first suspect is tried
        return task

    monkeypatch.setattr(workers, "_alone", alone)
    found = []
    with pytest.raises(Interrupted):
        for task, _ in run_tasks(abs, [1, 2, 3], n_workers=1, interrupts=interrupts):
            found.append(task)
    assert len(found) == 1


# ---- one process, piece by piece ----------------------------------------------------------------


def count(task: int) -> Iterator[int]:
    """Task 13 kills its process after two pieces, 14 fails after one; -1 tells which process it is."""
    if task == -1:
        yield os.getpid()
        return
    for number in range(task):
        if task == 13 and number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if task == 14 and number == 1:
            raise ValueError("task 14 cannot be done")
        yield number


def test_pieces_come_in_order_and_a_death_costs_its_task_alone() -> None:
    with Isolated(count) as process:
        assert list(process.items(5)) == [0, 1, 2, 3, 4]
        (worker,) = process.items(-1)
        assert worker != os.getpid()
        with pytest.raises(ValueError, match="task 14 cannot be done"):
            list(process.items(14))
        assert list(process.items(-1)) == [worker], "a fault of the task is none of the process"
        pieces: list[int] = []
        with pytest.raises(Crashed):
            pieces += process.items(13)
        assert pieces == [0, 1]
        assert list(process.items(2)) == [0, 1]
        (another,) = process.items(-1)
        assert another != worker
    with pytest.raises(ProcessLookupError):
        os.kill(another, 0)


def test_a_process_that_cannot_be_started_is_a_passing_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with Isolated(count) as process, pytest.raises(PassingError, match=r"No process.*Cannot allocate memory"):
        list(process.items(1))


def test_there_are_no_more_workers_than_tasks_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert worker_count(0, 100) == 6
    assert worker_count(3, 100) == 3
    assert worker_count(0, 4) == 4
    assert worker_count(8, 0) == 1


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, signal, time\n"
        "from birdtune.runtime.events import Interrupts\n"
        "from birdtune.runtime.workers import run_tasks\n"
        "def name(task):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(name, [1], n_workers=1, interrupts=Interrupts()))\n"
    )
    code = Path(workers.__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(code)}
    )
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        # The pipe ends when the last process that could write to it is gone.
        ended, _, _ = select.select([parent.stdout], [], [], 20)
        if not ended:
            os.kill(worker, signal.SIGKILL)
    assert ended, "the worker works on, for nobody"


class _FakePool:
    """A ProcessPoolExecutor that works at once, or is broken from some task on."""

    def __init__(self, break_at: int | None = None, *, crash: bool = False) -> None:
        self.submitted: list[int] = []
        self._break_at = break_at
        self._crash = crash
        self._refused = 0

    def __enter__(self) -> "_FakePool":
        return self

    def __exit__(self, *fault: object) -> None:
        return None

    def shutdown(self, **how: bool) -> None:
        return None

    def submit(self, function: Any, task: int) -> Future[int]:
        if self._break_at == len(self.submitted):
            self._refused += 1
            assert self._refused < 10, "a broken pool is asked again and again"
            raise BrokenProcessPool
        self.submitted.append(task)
        future: Future[int] = Future()
        if self._crash:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(function(task))
        return future


def test_shared_memory_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse)
    with pytest.raises(PassingError, match=r"No space left.*/dev/shm"):
        list(run_tasks(work, [1], n_workers=1, interrupts=Interrupts()))
