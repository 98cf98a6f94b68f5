"""An exported model, from its files alone: opened to be used, or asked in a process of its own.

    folder ─▶ open_model ─▶ ExportedModel, a classifier without Keras and without a checkpoint

    python -m birdtune.serving.verify FOLDER INPUTS.npz OUTPUTS.npz

    INPUTS.npz   patches [n, 96, 64] float32; waveform_0, waveform_1 … [samples] float32, 16 kHz
    OUTPUTS.npz  outputs [n, C], embeddings [n, K];
                 patch_scores_0 [P, C], clip_scores_0 [C], embeddings_0 [P, K] …

In that process no Keras, no variable and no graph of the training side is there, so that it computes what
a server will compute. `fresh_answers` starts it, waits for it and ends it; both ends of what they agreed on
stand in this file. Nothing here imports training code, nor TensorFlow before a model is loaded.
"""

import contextlib
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

import birdtune
from birdtune.audio.logmel import FRONT_ENDS, FrontEnd, front_end_of
from birdtune.errors import CheckpointError, ExportError, PassingError, shown
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import Thresholds
from birdtune.models.graph_safety import require_numbers_only
from birdtune.runtime.files import read_json

Floats = npt.NDArray[np.float32]

# Of `model.json`: raised when a reader of an older one would misunderstand it.
FORMAT = 2

# A few hundred megabytes of activations at VGGish's full size, however many patches there are.
_BATCH = 64
_STDIN = 0
# Loading TensorFlow takes 10 s from a slow disk, a minute from a network's; scoring takes seconds.
_TIMEOUT_S = 900.0
_POLL_S = 0.1
_LAST_LINES = 12
_LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class ExportedModel:
    """A model that `results.export` wrote; it scores and embeds as a `model.classifier.Classifier` does."""

    classes: tuple[str, ...]  # position = column of the scores
    facts: dict[str, Any]  # model.json
    front_end: FrontEnd  # what its patches are made with
    patches: Callable[[Any], dict[str, Any]]
    attend: Callable[[Any], Any]  # embeddings [N, K] → how much each counts [N], as a `Classifier`'s
    # Mean embeddings of recordings, silence left out [N, K] → how strange they are [N]; None: it does not tell.
    strangeness: Callable[[Any], Any] | None
    calibration: Calibration  # already in the scores; its part for clips is applied to their mean
    thresholds: Thresholds | None

    @property
    def usual_s(self) -> float | None:
        """Median seconds of the recordings that calibration, thresholds and strangeness rest on; None: not known."""
        told = self.facts.get("usual_s")  # a model that was exported before it was noted has none
        return float(told) if isinstance(told, int | float) and 0 < told < math.inf else None

    def scores(self, patches: Any) -> tuple[Any, Any]:
        """Patches [N, 96, 64] → scores [N, C] and embeddings [N, K], both float32."""
        found = self.patches(patches)
        return found["scores"], found["embeddings"]

    def embed(self, patches: Any) -> Any:
        """Patches [N, 96, 64] → embeddings [N, K] float32."""
        return self.patches(patches)["embeddings"]


def open_model(folder: Path) -> ExportedModel:
    """Load the version folder of an exported model, if its graph does nothing but compute.

    Raises:
        CheckpointError: there is none, it is damaged, another birdtune wrote it, or it could do more than compute.
    """
    facts = read_json(folder / "model.json")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{shown(folder)}: is not a model that this birdtune exported (model.json is missing or of "
            "another format). Expected a version folder, e.g. output/model/birdtune/1."
        )
    import tensorflow as tf  # takes seconds, which a folder that is no model should not cost

    try:
        classes, digest = tuple(facts["classes"]), facts["front_end"]["digest"]
        # A model that was exported before there were any has neither.
        calibration = Calibration.of(row) if (row := facts.get("calibration")) else Calibration(facts["head"])
        thresholds = Thresholds.of(row) if (row := facts.get("thresholds")) else None
        require_numbers_only(folder)
        loaded: Any = tf.saved_model.load(str(folder))
    except (OSError, ValueError, LookupError, TypeError, tf.errors.OpError) as fault:
        reason = shown(" ".join(str(fault).split())[:300])
        raise CheckpointError(
            f"{shown(folder)}: cannot be loaded ({type(fault).__name__}: {reason}). Export the model again."
        ) from fault
    front_end = front_end_of(digest, facts["front_end"].get("limit_hz"))
    if front_end is None:
        known = ", ".join(f"{spec.name} {spec.digest}" for spec in FRONT_ENDS)
        raise CheckpointError(
            f"{shown(folder)}: wants log-mel frames of another kind (front end {shown(digest)}) than this birdtune "
            f"makes ({known}). Use the birdtune that exported it, or export the model again."
        )
    # Through `loaded`: the function alone would not keep its variables alive.
    return ExportedModel(
        classes,
        facts,
        front_end,
        lambda patches: loaded.patches(tf.constant(patches, tf.float32)),
        lambda embeddings: loaded.attention(tf.constant(embeddings, tf.float32)),
        (lambda pooled: loaded.strangeness(tf.constant(pooled, tf.float32)))
        if hasattr(loaded, "strangeness")
        else None,
        calibration,
        thresholds,
    )


# ---- the process that starts it -----------------------------------------------------------------


def fresh_answers(folder: Path, inputs: Mapping[str, Floats], check: Callable[[], None]) -> dict[str, Floats]:
    """Have a fresh process load the model in `folder` and answer `inputs`.

    It has a session of its own: Ctrl-C at the terminal reaches this process alone, which decides what
    becomes of it. It ends when this function is left in any way, and, should this process be killed
    outright, when its standard input is closed thereby. Files between the two are in memory, so that no
    other disk than the model's own can be full.

    Args:
        inputs: as INPUTS.npz.
        check: called several times a second; it may raise to stop.

    Returns:
        as OUTPUTS.npz.

    Raises:
        ExportError: it failed; with the last lines it wrote to standard error.
        PassingError: it was killed, or did not end in 15 minutes.
    """
    with contextlib.ExitStack() as stack:
        given, made, log = (stack.enter_context(_memory_file(name)) for name in ("inputs", "outputs", "stderr"))
        np.savez(given, allow_pickle=False, **inputs)
        given.flush()
        status = _run(_command(folder, _path(given), _path(made)), log, check, (given.fileno(), made.fileno()))
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
        made.seek(0)
        with np.load(made, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


def _memory_file(name: str) -> IO[bytes]:
    return os.fdopen(os.memfd_create(name), "w+b")


def _path(file: IO[bytes]) -> Path:
    """By which a process that inherits the file can open it."""
    return Path(f"/proc/self/fd/{file.fileno()}")


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


def _run(command: list[str], stderr: IO[bytes], check: Callable[[], None], inherited: Sequence[int]) -> int:
    """Run a command, which inherits some open files, to its end, or kill it; its exit status."""
    deadline = time.monotonic() + _TIMEOUT_S
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=inherited,
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


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()
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

    require_numbers_only(folder)  # what is refused later must not be exported
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
        print("usage: python -m birdtune.serving.verify FOLDER INPUTS.npz OUTPUTS.npz", file=sys.stderr)
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
