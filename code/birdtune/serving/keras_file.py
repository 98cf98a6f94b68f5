"""A graph of window scores as a Keras model of stock layers and operations, which plain Keras 3 loads without birdtune.

    GraphDef of window scores ─▶ TensorFlow Lite's graph ─▶ model_of ─▶ saved: bytes of a .keras file
                                                                      ─▶ weights_and_description: of .h5 and .json

TensorFlow Lite's converter leaves few kinds of operations, with their constants computed. Sizes of tensors are computed
in its graph; here they are constants, found by computing one and two windows once. Importing this loads TensorFlow.
"""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from birdtune.models import tflite
from birdtune.models.tflite import WEIGHTED, Graph
from birdtune.models.tflite_graph import computed
from birdtune.models.tflite_operations import OPERATIONS
from birdtune.models.tflite_parts import FRONT, Part
from birdtune.runtime.files import temporary_folder
from birdtune.serving import tflite_file
from birdtune.serving.keras_operations import FUNCTIONS, compute
from birdtune.serving.window_graph import input_of

Arrays = dict[int, npt.NDArray[Any]]

_SIZES = ("int32", "int64")


def model_of(graph_def: Any) -> keras.Model:
    """The Keras model of a graph of window scores.

    Raises:
        ValueError: naming the operations that Keras does not have.
    """
    name, shape = input_of(graph_def)
    given = keras.Input(tuple(shape)[1:], dtype="float32", name=name)
    return keras.Model(given, _scores(tflite.graph_of(tflite_file.model_of(graph_def)), given), name="birdtune")


def saved(model: keras.Model) -> bytes:
    """The content of a .keras file."""
    with temporary_folder("keras") as room:
        path = room / "model.keras"
        model.save(path)
        return path.read_bytes()


def weights_and_description(model: keras.Model) -> tuple[bytes, bytes]:
    """The content of a .weights.h5 file, and of the JSON that `keras.models.model_from_json` makes a model of."""
    with temporary_folder("keras") as room:
        path = room / "model.weights.h5"  # an ending that Keras insists on
        model.save_weights(path)
        return path.read_bytes(), model.to_json().encode()


def _scores(graph: Graph, given: Any) -> Any:
    """What a graph puts out, as a KerasTensor."""
    of_data = [one for one in graph.operations if any(graph.tensors[made].dtype not in _SIZES for made in one.outputs)]
    unknown = {one.name for one in of_data} - set(FUNCTIONS) - set(WEIGHTED)
    unknown |= {one.name for one in graph.operations} - set(OPERATIONS)
    if unknown:
        raise ValueError(f"operations without an equivalent: {', '.join(sorted(unknown))}")
    noise = np.random.default_rng(0).normal(0.0, 0.1, (2, *given.shape[1:])).astype(np.float32)
    whole = Part(FRONT, graph.operations, graph.inputs[0], graph.outputs[0])
    one, two = (computed(graph, [whole], noise[:n]) for n in (1, 2))
    made = {graph.inputs[0]: given}
    for operation in of_data:
        inputs = [made[tensor] if tensor in made else _fixed(graph, tensor, one, two) for tensor in operation.inputs]
        made |= zip(operation.outputs, compute(graph, operation, inputs), strict=True)
    return made[graph.outputs[0]]


def _fixed(graph: Graph, tensor: int, one: Arrays, two: Arrays) -> Any:
    """A constant, or sizes, in which None depends on the number of windows."""
    if tensor < 0:
        return None
    if tensor in graph.constants:
        values = graph.constants[tensor]
        return values.astype(np.float32) if values.dtype.kind == "f" else values
    if one[tensor].shape != two[tensor].shape:
        raise ValueError("as many numbers as there are windows, which are not computed of the windows")
    sizes = one[tensor].astype(object)
    sizes[one[tensor] != two[tensor]] = None
    return sizes
