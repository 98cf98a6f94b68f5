"""Work on many files by all cores, in processes of their own.

    run_tasks   tasks → results, by many processes, as they are finished
    Isolated    one task after another → pieces, by one process, in order

A file that crashes the decoder (a fault in a C library) ends one worker, not the run: the files that
were in flight are tried again one at a time, and the one that does it is named.
"""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from birdtune.errors import PassingError
from birdtune.runtime.events import Interrupts

Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

# Tasks handed out ahead of need, for each worker; few, so that a stop or a crash concerns few.
_AHEAD = 4
# How often a waiting parent looks whether it was told to stop.
_POLL_S = 0.2
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
# glibc, mallopt(3): a worker keeps this much freed memory, and blocks up to the second size come of it.
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 1 << 26
_M_MMAP_THRESHOLD, _BLOCK_BYTES = -3, 1 << 25


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
) -> Generator[tuple[Task, Result | Crashed], None, None]:
    """Yield (task, result) as they finish; a task that kills its worker yields (task, Crashed).

    Whoever may leave off before the end closes the generator: workers that wait for more keep this process
    from ending.

    Args:
        function: a module-level function; what it raises is raised here.
        initializer: called once in each process; what it raises is raised here, too.

    Raises:
        Interrupted: when told to stop; tasks already yielded are done, the others are not.
        PassingError: processes cannot be started, or end before they have done anything.
    """
    left = list(tasks)
    while left:
        suspects: list[Task] = []
        with _pool(min(n_workers, len(left)), initializer, initargs) as pool:
            for task, result in _feed(pool, function, left, n_workers * _AHEAD, interrupts, suspects):
                yield task, result
        for task in suspects:
            interrupts.check()
            yield task, _alone(function, task, interrupts, initializer, initargs)


def _feed(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    left: list[Task],
    ahead: int,
    interrupts: Interrupts,
    suspects: list[Task],
) -> Iterator[tuple[Task, Result]]:
    """Hand out tasks from `left` until none is left or a worker dies; then fill `suspects`."""
    running: dict[Future[Result], Task] = {}
    left.reverse()
    while (left or running) and not suspects:
        interrupts.check()
        while left and len(running) < ahead:
            try:
                future = _submit(pool, function, left[-1])
            except BrokenProcessPool:
                if not running:
                    # A worker died with nothing to do: nothing is suspect, a new pool goes on.
                    left.reverse()
                    return
                break
            running[future] = left.pop()
        done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                suspects.append(task)
                continue
            yield task, result
    suspects.extend(running.values())
    left.reverse()


def _alone(
    function: Callable[[Task], Result],
    task: Task,
    interrupts: Interrupts,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> Result | Crashed:
    with _pool(1, initializer, initargs) as pool:
        try:
            _submit(pool, _nothing, None).result()
        except BrokenProcessPool as fault:
            # It is not the task that ends the process, and it would not be any other.
            raise PassingError(
                "The processes that work on the files end before they have begun. Likely cause: too little memory, or "
                "a limit on processes; fewer of them may help (--prepare.workers 1). Run again to continue."
            ) from fault
        try:
            future = _submit(pool, function, task)
            while not wait([future], timeout=_POLL_S).done:
                interrupts.check()
            return future.result()
        except BrokenProcessPool:
            return Crashed()


class Isolated(Generic[Task, Item]):
    """A process that works on one task after another and hands over what comes of each, piece by piece.

    It does not run far ahead of who takes the pieces. If it dies on a task, another one goes on with the next.

    Args:
        function: task → iterator of pieces; of a module, or a method of something that can be pickled.
    """

    def __init__(self, function: Callable[[Task], Iterator[Item]]) -> None:
        self._function = function
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Isolated[Task, Item]":
        return self

    def __exit__(self, *fault: object) -> None:
        self._end()

    def items(self, task: Task) -> Iterator[Item]:
        """What comes of a task. It must be taken to its end before the next one.

        Raises:
            Crashed: the process died on it.
            PassingError: no process can be started.
            Exception: whatever `function` raised.
        """
        connection = self._connection or self._start()
        try:
            connection.send(task)
            while True:
                kind, value = connection.recv()
                if kind == _PIECE:
                    yield value
                elif kind == _FAULT:
                    raise value
                else:
                    return
        except (EOFError, BrokenPipeError, ConnectionResetError) as fault:
            self._end()
            raise Crashed from fault

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(os.getpid(), self._function, other), daemon=True)
        with _starting():
            self._process.start()
        # The end of the pipe is seen only when nobody holds its other side.
        other.close()
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._connection = self._process = None


_PIECE, _FAULT, _END = "piece", "fault", "end"


def _serve(parent: int, function: Callable[[Task], Iterator[Item]], connection: Connection) -> None:
    _begin(parent, None, ())
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            for item in function(task):
                connection.send((_PIECE, item))
        except Exception as fault:
            connection.send((_FAULT, fault))
        else:
            connection.send((_END, None))


def _submit(pool: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task) -> Future[Result]:
    # The pool starts its processes when they are first needed. To ask for the tracker with each of many tasks,
    # when it was there for the pool, wakes it each time.
    with _starting(tracker=False):
        return pool.submit(partial(_do, function), task)


@contextlib.contextmanager
def _starting(*, tracker: bool = True) -> Iterator[None]:
    """Around what starts processes.

    Signals wait meanwhile: a start that is torn apart leaves a process that dies with a traceback. And what is
    blocked here is so from the first moment of the new process, which Ctrl-C at a terminal reaches as well,
    long before it could say that this is none of its business.

    Args:
        tracker: make sure first that multiprocessing's own process is there.
    """
    try:
        if tracker:
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
        raise PassingError(
            f"No process can be started to work on the files ({fault.strerror}). Likely cause: {cause}. Run again to "
            "continue."
        ) from fault


@contextlib.contextmanager
def _pool(
    n: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Workers for as long as the block lasts; where it ends by an exception they are killed, not waited for."""
    # spawn: a fork would copy the threads' locks of whatever the parent has loaded by then.
    context = multiprocessing.get_context("spawn")
    begin = (os.getpid(), initializer, initargs)
    with _starting():
        executor = ProcessPoolExecutor(n, mp_context=context, initializer=_begin, initargs=begin)
    with executor as pool:
        try:
            yield pool
        except BaseException:
            # A day-long recording may be in flight; what it has written so far counts for nothing.
            for child in multiprocessing.active_children():
                child.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


# What kept a worker from being set up: told with its first task, for a worker that fails to begin ends the pool.
_failure: Exception | None = None


def _do(function: Callable[[Task], Result], task: Task) -> Result:
    if _failure is not None:
        raise _failure
    return function(task)


def _nothing(task: None) -> None:
    """Shows that a worker lives."""


def _begin(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """First thing in a worker: the parent alone decides when to stop, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    try:
        _set_up(initializer, initargs)
    except Exception as fault:
        global _failure
        _failure = fault


def _set_up(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    # Codecs write their complaints to stderr unasked; what matters comes back as a result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Arrays of some 100 kB come and go all the time. Given back to the system and asked for again, each would be
    # filled with zeros page by page, which takes as long as computing what stands in it.
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    # One thread each: the workers already fill the cores, and sums keep one order of adding.
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    if initializer is not None:
        initializer(*initargs)
