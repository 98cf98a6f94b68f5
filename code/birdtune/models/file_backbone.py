"""What backbones have in common that are a file, and those that are never trained.

    FileBackbone     a graph in a file with a waveform as input: `saved_model_backbone`, `tflite_backbone`,
                     `keras_backbone`, `onnx_backbone`
    FrozenBackbone   whatever computes embeddings and has nothing to train
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.audio.waveform import waveform
from birdtune.errors import SettingsError, shown
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Backbone, Cut
from birdtune.runtime.fingerprints import checkpoint_digest
from birdtune.runtime.tensorflow_import import load_tensorflow

# Windows of these lengths at the rate that was given; others are no waveforms but something else.
_SHORTEST_WINDOW_S, _LONGEST_WINDOW_S = 0.1, 60.0
# What a window costs is not known before it was computed: taken to be a network of the size of BirdNET's,
# 0.8 billion operations for 3 s. For estimates alone.
_FLOPS_PER_S = 3e8

ONE_WINDOW = (
    "was made for one window at a time: it does not compute a batch of two. Convert it again with an open batch, "
    "[None, samples] in place of [1, samples]."
)


def why_no_waveform(shapes: Sequence[Sequence[int | None]], types: Sequence[str]) -> str:
    """What to do about a graph whose inputs are not one waveform, in a sentence.

    Args:
        shapes: of the inputs; None: an open dimension, as a TensorFlow Lite file has 1.
        types: of their numbers, e.g. "float32".
    """
    if len(shapes) != 1:
        return "Convert the function of the waveform alone, with what else it takes as constants."
    (shape,), (kind,) = shapes, types
    if len(shape) not in (1, 2):
        return "Likely cause: a model of pictures or of spectrograms."
    if kind != "float32":
        return "Convert it with a float32 waveform between -1 and 1 as input, and a cast in the graph."
    if shape[-1] in (None, 1):
        return "Its number of samples is open: convert it with the length of a window, e.g. [None, 48000]."
    number = shape[0] if len(shape) == 2 else 1
    return f"It was made for {number} at a time: convert it with an open batch, [None, {shape[-1]}]."


@dataclass(frozen=True, kw_only=True, eq=False)
class FileBackbone(Backbone):
    """A graph in a file."""

    path: Path  # of the file, or of the folder
    sha256: str  # of its files
    n_samples: int  # of a window
    embedding: str  # where in the graph it is taken, in words
    flops: float  # of a window; a guess where nobody has counted

    __hash__ = object.__hash__  # by identity, as is what is kept of it
    __eq__ = object.__eq__

    @property
    def graph_sha256(self) -> str | None:
        return self.sha256

    def arrays(self) -> Arrays:
        """The weights in the file that birdtune can train, and those of its classifier; none of a finished graph."""
        return {}

    def weight_count(self) -> int:
        """About as many as the files have room for."""
        files = [self.path] if self.path.is_file() else [part for part in self.path.rglob("*") if part.is_file()]
        return sum(part.stat().st_size for part in files) // np.dtype(np.float32).itemsize

    def window_flops(self) -> float:
        return self.flops

    def window_activations(self) -> int:
        return 8 * self.n_samples

    def verify(self) -> None:
        load_tensorflow()
        from birdtune.models import probe

        probe.probe(self, self.arrays())


class FrozenBackbone(Backbone):
    """A backbone without anything to train."""

    why_frozen: ClassVar[str]  # a sentence's beginning

    @property
    def trainable(self) -> bool:
        return False

    @property
    def layer_names(self) -> tuple[str, ...]:
        return ()

    @property
    def freeze_points(self) -> tuple[str, ...]:
        return (ALL_BUT_HEAD,)

    def frozen_layers(self, point: str) -> int:
        """One: all of it."""
        if point != ALL_BUT_HEAD:
            raise SettingsError(
                f"--model.freeze {shown(point)}: {self.why_frozen}. Leave the setting out, or give {ALL_BUT_HEAD}."
            )
        return 1

    def cut(self, n_frozen: int) -> Cut:
        return Cut(n_frozen, self.embedding_size, True, self.window_flops(), 0.0, rest_convolves=False)

    def variables(self) -> dict[str, tuple[int, ...]]:
        """None: they are in the graph, if there are any."""
        return {}

    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        """Nothing: the graph has its weights."""

    def split(self, network: Any) -> tuple[Any, Any | None]:
        return network, None

    def digest(self, network: Any) -> str:
        return self.graph_sha256 or ""

    def n_frozen(self, network: Any) -> int:
        return 1


@dataclass(frozen=True)
class Wanted:
    """What the settings say of a model in a file."""

    name: str  # of the backbone
    title: str
    rate_hz: int | None
    window_s: float | None  # None: as the file says
    flops: float | None = None  # of a window
    starts_heads: bool = False  # as `Published.starts_heads`


def facts_of(path: Path, wanted: Wanted, n_samples: int | None) -> dict[str, Any]:
    """What every `FileBackbone` is made with, beside its graph and its embedding.

    Args:
        n_samples: that the graph takes; None: any.

    Raises:
        SettingsError: rate or window are missing, or do not fit.
        CheckpointError, RetryableError: the files cannot be read.
    """
    n_samples = _window(path, wanted, n_samples)
    assert wanted.rate_hz is not None
    window_s = n_samples / wanted.rate_hz
    return {
        "name": wanted.name, "title": wanted.title, "path": path, "sha256": checkpoint_digest(path),
        "n_samples": n_samples, "flops": wanted.flops or _FLOPS_PER_S * window_s,
        "front_end": waveform("waveform", rate_hz=wanted.rate_hz, window_s=window_s, hop_s=window_s),
    }  # fmt: skip


def _window(path: Path, wanted: Wanted, known: int | None) -> int:
    """Samples of a window."""
    rate_hz, window_s = wanted.rate_hz, wanted.window_s
    if rate_hz is None:
        raise SettingsError(
            f"--model.checkpoint {shown(path)}: the file does not say for which sample rate it was trained. Give it, "
            "e.g. --model.sample-rate-hz 48000."
        )
    n_samples = known if window_s is None else round(window_s * rate_hz)
    if n_samples is None:
        raise SettingsError(
            f"{shown(path)}: takes a waveform of any length. Give the length of a window, e.g. --model.window-s 3."
        )
    if known not in (None, n_samples):
        raise SettingsError(
            f"--model.window-s {window_s:g}: {shown(path)} takes {known:,} samples, which are {known / rate_hz:g} s "
            f"at {rate_hz:,} Hz. Leave the setting out, or mend --model.sample-rate-hz."
        )
    if not _SHORTEST_WINDOW_S <= n_samples / rate_hz <= _LONGEST_WINDOW_S:
        raise SettingsError(
            f"--model.sample-rate-hz {rate_hz}: a window of {n_samples:,} samples would be {n_samples / rate_hz:g} s "
            f"long; expected are {_SHORTEST_WINDOW_S:g} to {_LONGEST_WINDOW_S:g} s. Likely cause: another sample rate."
        )
    return n_samples
