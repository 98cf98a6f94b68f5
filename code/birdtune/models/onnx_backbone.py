"""A backbone that is an ONNX file with a waveform as input; it is not trained. Needs the extra `onnx`.

    file ─▶ look ─▶ Found ─▶ backbone ─▶ OnnxBackbone, once the file was read and nothing of it was run
    path, Found ─▶ opened ─▶ function of waveforms [N, samples] → embeddings [N, K], by ONNX Runtime

Its embedding is the output with "embedding" in its name if there are several, else what the last fully connected layer
takes, which makes classes of it; else its only output.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models.file_backbone import FileBackbone, FrozenBackbone, Wanted, facts_of
from birdtune.runtime.storage import read_error
from birdtune.runtime.text import some

Floats = npt.NDArray[np.float32]

# Protobuf holds no more in one message.
_LARGEST_BYTES = 2 << 30
_PACKAGES = ("onnx", "onnxruntime")
# What ONNX Runtime computes itself; other domains are code of somebody's own.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_LAYERS, _SCORING = ("Gemm", "MatMul"), ("Add", "Sigmoid", "Softmax", "LogSoftmax", "Identity", "Cast")
# Fields of onnx.proto's ModelProto, and their types in protobuf: all that stands in such a file at the top.
_VARINT, _BYTES = 0, 2
_FIELDS = {1: _VARINT, 5: _VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)
_GRAPH, _OPSETS = 7, 8


@dataclass(frozen=True)
class Found:
    """What a file takes and gives."""

    input: str
    n_samples: int | None  # of a window; None: any
    is_flat: bool  # the input is [samples]
    one_by_one: bool  # it takes one window at a time
    tensor: str  # the embedding
    size: int
    where: str  # in words


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxBackbone(FrozenBackbone, FileBackbone):
    """A finished graph that ONNX Runtime computes."""

    why_frozen: ClassVar[str] = "an ONNX model is not trained"
    found: Found

    @property
    def embedding_size(self) -> int:
        return self.found.size

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import graph_network

        del embedding_activation, precision, seed
        return graph_network.of_function(self, opened(self.path, self.found))


def is_one(path: Path) -> bool:
    """Whether a file is a message of the fields of an ONNX model, whatever its name. Raises OSError."""
    if not path.is_file():
        return False
    found = set[int]()
    with path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        while file.tell() < n_bytes:
            tag = _varint(file)
            field, kind = (tag >> 3, tag & 7) if tag is not None else (0, 0)
            value = _varint(file) if _FIELDS.get(field) == kind else None
            if value is None:
                return False
            if kind == _BYTES:
                file.seek(value, os.SEEK_CUR)
            found.add(field)
        return file.tell() == n_bytes and {_GRAPH, _OPSETS} <= found


def _varint(file: Any) -> int | None:
    """A whole number as protobuf writes it; None: it is none."""
    value = 0
    for place in range(5):  # no length is above 2**35
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return int(value)
    return None


def backbone(path: Path, found: Found, wanted: Wanted) -> OnnxBackbone:
    """An ONNX file as a backbone. Raises as `file_backbone.facts_of`."""
    return OnnxBackbone(**facts_of(path, wanted, found.n_samples), found=found, embedding=found.where)


def look(path: Path, output: str | None) -> Found:
    """What a file takes and gives; nothing is run.

    Args:
        output: name of the tensor that is the embedding; None: as the module says.

    Raises:
        SettingsError: the extra is not installed.
        CheckpointError: damaged, could do more than compute, or no network from waveforms to embeddings.
        RetryableError: the storage fails.
    """
    model = _read(path)
    graph = model.graph
    known = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in known]
    shape = _shape(inputs[0]) if len(inputs) == 1 else None
    if shape is None or len(shape) not in (1, 2) or not _is_float(inputs[0]):
        raise CheckpointError(
            f"{shown(path)}: takes {_described(inputs)}; expected is one waveform [N, samples] float32. Likely cause: "
            "a model of pictures or of spectrograms."
        )
    is_flat = len(shape) == 1
    tensor, where = _embedding(path, graph, output)
    size = _size(model, tensor)
    if size is None:
        raise _no_embedding(path, graph, f"does not say that {shown(tensor)} is [N, K] float32")
    return Found(inputs[0].name, shape[-1], is_flat, is_flat or shape[0] == 1, tensor, size, where)


def require_packages(path: Path) -> None:
    """Refuse ONNX where nothing can read it. Raises SettingsError."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{shown(path)}: is an ONNX model, which needs {' and '.join(missing)}, and these are not installed. Give "
            "./entrypoint.sh extras onnx (in an image: build it with --build-arg EXTRAS=onnx)."
        )


def _read(path: Path) -> Any:
    """The ModelProto in a file, once it is known to do nothing but compute with what is in it."""
    require_packages(path)
    import onnx

    try:
        if (size := path.stat().st_size) > _LARGEST_BYTES:
            raise ValueError(f"{size / 1e9:.1f} GB, and one message holds 2")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as fault:
        message = f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check its rights."
        raise read_error(fault, path, message, CheckpointError) from fault
    except Exception as fault:  # whatever the parser makes of it, the file is the cause
        raise _damaged(path, fault) from fault
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    if unknown := sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in _DOMAINS}):
        own = {(function.domain, function.name) for function in model.functions}
        if unknown := [name for name in unknown if tuple(name.rsplit(".", 1)) not in own]:
            raise CheckpointError(
                f"{shown(path)}: was not loaded: it has operations that are not ONNX's: {some(unknown)}. They are code "
                "of whoever made the file. Export the model with ONNX's operations alone."
            )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise CheckpointError(
            f"{shown(path)}: was not loaded: it takes weights from other files. Save it as one file, as onnx.save does "
            "by itself."
        )
    return model


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _nodes(graph: Any) -> Iterator[Any]:
    for each in _graphs(graph):
        yield from each.node


def _tensors(model: Any) -> Iterator[Any]:
    """All numbers that stand in a model."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in (*_nodes(model.graph), *(node for function in model.functions for node in function.node)):
        for attribute in node.attribute:
            sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
            yield from (attribute.t, *attribute.tensors)
            yield from (part for one in sparse for part in (one.values, one.indices))


def _shape(value: Any) -> list[int | None] | None:
    """Of a tensor as the file describes it; None where it does not."""
    kind = value.type.tensor_type
    return [int(one.dim_value) or None for one in kind.shape.dim] if kind.HasField("shape") else None


def _is_float(value: Any) -> bool:
    return bool(value.type.tensor_type.elem_type == 1)  # TensorProto.FLOAT


def _embedding(path: Path, graph: Any, output: str | None) -> tuple[str, str]:
    """The tensor of the embeddings, and where that is, in words."""
    maker = {tensor: node for node in graph.node for tensor in node.output}
    names = [one.name for one in graph.output]
    if output is not None:
        if output not in names and output not in maker:
            raise _no_embedding(path, graph, f"has no tensor called {shown(output)}")
        return output, f"its tensor {shown(output)}"
    named = [name for name in names if "embedding" in name.lower()]
    flat = [one.name for one in graph.output if one.name in named and len(_shape(one) or ()) == 2] or named
    if len(flat) > 1 and "embedding" in flat:
        flat = ["embedding"]
    if len(flat) == 1:
        return flat[0], f"output {shown(flat[0])}"
    last = [_before_scoring(maker.get(name), maker) for name in names]
    layers = [node for node in last if node is not None and node.op_type in _LAYERS]
    if len(layers) == 1:
        return layers[0].input[0], "what its last fully connected layer takes, which makes classes of it"
    if len(names) != 1:
        raise _no_embedding(path, graph, "does not show which of its outputs is the embedding")
    return names[0], f"its only output {shown(names[0])}"


def _before_scoring(node: Any, maker: Mapping[str, Any]) -> Any:
    while node is not None and node.op_type in _SCORING:
        node = next((maker[name] for name in node.input if name in maker), None)
    return node


def _size(model: Any, tensor: str) -> int | None:
    """Numbers in an embedding; None where the graph does not show that it is [N, K] float32."""
    import onnx

    for inferred in (False, True):
        graph = onnx.shape_inference.infer_shapes(model).graph if inferred else model.graph
        for value in (*graph.output, *graph.value_info):
            shape = _shape(value) if value.name == tensor else None
            if shape is not None and len(shape) == 2 and shape[1] is not None and _is_float(value):
                return shape[1]
    return None


def _described(values: Any) -> str:
    parts = []
    for value in values:
        shape = ", ".join("N" if size is None else str(size) for size in _shape(value) or ())
        parts.append(f"{shown(value.name)} [{shape}]")
    return ", ".join(parts) or "nothing"


def _no_embedding(path: Path, graph: Any, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: {problem}. Its outputs are {_described(graph.output)}. Name one [N, K] float32, or another "
        "such tensor of the graph, with --model.embedding-output."
    )


def _damaged(path: Path, fault: Exception) -> CheckpointError:
    reason = shown(" ".join(str(fault).split())[:200])
    return CheckpointError(
        f"{shown(path)}: the ONNX model is damaged, or cannot be computed ({type(fault).__name__}: {reason}). Likely "
        "cause: a download or copy that stopped, or a newer version of ONNX; get it again."
    )


# ---- run ----------------------------------------------------------------------------------------


def opened(path: Path, found: Found) -> Callable[[Floats], Floats]:
    """Waveforms [N, samples] → embeddings [N, K], computed on the CPU, by all its cores.

    Raises:
        SettingsError, CheckpointError, RetryableError: as `look`; or ONNX Runtime cannot compute it.
    """
    facts = path.stat()
    return _opened(path, (facts.st_size, facts.st_mtime_ns), found)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, stamp: object, found: Found) -> Callable[[Floats], Floats]:
    del stamp  # another file is read anew
    model = _read(path)
    import onnx
    import onnxruntime

    # What leads to other outputs is not computed then.
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(found.tensor, 1, [None, found.size]))
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as fault:  # whatever the runtime makes of it, the file is the cause
        raise _damaged(path, fault) from fault

    def embed(samples: Floats) -> Floats:
        given = np.ascontiguousarray(samples, np.float32)
        pieces = np.split(given, len(given)) if found.one_by_one and len(given) else [given]
        parts = [
            session.run([found.tensor], {found.input: piece[0] if found.is_flat else piece})[0] for piece in pieces
        ]
        return np.asarray(np.concatenate([part.reshape(-1, found.size) for part in parts]), np.float32)

    return embed
