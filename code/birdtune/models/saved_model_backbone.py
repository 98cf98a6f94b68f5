"""A backbone that is a SavedModel with a waveform as input; it is not trained.

    folder ─▶ look ─▶ Signature ─▶ backbone ─▶ SavedModelBackbone, once its signatures were read and none of it was run

Of its signatures the one called `embeddings` is taken, else `serving_default`, else the only one: an input [N, samples]
float32, an output [N, K] float32, the one whose name has "embedding" in it if there are several.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from birdtune.errors import CheckpointError, shown
from birdtune.models.file_backbone import FileBackbone, FrozenBackbone, Wanted, facts_of, why_no_waveform
from birdtune.models.graph_safety import GRAPH, read_graph, require_numbers_only
from birdtune.runtime.tensorflow_import import load_tensorflow

_SIGNATURES = ("embeddings", "serving_default")
_FLOAT32 = 1  # DT_FLOAT
_WITHOUT_THEM = (
    "Likely cause: a model that was saved with its reading of files or its training. Save it again with the function "
    "from the waveform to the embeddings alone, or get the model from a source that you trust."
)


class Signature(NamedTuple):
    """What is called of a SavedModel."""

    name: str
    input: str
    n_samples: int | None  # of a window; None: any
    output: str
    size: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedModelBackbone(FrozenBackbone, FileBackbone):
    """A finished graph."""

    why_frozen: ClassVar[str] = "a SavedModel is not trained"
    signature: Signature

    @property
    def embedding_size(self) -> int:
        return self.signature.size

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import graph_network

        del embedding_activation, precision, seed
        return graph_network.of_saved_model(self)

    def resources(self, network: Any) -> list[Any]:
        return [network.get_layer(self.name).loaded]


def is_one(path: Path) -> bool:
    """Whether there is a SavedModel in a folder; TensorFlow gives its graph this name and no other."""
    return (path / GRAPH).is_file()


def backbone(path: Path, found: Signature, wanted: Wanted) -> SavedModelBackbone:
    """A SavedModel as a backbone. Raises as `file_backbone.facts_of`."""
    where = f"output {shown(found.output)} of its signature {shown(found.name)}"
    return SavedModelBackbone(**facts_of(path, wanted, found.n_samples), signature=found, embedding=where)


def look(path: Path, output: str | None) -> Signature:
    """What a SavedModel takes and gives. Loads TensorFlow's description of graphs, no graph.

    Args:
        output: that is the embedding; None: as the module says.

    Raises:
        CheckpointError: it is damaged, could do more than compute, or has no such signature.
        RetryableError: the storage fails.
    """
    load_tensorflow()
    require_numbers_only(path, _WITHOUT_THEM)
    return _signature(path, output)


def _signature(folder: Path, output: str | None) -> Signature:
    found = {
        name: signature
        for graph in read_graph(folder).meta_graphs
        for name, signature in graph.signature_def.items()
        if not name.startswith("__")
    }
    names = [name for name in _SIGNATURES if name in found] or (list(found) if len(found) == 1 else [])
    problems, what_to_do = [], "Save it again with such a signature."
    for name in names:
        inputs, outputs = found[name].inputs, found[name].outputs
        waveforms = [(key, shape[1]) for key, shape in _floats(inputs) if len(shape) == 2 and shape[0] is None]
        fit = [(key, shape[1]) for key, shape in _floats(outputs) if len(shape) == 2 and shape[1]]
        embeddings = _chosen(fit, output)
        if len(inputs) == 1 and len(waveforms) == 1 and len(embeddings) == 1:
            (given, n_samples), (place, size) = waveforms[0], embeddings[0]
            return Signature(name, given, n_samples, place, size)
        problems.append(f"{name} takes {_described(inputs)} and gives {_described(outputs)}")
        if len(inputs) != 1 or len(waveforms) != 1:
            what_to_do = why_no_waveform(*_shapes_and_types(inputs))
        elif fit:
            what_to_do = f"Name the output that is the embedding, e.g. --model.embedding-output {shown(fit[0][0])}."
    listed = "; ".join(problems) or f"signatures are {', '.join(map(shown, found)) or 'none'}"
    raise CheckpointError(
        f"{shown(folder)}: has no signature from a waveform to embeddings ({listed}). Expected is one called "
        f"{' or '.join(_SIGNATURES)} with one input [N, samples] float32 and an output [N, K] float32, whose name has "
        f"`embedding` in it, or is given with --model.embedding-output, if there are several. {what_to_do}"
    )


def _chosen(outputs: Sequence[tuple[str, int]], name: str | None) -> Sequence[tuple[str, int]]:
    """Of the outputs that could be the embedding those that are, by the name that was given or their own."""
    if name is not None:
        return [pair for pair in outputs if pair[0] == name]
    return outputs if len(outputs) == 1 else [pair for pair in outputs if "embedding" in pair[0]]


def _shapes_and_types(tensors: Mapping[str, Any]) -> tuple[list[list[int | None]], list[str]]:
    """Of the tensors of a signature, as `why_no_waveform` takes them."""
    infos = [tensors[name] for name in sorted(tensors)]
    shapes = [[size.size if size.size >= 0 else None for size in info.tensor_shape.dim] for info in infos]
    return shapes, ["float32" if info.dtype == _FLOAT32 else "another" for info in infos]


def _floats(tensors: Mapping[str, Any]) -> Iterator[tuple[str, list[int | None]]]:
    """Names and shapes of the float32 tensors of a signature."""
    for name, info in sorted(tensors.items()):
        if info.dtype == _FLOAT32 and not info.tensor_shape.unknown_rank:
            yield name, [size.size if size.size >= 0 else None for size in info.tensor_shape.dim]


def _described(tensors: Mapping[str, Any]) -> str:
    parts = []
    for name, info in sorted(tensors.items()):  # the order of protobuf's maps is not kept
        shape = ", ".join(str(size.size) if size.size >= 0 else "N" for size in info.tensor_shape.dim)
        parts.append(f"{shown(name)} [{shape}]")
    return ", ".join(parts) or "nothing"
