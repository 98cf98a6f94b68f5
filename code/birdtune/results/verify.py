"""What an exported model answers in a process that has nothing but the export.

    python -m birdtune.results.verify FOLDER INPUTS.npz OUTPUTS.npz

    INPUTS.npz   patches [n, 96, 64] float32; waveform_0, waveform_1 … [samples] float32, 16 kHz
    OUTPUTS.npz  outputs [n, C], embeddings [n, 128];
                 patch_scores_0 [P, C], clip_scores_0 [C], embeddings_0 [P, 128] …

No Keras, no variable and no graph of the training side is there, so that what it computes is what a
server will compute from the files alone. `fresh_answers` starts such a process, waits for it and ends it;
both ends of what they agreed on stand in this file. Nothing here imports training code, and TensorFlow
is imported by the fresh process only.
"""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

import birdtune
from birdtune.errors import ExportError, PassingError, shown

Floats = npt.NDArray[np.float32]

# A few hundred megabytes of activations at VGGish's full size, however many patches there are.
_BATCH = 64
_STDIN = 0
# Loading TensorFlow takes 10 s from a slow disk, a minute from a network's; scoring takes seconds.
_TIMEOUT_S = 900.0
_POLL_S = 0.1
_LAST_LINES = 12
_LONGEST_TEXT = 4_000


# ---- the process that starts it -----------------------------------------------------------------


def fresh_answers(folder: Path, inputs: Mapping[str, Floats], check: Callable[[], None]) -> dict[str, Floats]:
    """Have a fresh process load the model in `folder` and answer `inputs`.

    It has a session of its own: Ctrl-C at the terminal reaches this process alone, which decides what
    becomes of it. It ends when this function is left in any way, and, should this process be killed
    outright, when its standard input is closed thereby. Files between the two lie in TMPDIR.

    Args:
        inputs: as INPUTS.npz.
        check: called several times a second; it may raise to stop.

    Returns:
        as OUTPUTS.npz.

    Raises:
        ExportError: it failed; with the last lines it wrote to standard error.
        PassingError: it was killed, or did not end in 15 minutes.
    """
    with tempfile.TemporaryDirectory(prefix="birdtune-verify-") as name:
        given, made, log = Path(name, "inputs.npz"), Path(name, "outputs.npz"), Path(name, "stderr")
        np.savez(given, allow_pickle=False, **inputs)
        with log.open("wb") as stderr:
            status = _run(_command(folder, given, made), stderr, check)
        if status == -signal.SIGKILL:
            raise PassingError(
                f"{shown(folder)}: the process that verifies the model was killed, most likely for want "
                "of memory; it needs 1 GB more than the model's files. Run again to continue with the export."
            )
        if status != 0:
            raise ExportError(
                f"{shown(folder)}: the exported model cannot be loaded and run in a fresh process (exit "
                f"status {status}); nothing was put in place. Its last words: {_last_words(log)}"
            )
        with np.load(made, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


def _command(folder: Path, given: Path, made: Path) -> list[str]:
    return [sys.executable, "-m", __name__, str(folder.absolute()), str(given), str(made)]


def _environment() -> dict[str, str]:
    code = str(Path(birdtune.__file__).parents[1])
    paths = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        # On the CPU: this process may hold all memory of the GPU.
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
    }


def _run(command: list[str], stderr: IO[bytes], check: Callable[[], None]) -> int:
    """Run a command to its end, or kill it; its exit status."""
    deadline = time.monotonic() + _TIMEOUT_S
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=_environment(),
        start_new_session=True,
    )
    try:
        while True:
            check()
            try:
                return process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise PassingError(
                        f"the process that verifies the exported model did not end in {_TIMEOUT_S / 60:.0f} "
                        "minutes; is the machine overloaded? Run again to continue with the export."
                    ) from None
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return " | ".join(shown(line.strip()) for line in lines[-_LAST_LINES:])[-_LONGEST_TEXT:] or "(none)"


# ---- the fresh process --------------------------------------------------------------------------


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that one ended.

    The parent holds the other end of our standard input and never writes to it: the end of that input
    means that it was closed, by the parent or by the kernel. Does nothing when the input is not a pipe,
    as when a person runs the command.
    """
    if not stat.S_ISFIFO(os.fstat(_STDIN).st_mode):
        return

    def wait() -> None:
        # Not through sys.stdin: its lock, held by a thread at exit, would abort the interpreter.
        os.read(_STDIN, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def answers(folder: Path, inputs: Mapping[str, Floats]) -> dict[str, Floats]:
    """What the model in `folder` answers by both signatures; names and shapes as this file's head says."""
    import tensorflow as tf  # after end_with_parent: it takes seconds, in which the parent may go

    model: Any = tf.saved_model.load(str(folder))
    found: dict[str, Floats] = {}
    for name, array in inputs.items():
        if name == "patches":
            batches = [tf.constant(array[start : start + _BATCH]) for start in range(0, len(array), _BATCH)]
            served = [
                model.signatures["serving_default"](inputs=batch)["outputs"].numpy() for batch in batches
            ]
            found["outputs"] = np.concatenate(served)  # [n, C]
            found["embeddings"] = np.concatenate(
                [model.patches(batch)["embeddings"].numpy() for batch in batches]
            )
        else:
            number = name.removeprefix("waveform_")
            for output, value in model.signatures["sound"](waveform=tf.constant(array)).items():
                found[f"{output}_{number}"] = value.numpy()
    return found


def main(arguments: list[str]) -> int:
    """Read the inputs, answer, write the outputs; the exit status."""
    if len(arguments) != 3:
        print("usage: python -m birdtune.results.verify FOLDER INPUTS.npz OUTPUTS.npz", file=sys.stderr)
        return 2
    folder, given, made = map(Path, arguments)
    end_with_parent()
    with np.load(given, allow_pickle=False) as archive:
        inputs = {name: archive[name] for name in archive.files}
    found = answers(folder, inputs)
    with made.open("wb") as file:
        np.savez(file, allow_pickle=False, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
