"""Work on many files on all cores, in worker processes that are allowed to die.

    run_tasks   tasks → results, by many workers, as they finish
    Isolated    one task after another → items, by one worker, in order

Each worker has a pipe of its own. When a fault in a C library ends one, the file that did it is known, and the
others go on. (An executor of concurrent.futures or loky then fails as a whole, with all that was in flight.)
"""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from birdtune.errors import RetryableError
from birdtune.runtime.signals import Interrupts

Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

# How often a waiting parent checks for signals.
_POLL_S = 0.2
_MOST_IN_BATCH = 16
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
# glibc, mallopt(3): a worker keeps this much freed memory, and blocks up to the second size come of it.
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 1 << 26
_M_MMAP_THRESHOLD, _BLOCK_BYTES = -3, 1 << 25
_READY, _ITEM, _FAULT, _END = "ready", "item", "fault", "end"


class Crashed(Exception):  # noqa: N818 -- `run_tasks` hands it on as a result
    """The worker died on this task; what it was doing is lost."""


def worker_count(setting: int, n_tasks: int) -> int:
    """Processes to start: the setting, or one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(setting or cores, n_tasks))


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    n_workers: int,
    interrupts: Interrupts,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    weight: Callable[[Task], float] = lambda task: 1.0,
) -> Generator[tuple[Task, Result | Crashed], None, None]:
    """Yield (task, result) as they finish; a task that kills its worker yields (task, Crashed).

    The workers end with the generator; close it to leave off early.

    Args:
        function: a module-level function; what it raises is raised here.
        weight: of a task. A worker takes several at once as long as they weigh no more than 1 together, as handing
            over each takes as long as small ones do.
        initializer: called once in each process; what it raises is raised here, too.

    Raises:
        Interrupted: on a signal; tasks already yielded are done, the others are not.
        RetryableError: processes cannot be started, or end before they have done anything.
    """
    left = deque(tasks)
    alone: deque[list[Task]] = deque()  # of batches that killed their worker
    start = partial(_Worker[list[Task], list[Result]], partial(_in_batch, function), initializer, initargs)
    workers: list[_Worker[list[Task], list[Result]]] = []
    try:
        for _ in range(min(n_workers, len(left))):
            workers.append(start())
        while left or alone or any(worker.tasks for worker in workers):
            interrupts.check()
            # A second batch spares a worker the wait for it; near the end it would wait behind a long one.
            ahead = 2 if len(left) > 4 * len(workers) else 1
            for worker in workers:
                while (left or alone) and len(worker.tasks) < ahead:
                    most = len(left) // (4 * len(workers))  # near the end, all shall have some
                    worker.give(alone.popleft() if alone else take_batch(left, weight, most))
            ready = wait([worker.connection for worker in workers], timeout=_POLL_S)
            for worker in [worker for worker in workers if worker.connection in ready]:
                if not worker.started:
                    worker.wait_for_start()
                    continue
                batch, *waiting = worker.tasks
                try:
                    for results in worker.items():
                        yield from zip(batch, results, strict=False)  # fewer, if the next one raises something
                except Crashed as fault:
                    workers.remove(worker)
                    worker.end()
                    left.extendleft(task for later in reversed(waiting) for task in reversed(later))
                    if len(batch) > 1:  # one of them did it
                        alone.extend([task] for task in batch)
                    if left or alone:
                        workers.append(start())
                    if len(batch) == 1:
                        yield batch[0], fault
    finally:
        for worker in workers:
            worker.end()


def take_batch(left: deque[Task], weight: Callable[[Task], float], most: int = _MOST_IN_BATCH) -> list[Task]:
    """Take the next task, and more as long as they weigh no more than 1 together and are no more than `most`, or 16."""
    batch = [left.popleft()]
    total = weight(batch[0])
    while left and len(batch) < min(most, _MOST_IN_BATCH) and (total := total + weight(left[0])) <= 1.0:
        batch.append(left.popleft())
    return batch


def _in_batch(function: Callable[[Task], Result], batch: list[Task]) -> Iterator[list[Result]]:
    """The results of a batch; of one in which a task raises something, those before it."""
    results: list[Result] = []
    try:
        for task in batch:
            results.append(function(task))
    except Exception:
        yield results
        raise
    yield results


class Isolated(Generic[Task, Item]):
    """A process that works on one task after another and hands over the items of each.

    It does not run far ahead of its consumer. If it dies on a task, a new one takes the next.

    Args:
        function: task → iterator of items; of a module, or a method of something that can be pickled.
        initializer: called once in each process; what it raises is raised by `items`.
    """

    def __init__(
        self, function: Callable[[Task], Iterator[Item]], initializer: Callable[[], None] | None = None
    ) -> None:
        self._function, self._initializer = function, initializer
        self._worker: _Worker[Task, Item] | None = None

    def __enter__(self) -> "Isolated[Task, Item]":
        return self

    def __exit__(self, *fault: object) -> None:
        self._end()

    def start(self) -> None:
        """Start the process, which otherwise the first task does. Raises RetryableError: it cannot be started."""
        self._worker = self._worker or _Worker(self._function, self._initializer)

    def items(self, task: Task) -> Iterator[Item]:
        """The items of a task; consume them all before the next task.

        Raises:
            Crashed: the process died on it.
            RetryableError: no process can be started.
            Exception: whatever `function` raised.
        """
        self.start()
        assert self._worker is not None
        if not self._worker.started:
            self._worker.wait_for_start()
        self._worker.give(task)
        try:
            yield from self._worker.items()
        except Crashed:
            self._end()
            raise

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
        self._worker = None


class _Worker(Generic[Task, Item]):
    """One process, the pipe to it, and the tasks it was given and has not finished."""

    def __init__(
        self,
        function: Callable[[Task], Iterator[Item]],
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        # spawn: a fork would copy the threads' locks of whatever the parent has loaded by then.
        context = multiprocessing.get_context("spawn")
        self.tasks: deque[Task] = deque()
        self.started = False
        with _starting():
            self.connection, other = context.Pipe()
            arguments = (os.getpid(), other, function, initializer, initargs)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
        # The end of the pipe is seen only when nobody else holds its other side.
        other.close()

    def give(self, task: Task) -> None:
        self.tasks.append(task)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # seen when its answer is read
            self.connection.send(task)

    def wait_for_start(self) -> None:
        """Wait until it can work. Raises what its initializer raised, or RetryableError."""
        try:
            self._receive()
        except Crashed as fault:
            # No task did this, and the next process would end, too.
            raise RetryableError(
                "The processes that work on the files end before they have begun. Likely cause: too little memory, or "
                "a limit on processes; fewer of them may help (--prepare.workers 1). Run again to continue."
            ) from fault
        self.started = True

    def items(self) -> Iterator[Item]:
        """The items of the first of its tasks. Raises what the task raised, or Crashed."""
        try:
            while (message := self._receive())[0] == _ITEM:
                yield message[1]
        except Crashed:
            raise
        except Exception:
            self.tasks.popleft()
            raise
        self.tasks.popleft()

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError) as fault:
            raise Crashed from fault
        if kind == _FAULT:
            raise value
        return kind, value

    def end(self) -> None:
        """Kill it: what it has not handed over counts for nothing."""
        self.connection.close()
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Around the start of a process.

    Signals wait meanwhile: a start that is torn apart leaves a process that dies with a traceback. And what is
    blocked here is so from the first moment of the new process, which Ctrl-C at a terminal reaches as well,
    long before it could say that it ignores it.
    """
    try:
        resource_tracker.ensure_running()  # it lets signals through again when it starts its own process
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError as fault:
        cause = "too little memory, or a limit on processes; fewer of them may help (--prepare.workers 1)"
        if fault.errno in (errno.ENOSPC, errno.EROFS):
            cause = "/dev/shm is full or read-only; processes keep there what they share"
        raise RetryableError(
            f"No process can be started to work on the files ({fault.strerror}). Likely cause: {cause}. Run again to "
            "continue."
        ) from fault


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent, of this id, ends however it may."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _serve(
    parent: int,
    connection: Connection,
    function: Callable[[Task], Iterator[Item]],
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> None:
    """The life of a worker: tasks from the pipe, items into it."""
    # The parent alone decides when to stop, and no worker outlives it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent(parent)
    try:
        _set_up()
        if initializer is not None:
            initializer(*initargs)
    except Exception as fault:
        connection.send((_FAULT, fault))
        return
    connection.send((_READY, None))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            for item in function(task):
                connection.send((_ITEM, item))
        except Exception as fault:
            fault.add_note(traceback.format_exc())  # a defect is found by where it was raised
            connection.send((_FAULT, fault))
        else:
            connection.send((_END, None))


def _set_up() -> None:
    # Codecs write their complaints to stderr unasked; what matters comes back as a result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Arrays of some 100 kB come and go all the time. Given back to the system and asked for again, each would be
    # filled with zeros page by page, which takes as long as computing what is in it.
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    # One thread each: the workers already fill the cores, and sums keep one order of adding.
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
