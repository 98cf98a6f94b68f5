"""TensorFlow loaded without its chatter.

Its C++ side writes to stderr, past Python and before its log level counts, what concerns nobody who trains on birds. It
is caught while the library loads, and shown only if loading fails. Later the log level counts (`__main__`).
"""

import contextlib
import gc
import os
import re
import sys
from collections.abc import Iterator

from birdtune.errors import BirdtuneError, shown

# `{{function_node …}}`, `{{node …}}`, and `[Op:…] name:` at the end.
_INTERNAL = re.compile(r"\{\{.*?\}\}|\[Op:\w*\](?: name:.*)?")
_MOST_WORDS = 200  # characters
# Keras loads these where they are installed, for wrappers and plots of its own that nothing here calls.
_LEFT_OUT = ("matplotlib", "pandas", "sklearn")


def load_tensorflow() -> None:
    """Import TensorFlow and Keras, quietly. Call it before any module that imports them.

    Raises:
        BirdtuneError: it cannot be loaded; with what it said.
    """
    # In memory: /tmp may be full, read-only, or not there at all.
    with os.fdopen(os.memfd_create("stderr"), "w+b") as said:
        try:
            with stderr_to(said.fileno()), _quickly():
                import keras  # noqa: F401
                import tensorflow

                # Looks for GPU drivers, and says much about it where there are none.
                tensorflow.config.list_physical_devices()
        except ImportError as fault:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines()[-8:]
            raise BirdtuneError(
                f"TensorFlow cannot be loaded ({fault}). Its last words: {' | '.join(lines) or 'none'}. Delete .venv "
                "and start again, or use the image."
            ) from fault


@contextlib.contextmanager
def _quickly() -> Iterator[None]:
    """Imports without what Keras can do without, and without garbage collection, which finds nothing in modules."""
    left_out = [name for name in _LEFT_OUT if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]  # its import fails
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        for name in left_out:
            del sys.modules[name]


def tensorflow_words(fault: BaseException) -> str:
    """What TensorFlow says of a failure, for one line: without the names that it makes up for its own use."""
    words = " ".join(_INTERNAL.sub(" ", str(fault)).split())
    return shown(words[:_MOST_WORDS])


@contextlib.contextmanager
def stderr_to(descriptor: int) -> Iterator[None]:
    """What is written to stderr, also by libraries, goes elsewhere."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
