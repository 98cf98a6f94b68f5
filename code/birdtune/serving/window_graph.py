"""What converters take: a frozen graph from a window's samples to its scores, made from a served model's files alone.

    version folder ─▶ of_model ─▶ graph: waveform [N, samples], or embedding [N, K] → scores [N, C], all float32
                                  ├─▶ in_float32: no number has 64 bits, as TensorFlow Lite wants it
                                  └─▶ in_reals: no complex number goes anywhere, as ONNX wants it

Importing this loads TensorFlow.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from birdtune.models import front_end_graph, registry

WAVEFORM, EMBEDDING, SCORES = "waveform", "embedding", "scores"

_NARROW = {tf.float64: tf.float32, tf.complex128: tf.complex64}
_REAL = {tf.complex64: tf.float32, tf.complex128: tf.float64}
_NARROWED = "_in_float32"
_PARTS = ("Real", "Imag")
# Operations that do the same to the real and to the imaginary part of what they pass on.
_PASSING = {"Cast", "ExpandDims", "Identity", "Pack", "Reshape", "Slice", "Squeeze", "StridedSlice", "Transpose"}


def of_model(folder: Path, facts: Mapping[str, Any]) -> Any:
    """A GraphDef of a served model's window scores, without variables, from its one input to SCORES.

    Args:
        folder: of the version. The caller knows that its graph does nothing but compute.
        facts: its model.json.
    """
    front_end = registry.read_front_end(facts["front_end"])
    assert front_end is not None  # the caller has opened the model
    loaded: Any = tf.saved_model.load(str(folder))
    shape = loaded.windows.input_signature[0].shape[1:]
    name, width = WAVEFORM, front_end.window_samples
    if not front_end.has_sound or facts.get("backbone_file"):
        name, width = EMBEDDING, math.prod(shape)
    given = tf.TensorSpec([None, width], tf.float32, name=name)

    def scores(inputs: Any) -> Any:
        rows = front_end_graph.rows(front_end, inputs) if name == WAVEFORM else inputs
        return loaded.windows(tf.reshape(rows, [-1, *shape]))["scores"]

    function = tf.function(scores, input_signature=[given], autograph=False).get_concrete_function()
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    graph_def = frozen.graph.as_graph_def()
    last = frozen.outputs[0]
    graph_def.node.append(_node("Identity", SCORES, [last.name], T=last.dtype))
    return graph_def


def input_of(graph_def: Any) -> tuple[str, Any]:
    """Name and shape of a graph's one input: WAVEFORM or EMBEDDING."""
    [given] = [node for node in graph_def.node if node.op == "Placeholder"]
    return given.name, tf.TensorShape(given.attr["shape"].shape)


def in_float32(graph_def: Any) -> Any:
    """The same graph with 32 bits for every real number: constants are rounded, casts between the two do nothing."""
    found = _copied(graph_def)
    for function in found.library.function:  # of loops
        function.signature.name += _NARROWED
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _narrowed(argument.type)
    for nodes in (found.node, *(function.node_def for function in found.library.function)):
        for node in nodes:
            for value in node.attr.values():
                _narrow(value)
    return found


def _narrow(value: Any) -> None:
    kind = value.WhichOneof("value")
    if kind == "type":
        value.type = _narrowed(value.type)
    elif kind == "list":
        value.list.type[:] = map(_narrowed, value.list.type)
    elif kind == "func":  # TensorFlow knows functions by their names, in all graphs of a process
        value.func.name += _NARROWED
    elif kind == "tensor" and (to := _NARROW.get(tf.as_dtype(value.tensor.dtype))) is not None:
        value.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(value.tensor), to))


def _narrowed(kind: int) -> int:
    return _NARROW.get(tf.as_dtype(kind), tf.as_dtype(kind)).as_datatype_enum if kind else kind


def in_reals(graph_def: Any) -> Any:
    """The same graph with each complex tensor as two real ones; `Real` and `Imag` follow a transform at once.

    Raises:
        ValueError: it does more with complex numbers than pass them on and take their parts, or does it in a loop.
    """
    if any(_gives_complex(node) for function in graph_def.library.function for node in function.node_def):
        raise ValueError("complex numbers in a loop over windows")
    found = _copied(graph_def)
    del found.node[:]
    pairs = {node.name for node in graph_def.node if _gives_complex(node)}
    for node in graph_def.node:
        takes_pair = any(_name(given) in pairs for given in node.input)
        if node.name in pairs:
            found.node.extend(_as_pair(node, pairs))
        else:
            found.node.extend(_of_pair(node) if takes_pair else [node])
    return found


def _gives_complex(node: Any) -> bool:
    name = {"RFFT": "Tcomplex", "Cast": "DstT", "ComplexAbs": "Tout", "Real": "Tout", "Imag": "Tout"}.get(node.op, "T")
    return node.attr[name].type in {kind.as_datatype_enum for kind in _REAL} if name in node.attr else False


def _as_pair(node: Any, pairs: set[str]) -> Iterator[Any]:
    """Nodes that give the real and the imaginary part of what a node gives."""
    if node.op == "RFFT":
        yield node
        types = {"T": node.attr["Tcomplex"].type, "Tout": node.attr["Treal"].type}
        yield from (_node(part, f"{node.name}/{part}", [node.name], **types) for part in _PARTS)
        return
    if node.op not in _PASSING:
        raise ValueError(f"{node.op} of complex numbers")
    for part in _PARTS:
        copy = _copied(node)
        copy.name = f"{node.name}/{part}"
        copy.input[:] = [f"{_name(given)}/{part}" if _name(given) in pairs else given for given in node.input]
        for value in copy.attr.values():
            if value.WhichOneof("value") == "type" and (to := _REAL.get(tf.as_dtype(value.type))) is not None:
                value.type = to.as_datatype_enum
        yield copy


def _of_pair(node: Any) -> Iterator[Any]:
    """Nodes that give what a node makes of a complex number: one of its parts, or its magnitude."""
    given = [f"{_name(node.input[0])}/{part}" for part in _PARTS]
    if node.op in _PARTS:
        yield _node("Identity", node.name, [given[_PARTS.index(node.op)]], T=node.attr["Tout"].type)
    elif node.op == "Cast":  # to a real type: the real part
        source = _REAL[tf.as_dtype(node.attr["SrcT"].type)]
        yield _node("Cast", node.name, given[:1], SrcT=source, DstT=node.attr["DstT"].type)
    elif node.op == "ComplexAbs":
        kind = node.attr["Tout"].type
        squares = [f"{name}/Square" for name in given]
        yield from (_node("Square", square, [name], T=kind) for square, name in zip(squares, given, strict=True))
        yield _node("AddV2", f"{node.name}/Sum", squares, T=kind)
        yield _node("Sqrt", node.name, [f"{node.name}/Sum"], T=kind)
    else:
        raise ValueError(f"{node.op} of complex numbers")


def _node(operation: str, name: str, given: list[str], **types: Any) -> Any:
    made = tf.compat.v1.NodeDef(op=operation, name=name, input=given)
    for key, kind in types.items():
        made.attr[key].type = tf.as_dtype(kind).as_datatype_enum
    return made


def _name(given: str) -> str:
    """The node that an input comes from: "x:0" and "^x" are "x"."""
    return given.lstrip("^").split(":")[0]


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
