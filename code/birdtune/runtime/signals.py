"""SIGTERM and SIGINT, turned into an exception."""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator

from birdtune.errors import EXIT_DEFECT, BirdtuneError, Interrupted


class Interrupts:
    """Turns SIGTERM and SIGINT into `Interrupted`.

    The first signal raises at once, wherever the main thread is; within `held` it waits for the block's end or
    the next `check`. Python drops what is raised in a destructor or a callback, and a library may catch it, so
    that a timer raises again until it has got out. A second signal ends the process. Everything that matters
    is on the disk whole or not at all, so neither breaks anything.

    Args:
        reminder_s: how often an interruption that was swallowed is raised again.
    """

    def __init__(self, reminder_s: float = 0.5) -> None:
        self._reminder_s = reminder_s
        self._signum: int | None = None
        self._holds = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interrupts"]:
        """Listen for the two signals while the block lasts."""
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note, signal.SIGALRM: self._remind}
        before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        report_unraisable = sys.unraisablehook
        sys.unraisablehook = lambda report: None if _is_stop(report.exc_value) else report_unraisable(report)
        try:
            yield self
        finally:
            with self.held():
                signal.setitimer(signal.ITIMER_REAL, 0)
                sys.unraisablehook = report_unraisable
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait while the block lasts: it changes several things that belong together."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def _note(self, signum: int, frame: types.FrameType | None) -> None:
        del frame
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        signal.setitimer(signal.ITIMER_REAL, self._reminder_s, self._reminder_s)
        if not self._holds:
            raise Interrupted(signum)

    def _remind(self, signum: int, frame: types.FrameType | None) -> None:
        del signum, frame
        # While it is on its way out, what cleans up behind it must not be disturbed.
        if self._signum is not None and not self._holds and not _is_stop(sys.exception(), GeneratorExit):
            raise Interrupted(self._signum)

    def check(self) -> None:
        """Raise Interrupted if a signal has come; the quickest way to notice after `held`, and the only one in
        other threads."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @property
    def signum(self) -> int | None:
        """The signal that has come, if one has."""
        return self._signum

    def unmasked(self, fault: BaseException) -> BaseException:
        """What really happened: the Interrupted that a library made an error of its own of, or the fault itself."""
        if self._signum is None or isinstance(fault, Interrupted):
            return fault
        # C code that is interrupted while it imports or calls back knows only that it failed. What is not a
        # defect (a full disk, say) was raised by birdtune, and is reported.
        is_defect = not isinstance(fault, BirdtuneError) or fault.exit_code == EXIT_DEFECT
        return Interrupted(self._signum) if is_defect or _is_stop(fault) else fault


def _is_stop(fault: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether an exception is an Interrupted (or of one of the kinds), or came of handling one."""
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        if isinstance(fault, (Interrupted, *kinds)):
            return True
        seen.add(id(fault))
        fault = fault.__cause__ or fault.__context__
    return False
