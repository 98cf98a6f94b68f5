"""A graph of window scores as a TensorFlow Lite file of built-in operations.

    GraphDef of window scores ─▶ model_of ─▶ bytes ─▶ with_file ─▶ bytes that `unzip` finds a file in
    file ─▶ opened ─▶ function of what it takes [n, ...] → scores [n, C]

Its RFFT2D takes float32 and computes in float64, so that nothing is lost where the graph had float64. Importing this
loads TensorFlow.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.runtime.tensorflow_import import stderr_to
from birdtune.serving.window_graph import SCORES, in_float32, input_of

Floats = npt.NDArray[np.float32]


def model_of(graph_def: Any) -> bytes:
    """The TensorFlow Lite model of a graph of window scores. Raises what TensorFlow's converter does."""
    narrow = in_float32(graph_def)
    name, shape = input_of(narrow)

    def scores(inputs: Any) -> Any:
        graph: Any = tf.graph_util
        return {SCORES: graph.import_graph_def(narrow, {f"{name}:0": inputs}, [f"{SCORES}:0"], name="")[0]}

    module: Any = tf.Module()
    module.scores = tf.function(scores, [tf.TensorSpec(shape, tf.float32, name=name)], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.scores.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    content: bytes = converter.convert()
    return content


def with_file(model: bytes, name: str, content: bytes) -> bytes:
    """A model with a file: a ZIP archive behind it, as the files in TensorFlow Lite's metadata are."""
    found = io.BytesIO(model)
    with zipfile.ZipFile(found, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return found.getvalue()


def opened(path: Path) -> Callable[[Floats], Floats]:
    """The function of a file: what the model takes [n, ...] → scores [n, C]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow points out another package for its interpreter
        interpreter = tf.lite.Interpreter(str(path))
    with Path(os.devnull).open("wb") as nothing, stderr_to(nothing.fileno()):  # what it computes with on this CPU
        interpreter.allocate_tensors()
    given, made = (details()[0]["index"] for details in (interpreter.get_input_details, interpreter.get_output_details))

    def scores(inputs: Floats) -> Floats:
        interpreter.resize_tensor_input(given, inputs.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, inputs)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(made))

    return scores
