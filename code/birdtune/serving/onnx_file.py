"""A graph of window scores as an ONNX file, through tf2onnx; needs the extra `onnx`.

    GraphDef of window scores ─▶ model_of ─▶ bytes of an ONNX model, inputs and outputs as the graph's

tf2onnx knows a Fourier transform only where magnitudes follow it, as a product with a matrix. So it is given our own
handlers, which make the operation DFT of it, in the graph's float64. Importing this loads TensorFlow.
"""

from typing import Any

import numpy as np
import tf2onnx

from birdtune.serving.window_graph import SCORES, in_reals, input_of

OPSET = 17  # the first with DFT


def model_of(graph_def: Any) -> bytes:
    """The ONNX model of a graph of window scores.

    Raises:
        ValueError: naming the operations that ONNX does not have.
    """
    name, _ = input_of(graph_def)
    model, _ = tf2onnx.convert.from_graph_def(
        in_reals(graph_def), input_names=[f"{name}:0"], output_names=[f"{SCORES}:0"], opset=OPSET,
        custom_op_handlers={"RFFT": (_transform, []), "Real": (_part, []), "Imag": (_part, [])},
        tensors_to_rename={f"{name}:0": name, f"{SCORES}:0": SCORES},
    )  # fmt: skip
    # What tf2onnx does not know it leaves as it is, in a domain of its own.
    if unknown := sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx.ml")}):
        raise ValueError(f"operations without an equivalent: {', '.join(unknown)}")
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.shape.dim[0].dim_param = "n"
    content: bytes = model.SerializeToString()
    return content


def _transform(graph: Any, node: Any, name: str, _: Any) -> None:
    """RFFT [..., samples] → DFT [..., bins, 2]."""
    [given, _], [made] = node.input, node.output
    dtype, shape = graph.get_dtype(given), graph.get_shape(made)
    length = node.inputs[1].get_tensor_value(as_list=False).reshape(())
    graph.remove_node(name)
    last = graph.make_const(f"{name}/last", np.array([-1], np.int64)).output[0]
    column = graph.make_node("Unsqueeze", [given, last]).output[0]  # [..., samples, 1]
    samples = graph.make_const(f"{name}/length", length.astype(np.int64)).output[0]
    graph.make_node(
        "DFT", [column, samples], attr={"axis": len(shape) - 1, "onesided": 1}, outputs=[made], name=name,
        dtypes=[dtype], shapes=[[*shape, 2]],
    )  # fmt: skip


def _part(graph: Any, node: Any, name: str, _: Any) -> None:
    """Real or Imag [...] of what `_transform` made [..., 2]."""
    [given], [made], part = node.input, node.output, ("Real", "Imag").index(node.type)
    dtype, shape = graph.get_dtype(made), graph.get_shape(made)
    graph.remove_node(name)
    at = graph.make_const(f"{name}/part", np.array(part, np.int64)).output[0]
    graph.make_node("Gather", [given, at], attr={"axis": -1}, outputs=[made], name=name, dtypes=[dtype], shapes=[shape])
