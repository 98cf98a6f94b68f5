"""A backbone that is a TensorFlow Lite file with a waveform as input; frozen, or trained block by block.

    file ─▶ look ─▶ Found ─▶ backbone ─▶ TFLiteBackbone, once the file was read and nothing of it was run

Its embedding is what the last fully connected layer takes, which makes classes of it; where there is none, the output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, shown
from birdtune.models import tflite, tflite_parts
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Cut, Published, choose
from birdtune.models.file_backbone import FileBackbone, Wanted, facts_of, why_no_waveform
from birdtune.models.labels_file import read_labels
from birdtune.models.tf_checkpoint import check_variables
from birdtune.models.tflite import Graph, Operation
from birdtune.models.tflite_parts import Parts
from birdtune.runtime.text import some

LOGITS = ("logits/kernel", "logits/bias")
# Operations that may follow the last layer.
_SCORING = ("LOGISTIC", "SOFTMAX", "LOG_SOFTMAX")
# Operations that make [K] of [1, K].
_TAKING_ONE = ("RESHAPE", "SQUEEZE", "STRIDED_SLICE")


@dataclass(frozen=True)
class Found:
    """What a file takes and gives."""

    graph: Graph
    n_samples: int  # of a window
    embeddings: int  # the tensor
    classifier: Operation | None  # the fully connected layer behind it

    @property
    def size(self) -> int:
        """Numbers in an embedding."""
        return self.graph.tensors[self.embeddings].shape[-1]

    @property
    def n_classes(self) -> int | None:
        """Of the classifier; None: there is none."""
        return None if self.classifier is None else self.graph.tensors[self.classifier.outputs[0]].shape[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TFLiteBackbone(FileBackbone):
    """A graph with weights."""

    found: Found

    @property
    def graph(self) -> Graph:
        """What stands in the file."""
        return self.found.graph

    @cached_property
    def parts(self) -> Parts:
        """The graph in parts. Raises CheckpointError where it cannot be cut."""
        try:
            return tflite_parts.cut(self.graph, self.found.embeddings)
        except ValueError as fault:
            raise CheckpointError(
                f"{shown(self.path)}: is not a network from waveforms to embeddings: {fault}."
            ) from fault

    @property
    def embedding_size(self) -> int:
        return self.found.size

    @property
    def trainable(self) -> bool:
        return True

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Its blocks."""
        return tuple(part.name for part in self.parts.blocks)

    @property
    def freeze_points(self) -> tuple[str, ...]:
        return ("none", ALL_BUT_HEAD, *self.layer_names)

    def frozen_layers(self, point: str) -> int:
        """How many blocks are frozen: "none", "all-but-head", or up to and with a block of this name.

        Raises:
            SettingsError: an unknown point.
        """
        choose(point, self.freeze_points, "model.freeze")
        names = self.layer_names
        return {"none": 0, ALL_BUT_HEAD: len(names)}.get(point) or (names.index(point) + 1 if point in names else 0)

    def cut(self, n_frozen: int) -> Cut:
        last, total = self.parts.blocks[n_frozen - 1], len(self.parts.blocks)
        is_whole = n_frozen == total
        frozen = self.flops * n_frozen / total  # where operations lie is not known
        numbers = int(np.prod(self.graph.tensors[last.made].shape))
        return Cut(n_frozen, numbers, is_whole, frozen, self.flops - frozen, rest_convolves=not is_whole)

    def variables(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._arrays()}

    def weight_count(self) -> int:
        return sum(array.size for _, array in self._arrays())

    def window_activations(self) -> int:
        return 80 * self.n_samples  # of BirdNET's, most of them in its spectrograms; measured

    def arrays(self) -> Arrays:
        """The weights in the file: of the blocks, and of its classifier if there is one.

        Raises:
            CheckpointError: not all of them are finite numbers.
        """
        found = dict(self._arrays())
        if (classifier := self.found.classifier) is not None:
            kernel, bias = self.graph.kernel(classifier), self.graph.bias(classifier)
            found |= zip(LOGITS, (kernel, np.zeros(kernel.shape[1], np.float32) if bias is None else bias), strict=True)
        # A damaged classifier would not show in embeddings, by which the file is tried.
        if broken := [name for name, array in found.items() if not np.isfinite(array).all()]:
            raise CheckpointError(
                f"{shown(self.path)}: NaN or infinity among its weights ({some(broken)}). The file is damaged: get it "
                "once more."
            )
        return found

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        for part in self.parts.blocks:
            for operation in part.weighted(self.graph):
                for _, name, array in tflite_parts.weights_of(self.graph, operation):
                    yield f"{part.name}/{name}", array

    # ---- the network (tflite_graph.py, which loads TensorFlow) ----

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import tflite_graph

        del embedding_activation, seed
        return tflite_graph.build(self, precision=precision)

    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        check_variables(variables, self.variables(), source=source)
        for name in self.layer_names:
            for variable in network.get_layer(name).weights:
                variable.assign(np.asarray(variables[f"{name}/{variable.name}"], np.float32))

    def split(self, network: Any) -> tuple[Any, Any | None]:
        from birdtune.models import network as networks

        return networks.split(self.layer_names, network)

    def digest(self, network: Any) -> str:
        from birdtune.models import tflite_graph

        return tflite_graph.digest(self, network, self.n_frozen(network))

    def n_frozen(self, network: Any) -> int:
        return sum(not network.get_layer(name).trainable for name in self.layer_names)

def is_one(path: Path) -> bool:
    """Whether a file begins as TensorFlow Lite's do. Raises OSError."""
    return path.is_file() and tflite.is_tflite(path)


def backbone(path: Path, found: Found, wanted: Wanted) -> TFLiteBackbone:
    """A TensorFlow Lite file as a backbone. Raises as `file_backbone.facts_of`."""
    published = None
    if (width := found.n_classes) is not None:
        published = Published(LOGITS, width, lambda place: read_labels(place, width), wanted.starts_heads)
    where = f"output {shown(found.graph.tensors[found.embeddings].name)}"
    if found.classifier is not None:
        where = f"what its last fully connected layer takes, which makes {width:,} classes of it"
    return TFLiteBackbone(
        **facts_of(path, wanted, found.n_samples), found=found, published=published, embedding=where
    )


def look(path: Path, output: str | None) -> Found:
    """What a file takes and gives.

    Args:
        output: name of the output that is the embedding; None: as the module says.

    Raises:
        CheckpointError: damaged, or no network from waveforms to embeddings.
    """
    graph = tflite_parts.with_open_batch(tflite.read(path))
    inputs = [graph.tensors[number] for number in graph.inputs]
    shapes = [f"{shown(one.name)} {list(one.shape)} {one.dtype}" for one in inputs]
    if len(inputs) != 1 or inputs[0].dtype != "float32" or not _is_waveform(inputs[0].shape):
        raise CheckpointError(
            f"{shown(path)}: takes {', '.join(shapes) or 'nothing'}; expected is one waveform [1, samples] float32. "
            + why_no_waveform([one.shape for one in inputs], [one.dtype for one in inputs])
        )
    embeddings, classifier = _embeddings(path, graph, output)
    return Found(graph, inputs[0].shape[-1], embeddings, classifier)


def _is_waveform(shape: tuple[int, ...]) -> bool:
    return len(shape) in (1, 2) and shape[0] >= 1 and (len(shape) == 1 or shape[0] == 1) and shape[-1] > 1


def _embeddings(path: Path, graph: Graph, output: str | None) -> tuple[int, Operation | None]:
    """The tensor of the embeddings, and the layer that makes classes of them."""
    maker = {tensor: one for one in graph.operations for tensor in one.outputs}
    if output is not None:
        named = [number for number in graph.outputs if graph.tensors[number].name == output]
        if not named:
            raise _no_embedding(path, graph, f"has no output called {shown(output)}")
        return _with_batch(graph, named[0], maker), None
    outputs = [_with_batch(graph, number, maker) for number in graph.outputs]
    last = [_before_scoring(maker.get(number), maker) for number in outputs]
    layers = [one for one in last if one is not None and one.name == "FULLY_CONNECTED"]
    if len(layers) == 1:
        return layers[0].inputs[0], layers[0]
    flat = [number for number in outputs if len(graph.tensors[number].shape) == 2]
    flat = [number for number in flat if "embedding" in graph.tensors[number].name.lower()] or flat
    if len(flat) != 1:
        raise _no_embedding(path, graph, "does not show which of its outputs is the embedding")
    return flat[0], None


def _with_batch(graph: Graph, output: int, maker: Mapping[int, Operation]) -> int:
    """Of an output [K] the tensor [1, K] that it was made of, if there is one."""
    operation, shape = maker.get(output), graph.tensors[output].shape
    if len(shape) != 1 or operation is None or operation.name not in _TAKING_ONE:
        return output
    before = operation.inputs[0]
    return before if graph.tensors[before].shape == (1, *shape) else output


def _before_scoring(operation: Operation | None, maker: Mapping[int, Operation]) -> Operation | None:
    while operation is not None and operation.name in _SCORING:
        operation = maker.get(operation.inputs[0])
    return operation


def _no_embedding(path: Path, graph: Graph, problem: str) -> CheckpointError:
    tensors = [graph.tensors[number] for number in graph.outputs]
    fit = next((one.name for one in tensors if len(one.shape) == 2 and one.dtype == "float32"), None)
    what_to_do = "None is an embedding [1, K] float32: convert the function from the waveform to the embedding"
    if fit is not None:
        what_to_do = f"Name one [1, K] float32, e.g. --model.embedding-output {shown(fit)}"
    outputs = ", ".join(f"{shown(one.name)} {list(one.shape)}" for one in tensors) or "none"
    return CheckpointError(f"{shown(path)}: {problem}. Its outputs are {outputs}. {what_to_do}.")
