"""A backbone that is a SavedModel with a waveform as input; it is not trained.

    folder, sample rate ─▶ open_backbone ─▶ SavedModelBackbone, once its signatures were read and none of it was run

Of its signatures the one called `embeddings` is taken, else `serving_default`, else the only one: an input [N, samples]
float32, an output [N, K] float32, the one whose name has "embedding" in it if there are several.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.audio.waveform import waveform
from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models.backbone import ALL_BUT_HEAD, Backbone, Cut
from birdtune.models.graph_safety import GRAPH, read_graph, require_numbers_only
from birdtune.runtime.fingerprints import checkpoint_digest
from birdtune.runtime.tensorflow_import import load_tensorflow

# What a window costs is not known before it was computed: taken to be a network of the size of BirdNET's,
# 0.8 billion operations for 3 s. For estimates alone.
_FLOPS_PER_S = 3e8
_SIGNATURES = ("embeddings", "serving_default")
_LONGEST_WINDOW_S = 60.0


class Signature(NamedTuple):
    """What is called of a SavedModel."""

    name: str
    input: str
    n_samples: int | None  # of a window; None: any
    output: str
    size: int


@dataclass(frozen=True, kw_only=True)
class SavedModelBackbone(Backbone):
    """A finished graph."""

    folder: Path
    signature: Signature
    n_samples: int  # of a window
    sha256: str  # of its files

    @property
    def embedding_size(self) -> int:
        return self.signature.size

    @property
    def trainable(self) -> bool:
        return False

    @property
    def layer_names(self) -> tuple[str, ...]:
        return ()

    @property
    def graph_sha256(self) -> str | None:
        return self.sha256

    @property
    def freeze_points(self) -> tuple[str, ...]:
        return (ALL_BUT_HEAD,)

    def frozen_layers(self, point: str) -> int:
        """One: all of it."""
        if point != ALL_BUT_HEAD:
            raise SettingsError(
                f"--model.freeze {shown(point)}: a SavedModel is not trained. Leave the setting out, or give "
                f"{ALL_BUT_HEAD}."
            )
        return 1

    def cut(self, n_frozen: int) -> Cut:
        return Cut(n_frozen, self.embedding_size, True, self.window_flops(), 0.0, rest_convolves=False)

    def variables(self) -> dict[str, tuple[int, ...]]:
        """None: they are in the graph."""
        return {}

    def weight_count(self) -> int:
        files = [path for path in (self.folder / "variables").glob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) // np.dtype(np.float32).itemsize

    def window_flops(self) -> float:
        """A guess."""
        return _FLOPS_PER_S * self.window_s

    def window_activations(self) -> int:
        return 8 * self.n_samples

    # ---- the network (custom_network.py, which loads TensorFlow) ----

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import custom_network

        del embedding_activation, precision, seed
        return custom_network.build(self)

    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        """Nothing: the graph has its weights."""

    def split(self, network: Any) -> tuple[Any, Any | None]:
        return network, None

    def digest(self, network: Any) -> str:
        return self.sha256

    def n_frozen(self, network: Any) -> int:
        return 1

    def resources(self, network: Any) -> list[Any]:
        return [network.get_layer(self.name).loaded]

    def verify(self) -> None:
        from birdtune.models import probe

        probe.probe(self, {})


def is_saved_model(path: Path) -> bool:
    """Whether there is a SavedModel in a folder; TensorFlow gives its graph this name and no other."""
    return (path / GRAPH).is_file()


def open_backbone(
    folder: Path, *, name: str, title: str, rate_hz: int | None, window_s: float | None, output: str | None = None
) -> SavedModelBackbone:
    """Read what a SavedModel takes and gives. Loads TensorFlow's description of graphs, no graph.

    Args:
        name, title: of the backbone.
        rate_hz, window_s, output: as `files.open_file`; the window follows from the signature where that has a fixed
            number of samples.

    Raises:
        CheckpointError: it is damaged, could do more than compute, or has no such signature.
        SettingsError: rate or window are missing, or do not fit.
        RetryableError: the storage fails.
    """
    if not is_saved_model(folder):
        raise CheckpointError(
            f"{shown(folder)}: is not the folder of a SavedModel: there is no {GRAPH} in it. Give the folder that "
            "tf.saved_model.save or keras' model.export wrote."
        )
    load_tensorflow()
    require_numbers_only(folder)
    signature = _signature(folder, output)
    if rate_hz is None:
        raise SettingsError(
            f"--model.checkpoint {shown(folder)}: a SavedModel does not say for which sample rate it was trained. Give "
            "it, e.g. --model.sample-rate-hz 48000."
        )
    n_samples = _window(signature, rate_hz, window_s, folder)
    found_s = n_samples / rate_hz
    front_end = waveform("waveform", rate_hz=rate_hz, window_s=found_s, hop_s=found_s)
    return SavedModelBackbone(
        name=name, title=title, front_end=front_end, folder=folder, signature=signature, n_samples=n_samples,
        sha256=checkpoint_digest(folder),
    )  # fmt: skip


def _window(signature: Signature, rate_hz: int, window_s: float | None, folder: Path) -> int:
    """Samples of a window."""
    known = signature.n_samples
    n_samples = known if window_s is None else round(window_s * rate_hz)
    if n_samples is None:
        raise SettingsError(
            f"{shown(folder)}: takes a waveform of any length. Give the length of a window, e.g. --model.window-s 3."
        )
    if known not in (None, n_samples):
        raise SettingsError(
            f"--model.window-s {window_s:g}: {shown(folder)} takes {known:,} samples, which are "
            f"{known / rate_hz:g} s at {rate_hz:,} Hz. Leave the setting out, or mend --model.sample-rate-hz."
        )
    if not 0 < n_samples <= _LONGEST_WINDOW_S * rate_hz:
        raise SettingsError(
            f"--model.sample-rate-hz {rate_hz}: a window of {n_samples:,} samples would be {n_samples / rate_hz:g} s "
            f"long; expected are up to {_LONGEST_WINDOW_S:g} s. Likely cause: another sample rate."
        )
    return n_samples


def _signature(folder: Path, output: str | None) -> Signature:
    found = {
        name: signature
        for graph in read_graph(folder).meta_graphs
        for name, signature in graph.signature_def.items()
        if not name.startswith("__")
    }
    names = [name for name in _SIGNATURES if name in found] or (list(found) if len(found) == 1 else [])
    problems = []
    for name in names:
        inputs, outputs = found[name].inputs, found[name].outputs
        waveforms = [(key, shape[1]) for key, shape in _floats(inputs) if len(shape) == 2]
        embeddings = [(key, shape[1]) for key, shape in _floats(outputs) if len(shape) == 2 and shape[1]]
        if output is not None:
            embeddings = [pair for pair in embeddings if pair[0] == output]
        elif len(embeddings) > 1:
            embeddings = [pair for pair in embeddings if "embedding" in pair[0]]
        if len(inputs) == 1 and len(waveforms) == 1 and len(embeddings) == 1:
            (given, n_samples), (output, size) = waveforms[0], embeddings[0]
            assert size is not None
            return Signature(name, given, n_samples, output, size)
        problems.append(f"{name} takes {_described(inputs)} and gives {_described(outputs)}")
    listed = "; ".join(problems) or f"signatures are {', '.join(map(shown, found)) or 'none'}"
    raise CheckpointError(
        f"{shown(folder)}: has no signature from a waveform to embeddings ({listed}). Expected is one called "
        f"{' or '.join(_SIGNATURES)} with one input [N, samples] float32 and an output [N, K] float32, whose name has "
        "`embedding` in it, or is given with --model.embedding-output, if there are several. Likely cause: a model of "
        "pictures or of spectrograms."
    )


def _floats(tensors: Mapping[str, Any]) -> Iterator[tuple[str, list[int | None]]]:
    """Names and shapes of the float32 tensors of a signature."""
    for name, info in sorted(tensors.items()):
        if info.dtype == 1 and not info.tensor_shape.unknown_rank:  # DT_FLOAT
            yield name, [size.size if size.size >= 0 else None for size in info.tensor_shape.dim]


def _described(tensors: Mapping[str, Any]) -> str:
    parts = []
    for name, info in sorted(tensors.items()):  # the order of protobuf's maps is not kept
        shape = ", ".join(str(size.size) if size.size >= 0 else "N" for size in info.tensor_shape.dim)
        parts.append(f"{shown(name)} [{shape}]")
    return ", ".join(parts) or "nothing"
