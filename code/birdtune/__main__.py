"""`python -m birdtune`."""

import os
import signal
import sys


def _begin() -> None:
    """Heed SIGTERM from the first moment: a container's first process ignores signals that it has not asked for.

    Until `cli.main` listens there is nothing to save.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(128 + signum))


if __name__ == "__main__":
    _begin()
    from birdtune.cli import main

    sys.exit(main(sys.argv[1:]))
