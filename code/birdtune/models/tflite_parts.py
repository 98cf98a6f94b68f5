"""Where a TensorFlow Lite graph can be cut: a beginning without weights to train, then blocks.

    Graph, tensor of the embeddings ─▶ cut ─▶ Parts(front, blocks)

A cut is where one tensor alone leads on. The front reaches to the last cut before the first convolution: it makes a
spectrogram of the waveform, and is never trained. Behind it a block ends at each cut that is a bottleneck, where fewer
numbers lead on than before and after: in networks of inverted residuals these are the ends of the residual blocks
(Sandler et al., "MobileNetV2", 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.models.tflite import WEIGHTED, Graph, Operation, Tensor

FRONT = "front"


@dataclass(frozen=True)
class Part:
    """Operations between two cuts."""

    name: str  # "front", "block1", …
    operations: tuple[Operation, ...]
    given: int  # tensor that goes in
    made: int  # tensor that comes out

    def weighted(self, graph: Graph) -> tuple[Operation, ...]:
        """The operations whose weights can be trained."""
        if self.name == FRONT:
            return ()
        return tuple(one for one in self.operations if one.name in WEIGHTED and one.inputs[1] in graph.constants)


@dataclass(frozen=True)
class Parts:
    """A graph in parts, each of which begins where the one before ends."""

    front: Part
    blocks: tuple[Part, ...]


def cut(graph: Graph, output: int) -> Parts:
    """Cut the operations that lead from the input to a tensor.

    Raises:
        ValueError: there is no operation with weights on the way, or no place to cut.
    """
    operations = _leading_to(graph, output)
    begin = _first_trained(operations)
    cuts = _cuts(graph, operations, output)
    front_end = max((position for position in cuts if position < begin), default=None)
    given = graph.inputs[0] if front_end is None else cuts[front_end]
    start = 0 if front_end is None else front_end + 1
    front = Part(FRONT, tuple(operations[:start]), graph.inputs[0], given)
    ends = _ends(graph, operations, {position: made for position, made in cuts.items() if position >= begin})
    blocks = list[Part]()
    for end in ends:
        blocks.append(Part(f"block{len(blocks) + 1}", tuple(operations[start : end + 1]), given, cuts[end]))
        start, given = end + 1, cuts[end]
    assert blocks and start == len(operations)
    return Parts(front, tuple(blocks))


def with_open_batch(graph: Graph) -> Graph:
    """A graph in which a constant shape [1, …] that something computed is reshaped to is [-1, …].

    A converter that was given the shape of one window writes its 1 into every such shape. Whether a graph computes a
    batch then is tried where its network is built (`tflite_graph`) and on a made sound (`probe`).
    """
    live, constants, tensors, operations = set(graph.inputs), dict(graph.constants), list(graph.tensors), []
    for operation in graph.operations:
        inputs = operation.inputs
        if live & set(inputs):
            live |= set(operation.outputs)
            if operation.name == "RESHAPE" and len(inputs) > 1 and _is_of_one_window(graph.constants.get(inputs[1])):
                opened = np.concatenate([[-1], graph.constants[inputs[1]][1:]]).astype(np.int32)
                constants[len(tensors)] = opened
                operation = replace(operation, inputs=(inputs[0], len(tensors)))
                tensors.append(Tensor("shape", opened.shape, "int32"))
        operations.append(operation)
    return replace(graph, operations=tuple(operations), tensors=tuple(tensors), constants=constants)


def _is_of_one_window(shape: npt.NDArray[Any] | None) -> bool:
    return shape is not None and shape.ndim == 1 and shape.size > 1 and shape[0] == 1 and (shape != -1).all()


def weights_of(graph: Graph, operation: Operation) -> list[tuple[int, str, npt.NDArray[np.float32]]]:
    """Place among the inputs, name and numbers of an operation's weights."""
    found = [(1, f"kernel_{operation.number}", graph.kernel(operation))]
    if (bias := graph.bias(operation)) is not None:
        found.append((2, f"bias_{operation.number}", bias))
    return found


def _leading_to(graph: Graph, output: int) -> list[Operation]:
    wanted, found = {output}, list[Operation]()
    for operation in reversed(graph.operations):
        if wanted & set(operation.outputs):
            found.append(operation)
            wanted.update(operation.inputs)
    if graph.inputs[0] not in wanted:
        raise ValueError(f"tensor {output} does not depend on the input")
    return found[::-1]


def _first_trained(operations: Sequence[Operation]) -> int:
    for names in (("CONV_2D", "DEPTHWISE_CONV_2D"), ("FULLY_CONNECTED",)):
        for position, operation in enumerate(operations):
            if operation.name in names:
                return position
    raise ValueError("it has no convolution and no fully connected layer")


def _cuts(graph: Graph, operations: Sequence[Operation], output: int) -> dict[int, int]:
    """Position of an operation behind which one tensor alone leads on → that tensor."""
    last_use = {tensor: position for position, one in enumerate(operations) for tensor in one.inputs}
    last_use[output] = len(operations)
    live, found = {graph.inputs[0]}, dict[int, int]()
    for position, operation in enumerate(operations):
        live |= set(operation.outputs)
        live = {tensor for tensor in live if last_use.get(tensor, -1) > position}
        if len(live) == 1:
            found[position] = next(iter(live))
    return found


def _ends(graph: Graph, operations: Sequence[Operation], cuts: dict[int, int]) -> list[int]:
    """The cuts at which blocks end."""
    positions = list(cuts)
    sizes = [prod(graph.tensors[cuts[position]].shape) for position in positions]
    found, start = list[int](), 0
    for k, position in enumerate(positions[:-1]):
        before = next((size for size in sizes[:k][::-1] if size != sizes[k]), inf)
        after = next((size for size in sizes[k + 1 :] if size != sizes[k]), 0)
        begin = positions[start - 1] + 1 if start else positions[0]
        has_weights = any(one.name in WEIGHTED for one in operations[begin : position + 1])
        if has_weights and before > sizes[k] < after:
            found.append(position)
            start = k + 1
    # What has no weights at the end belongs to the block before.
    begin = found[-1] + 1 if found else 0
    if found and not any(one.name in WEIGHTED for one in operations[begin:]):
        found.pop()
    return [*found, positions[-1]]
