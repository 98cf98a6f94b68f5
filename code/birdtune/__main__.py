"""`python -m birdtune`."""

import atexit
import contextlib
import os
import signal
import sys
from typing import NoReturn


def _begin() -> None:
    """Heed SIGTERM from the first moment: a container's first process ignores signals that it has not asked for.

    Until `cli.main` listens there is nothing to save.
    """
    # For whatever loads TensorFlow, and all processes that come of this one. 0 shows what TensorFlow says.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # Started with the stream closed: else the next file to be opened would take its place, and be
            # written to by everybody who has something to say. Opening gives the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode))


def _leave(signum: int, frame: object) -> None:
    del frame
    os.write(2, f"birdtune: stopped by {signal.Signals(signum).name}; run again to continue\n".encode())
    os._exit(128 + signum)


def _end(code: int) -> NoReturn:
    """Leave at once: taking TensorFlow down takes a second or more, of the ten that a stopped container has."""
    atexit._run_exitfuncs()  # what libraries have asked for, as when the interpreter ends by itself
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _begin()
    from birdtune.cli import main

    _end(main(sys.argv[1:]))
