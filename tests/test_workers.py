"""birdtune.runtime.workers: many processes, none of which can take the run down."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdtune.errors import Interrupted, RetryableError
from birdtune.runtime import workers
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.workers import Crashed, Isolated, run_tasks, take_batch, worker_count

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


@pytest.mark.parametrize(("n_workers", "weight"), [(1, 1.0), (2, 1.0), (1, 0.3), (2, 0.01)])
def test_a_task_that_kills_its_worker_is_named_and_all_others_are_done(n_workers: int, weight: float) -> None:
    tasks = [1, 2, 13, 3, 4, 5, 6, 13, 7, 8, 9, 10, 11, 13]
    found = list(run_tasks(work, tasks, n_workers=n_workers, interrupts=Interrupts(), weight=lambda task: weight))
    assert sorted(task for task, _ in found) == sorted(tasks)
    assert [task for task, result in found if isinstance(result, Crashed)] == [13, 13, 13]


def test_small_tasks_are_handed_over_several_at_once() -> None:
    left = deque(range(100))
    assert take_batch(left, lambda task: 0.3) == [0, 1, 2]
    assert take_batch(left, lambda task: 0.3, 2) == [3, 4]
    assert take_batch(left, lambda task: 2.0) == [5], "of heavy ones each alone"
    assert take_batch(left, lambda task: 0.0) == list(range(6, 22))
    assert list(left) == list(range(22, 100))
    assert take_batch(deque([1]), lambda task: 0.0, 0) == [1]


def sent(task: int) -> int:
    global _offset
    _offset += task
    return _offset


def test_batches_get_smaller_towards_the_end_and_results_keep_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    give = workers._Worker.give

    def note(worker: workers._Worker[list[int], list[int]], batch: list[int]) -> None:
        sizes.append(len(batch))
        give(worker, batch)

    monkeypatch.setattr(workers._Worker, "give", note)
    found = list(run_tasks(sent, [1] * 100, n_workers=1, interrupts=Interrupts(), weight=lambda task: 0.0))
    assert [result for _, result in found] == list(range(1, 101)), "each once, in their order"
    assert sizes[:2] == [16, 16] and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_what_was_done_of_a_batch_before_one_raised_is_kept() -> None:
    found = []
    with pytest.raises(ValueError, match="task 14 cannot be done"):
        for task, _ in run_tasks(work, [*range(10), 14, *[1] * 90], n_workers=1, interrupts=Interrupts(),
                                 weight=lambda task: 0.0):  # fmt: skip
            found.append(task)
    assert found == list(range(10))


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
    with pytest.raises(RetryableError, match=r"end before they have begun.*--prepare.workers 1"):
        next(found)


@pytest.mark.parametrize(("number", "words"), [(11, "--prepare.workers 1"), (12, "memory"), (28, "/dev/shm")])
def test_processes_that_cannot_be_started_are_a_passing_fault(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(self: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    words = f"No process can be started.*{os.strerror(number)}.*{words}"
    with pytest.raises(RetryableError, match=words):
        list(run_tasks(work, [1], n_workers=1, interrupts=Interrupts()))
    with Isolated(count) as process, pytest.raises(RetryableError, match=words):
        list(process.items(1))


def test_no_tasks_need_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", lambda self: pytest.fail("one was started"))
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
    time.sleep(3600)


def test_a_stop_does_not_wait_for_tasks_and_leaves_no_process() -> None:
    interrupts, before = Interrupts(), multiprocessing.active_children()
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with interrupts.watching(), pytest.raises(Interrupted):
        list(run_tasks(hang, [1, 2, 3], n_workers=2, interrupts=interrupts))
    assert set(multiprocessing.active_children()) <= set(before)


def test_who_leaves_off_early_leaves_no_process() -> None:
    before = multiprocessing.active_children()
    tasks = run_tasks(slow, range(1000), n_workers=2, interrupts=Interrupts())
    next(tasks)
    tasks.close()
    assert set(multiprocessing.active_children()) <= set(before)


# ---- one process, item by item -----------------------------------------------------------------


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


def refuse_to_begin() -> None:
    raise ValueError("not today")


def test_a_process_may_begin_before_its_first_task_and_a_fault_then_is_told_with_that() -> None:
    before = set(multiprocessing.active_children())
    with Isolated(count) as process:
        process.start()
        (child,) = set(multiprocessing.active_children()) - before
        assert list(process.items(-1)) == [child.pid]
    with Isolated(count, refuse_to_begin) as process:
        process.start()
        with pytest.raises(ValueError, match="not today"):
            list(process.items(2))


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
        "from birdtune.runtime.signals import Interrupts\n"
        "from birdtune.runtime.workers import run_tasks\n"
        "def name(task):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(name, [1], n_workers=1, interrupts=Interrupts()))\n"
    )
    code = Path(workers.__file__).parents[2]
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
