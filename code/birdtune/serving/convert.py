"""A served model in another format: a file, or two, that takes the samples of a window and gives its scores.

    model/<name>/<v> ─▶ convert ─▶ FOLDER/<name>.tflite, .onnx or .keras; or <name>.weights.h5 and <name>.json
                                   FOLDER/labels.txt       the class of each column, a line each
                                   FOLDER/<name>_Labels.txt   the same of a .tflite, for BirdNET-Analyzer
                                   FOLDER/conversion.json  what the file takes, and how closely it was verified

The file is written in a process of its own, and run in another one by its own runtime: its scores must be those of the
SavedModel's `serving_default` before the folder gets its name. Importing this loads neither TensorFlow nor ONNX.
"""

import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import BirdtuneError, ExportError, InputError, RetryableError, shown
from birdtune.runtime.files import new_folder, read_json, write_bytes, write_json
from birdtune.runtime.tensorflow_import import load_tensorflow
from birdtune.runtime.workers import Crashed, Isolated

Floats = npt.NDArray[np.float32]

TOLERANCE = 1e-3
LABELS_NAME = "labels.txt"
_PIECE = 16  # windows that are scored at a time


def pieces(inputs: Floats) -> Iterator[Floats]:
    """Inputs as a file is verified with them: one window alone, as on a telephone, then several at a time."""
    yield inputs[:1]
    for start in range(1, len(inputs), _PIECE):
        yield inputs[start : start + _PIECE]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        title: for people.
        extra: of `./entrypoint.sh extras` that brings its packages; None: they are always there.
        packages: that convert and run it.
        write: version folder, its model.json → the name of the model's input, and the content of each file.
        open: the first of the files → function of inputs [n, ...] → scores [n, C].
        endings: of the files' names, behind the model's.
    """

    title: str
    extra: str | None
    packages: tuple[str, ...]
    write: Callable[[Path, Mapping[str, Any]], tuple[str, *tuple[bytes, ...]]]
    open: Callable[[Path], Callable[[Floats], Any]]
    endings: tuple[str, ...]


def require_packages(kind: str) -> None:
    """Refuse a format whose packages are not installed. Raises InputError with the command that installs them."""
    wanted = FORMATS[kind]
    missing = [name for name in wanted.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format {kind}: needs {', '.join(missing)}, which is not installed. Give ./entrypoint.sh extras "
            f"{wanted.extra} (in an image: build it with --build-arg EXTRAS={wanted.extra})."
        )


def convert(
    source: Path,
    folder: Path,
    kind: str,
    inputs: Floats,
    *,
    published: Mapping[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write a served model in another format, verify it in a fresh process, put it in place.

    Args:
        source: version folder, as `export.export_model` writes it.
        folder: where it goes; one already there is replaced.
        kind: one of FORMATS.
        inputs: windows to verify it with: waveforms [n, samples], or embeddings [n, K] where the model takes these.
        published: class → the label that it has in the list that was published with the backbone, if it has one.
        check: called now and then; it may raise to stop, and then nothing is left.

    Returns:
        what stands in conversion.json.

    Raises:
        InputError: the format has no equivalent of what the backbone's graph does, or the place cannot be written.
        ExportError: the file fails or disagrees; nothing was put in place.
        RetryableError: a process was killed, or the storage failed.
        CheckpointError: the model is damaged.
    """
    wanted, facts = FORMATS[kind], read_json(source / "model.json")
    needed = 2 * sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with new_folder(folder, what=f"the {wanted.title} model", needed=needed) as building:
        names = [f"{facts['name']}.{ending}" for ending in wanted.endings]
        made = _apart(_converted, (source.absolute(), kind, inputs), f"{shown(source)}: the process that converts")
        for name, content in zip(names, made["files"], strict=True):
            write_bytes(building / name, content)
        check()
        task = (building.absolute() / names[0], kind, made["inputs"])
        scores = _apart(_run, task, f"{shown(folder)}: the process that verifies")["scores"]
        difference = _difference(scores, made["scores"])
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{shown(folder)}: the {wanted.title} model, run in a fresh process, gives scores that differ by "
                f"{difference:.3g} from those of {shown(source)}, allowed is {TOLERANCE:g}; nothing was put in place. "
                "Likely cause: an operation that computes otherwise there. Please report it, and use the SavedModel."
            )
        write_bytes(building / LABELS_NAME, labels(facts["classes"]))
        if kind == "tflite":
            lines = for_analyzer(facts["classes"], published or {})
            write_bytes(building / f"{facts['name']}_Labels.txt", labels(lines))
        found = {
            "file": names[0],
            **({"description": names[1]} if names[1:] else {}),
            "model": {key: facts[key] for key in ("name", "version", "backbone", "head", "weights_sha256")},
            "input": {"name": made["input"], "shape": ["n", *made["inputs"].shape[1:]], "type": "float32",
                      "rate_hz": facts["front_end"]["rate_hz"]},
            "output": {"name": "scores", "shape": ["n", len(facts["classes"])], "type": "float32"},
            "verification": {"tolerance": TOLERANCE, "windows": len(scores), "difference": difference},
            "packages": made["packages"],
        }  # fmt: skip
        write_json(building / "conversion.json", found)
        check()
    return found


def labels(classes: Sequence[str]) -> bytes:
    """The content of labels.txt."""
    return "".join(f"{name}\n" for name in classes).encode()


def for_analyzer(classes: Sequence[str], published: Mapping[str, str]) -> list[str]:
    """Classes as BirdNET-Analyzer names them, `Genus species_Common name`; of others it shows one name as both.

    Args:
        published: as `convert`; a label that two classes have is that of none, as Analyzer finds columns by labels.
    """
    times = Counter(published.values())
    own = {name: label for name, label in published.items() if times[label] == 1}
    return [own.get(name, name if "_" in name else f"{name}_{name}") for name in classes]


def _difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The largest; infinite where shapes differ or something is not finite."""
    if found.shape != expected.shape:
        return np.inf
    largest = float(np.abs(found.astype(np.float64) - expected).max())
    return largest if np.isfinite(largest) else np.inf


# ---- the two processes ---------------------------------------------------------------------------


def _apart(function: Callable[[Any], Iterator[tuple[str, Any]]], task: Any, who: str) -> dict[str, Any]:
    """What a function makes in a process of its own."""
    with Isolated(function) as process:
        try:
            return dict(process.items(task))
        except Crashed as fault:
            raise RetryableError(
                f"{who} was killed, most likely for want of memory: it needs 2 GB more than the model's files. "
                "Run again to continue with the conversion."
            ) from fault


def _converted(task: tuple[Path, str, Floats]) -> Iterator[tuple[str, Any]]:
    """The file, what it takes, and what the SavedModel makes of that."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    source, kind, inputs = task
    load_tensorflow()
    from birdtune.serving.verify import open_model

    model = open_model(source)
    found = [model.scores(piece) for piece in pieces(_windows(model.front_end, inputs))]
    scores, embeddings = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True))
    try:
        name, *contents = FORMATS[kind].write(source, model.facts)
    except BirdtuneError:
        raise
    except Exception as fault:  # whatever a converter makes of an operation that it does not know
        reason = shown(" ".join(str(fault).split())[:300])
        raise InputError(
            f"{shown(source)}: cannot be converted for --format {kind} ({type(fault).__name__}: {reason}). Likely "
            f"cause: the backbone {shown(model.facts['backbone'])} does what this format does not have. Use another "
            "format, or the SavedModel."
        ) from None
    yield "files", contents
    yield "packages", {name: importlib.import_module(name).__version__ for name in FORMATS[kind].packages}
    yield "input", name
    yield "inputs", inputs if name == "waveform" else embeddings
    yield "scores", scores


def _windows(front_end: FrontEnd, inputs: Floats) -> Floats:
    """Windows as the model's `serving_default` takes them."""
    if not front_end.has_sound:
        return inputs.reshape(-1, *front_end.window_shape)
    return np.stack([front_end.windows_of(waveform)[0] for waveform in inputs])


def _run(task: tuple[Path, str, Floats]) -> Iterator[tuple[str, Any]]:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    path, kind, inputs = task
    if "tensorflow" in FORMATS[kind].packages:
        load_tensorflow()
    try:
        scores = FORMATS[kind].open(path)
        yield "scores", np.concatenate([np.asarray(scores(piece)) for piece in pieces(inputs)])
    except Exception as fault:  # whatever the runtime makes of it, and of which not every kind can be pickled
        reason = shown(" ".join(str(fault).split())[:300])
        raise ExportError(
            f"{shown(path.name)}: the converted model cannot be run in a fresh process ({type(fault).__name__}: "
            f"{reason}); nothing was put in place. Please report it, and use the SavedModel."
        ) from None


# ---- the formats ---------------------------------------------------------------------------------


def _open_tflite(path: Path) -> Callable[[Floats], Any]:
    from birdtune.serving.tflite_file import opened

    return opened(path)


def _write_tflite(source: Path, facts: Mapping[str, Any]) -> tuple[str, bytes]:
    from birdtune.serving import tflite_file, window_graph

    graph_def = window_graph.of_model(source, facts)
    content = tflite_file.with_file(tflite_file.model_of(graph_def), LABELS_NAME, labels(facts["classes"]))
    return window_graph.input_of(graph_def)[0], content


def _open_onnx(path: Path) -> Callable[[Floats], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    return lambda inputs: session.run(None, {given.name: inputs})[0]


def _write_onnx(source: Path, facts: Mapping[str, Any]) -> tuple[str, bytes]:
    from birdtune.serving import onnx_file, window_graph

    graph_def = window_graph.of_model(source, facts)
    return window_graph.input_of(graph_def)[0], onnx_file.model_of(graph_def)


def _open_keras(path: Path) -> Callable[[Floats], Any]:
    import keras

    model: Callable[[Floats], Any] = keras.models.load_model(path)
    return model


def _write_keras(source: Path, facts: Mapping[str, Any]) -> tuple[str, bytes]:
    from birdtune.serving import keras_file, window_graph

    graph_def = window_graph.of_model(source, facts)
    return window_graph.input_of(graph_def)[0], keras_file.saved(keras_file.model_of(graph_def))


def _open_h5(path: Path) -> Callable[[Floats], Any]:
    import keras

    description = path.with_name(path.name.removesuffix(".weights.h5") + ".json")
    model: Any = keras.models.model_from_json(description.read_text("utf-8"))
    model.load_weights(path)
    return lambda inputs: model(inputs)


def _write_h5(source: Path, facts: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
    from birdtune.serving import keras_file, window_graph

    graph_def = window_graph.of_model(source, facts)
    return window_graph.input_of(graph_def)[0], *keras_file.weights_and_description(keras_file.model_of(graph_def))


FORMATS: Mapping[str, Format] = {
    "tflite": Format("TensorFlow Lite", None, ("tensorflow",), _write_tflite, _open_tflite, ("tflite",)),
    "onnx": Format("ONNX", "onnx", ("tf2onnx", "onnx", "onnxruntime"), _write_onnx, _open_onnx, ("onnx",)),
    "keras": Format("Keras", None, ("tensorflow", "keras"), _write_keras, _open_keras, ("keras",)),
    "h5": Format("Keras", None, ("tensorflow", "keras"), _write_h5, _open_h5, ("weights.h5", "json")),
}
