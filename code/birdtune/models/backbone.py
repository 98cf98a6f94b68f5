"""What a backbone is: sound in, embeddings out. Nothing outside `models/` knows which one it is.

    waveform ─▶ front end ─▶ windows [N, ...] ─▶ network ─▶ embeddings [N, K] float32

A backbone made of a table of layers (`layers.py`) is trained or frozen at any of them; one that is a file
(`file_backbone.py`) brings its own graph. Another backbone is a file beside these and a name in `registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import SettingsError, shown
from birdtune.models.known import UNKNOWN, Origin

Arrays = dict[str, npt.NDArray[np.float32]]

ALL_BUT_HEAD = "all-but-head"
_FROZEN_BATCH = 128
_MOST_ACTIVATION_BYTES = 1 << 30


@dataclass(frozen=True)
class Cut:
    """A backbone in two parts: the frozen beginning, and the rest."""

    n_frozen: int  # layers with weights
    numbers: int  # that leave the beginning for one window
    is_whole: bool  # whether nothing is left: the numbers are the embedding
    frozen_flops: float  # operations of one window forward
    rest_flops: float
    rest_convolves: bool

    def row_bytes(self, precision: str) -> int:
        """Bytes of what leaves the beginning for one window, in a keras dtype policy; the embedding is float32."""
        return self.numbers * (4 if self.is_whole or precision == "float32" else 2)


@dataclass(frozen=True)
class Published:
    """The classifier that was published with a backbone: one layer of sigmoids on its embedding."""

    variables: tuple[str, str]  # kernel and bias, as a checkpoint names them
    n_classes: int
    read_classes: Callable[[Path], tuple[str, ...]]  # checkpoint → names of the classes
    starts_heads: bool = False  # whether heads begin from it unless told otherwise: where that was measured to help


@dataclass(frozen=True, kw_only=True)
class Backbone(ABC):
    """What everybody may ask of a backbone. Methods that take or give a network load keras."""

    name: str  # as `model.backbone` names it
    title: str  # as people name it
    front_end: FrontEnd
    origin: Origin = UNKNOWN  # of its published weights
    activations: tuple[str, ...] = ("relu",)  # what may follow the last layer; first: as published
    # Share of the plain matrix-product rate that a whole training step reaches, and how much faster it is in
    # bfloat16; measured on two cores of an EPYC with AVX512-BF16. Other machines differ by a factor of two.
    step_efficiency: float = 0.3
    bfloat16_gain: float = 1.0
    published: Published | None = None
    has_tensorflow_1: bool = False  # whether `tf1` knows its graph

    # ---- sound ----

    @property
    def sample_rate_hz(self) -> int:
        """Of the waveform that it takes."""
        return self.front_end.rate_hz

    @property
    def window_s(self) -> float:
        """Seconds of a window."""
        return self.front_end.window_s

    @property
    def hop_s(self) -> float:
        """Seconds from one window to the next, if not told otherwise."""
        return self.front_end.hop_s

    def features(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[Any]]:
        """What is worth keeping of a waveform given in blocks [n] at `sample_rate_hz`: rows [n, ...]."""
        return self.front_end.rows_of(blocks)

    def limited(self, limit_hz: float | None) -> Self:
        """The same backbone, which is given no frequencies above `limit_hz`."""
        return replace(self, front_end=replace(self.front_end, limit_hz=limit_hz))

    # ---- the network ----

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Numbers in an embedding."""

    @property
    @abstractmethod
    def trainable(self) -> bool:
        """Whether its weights can be trained."""

    @property
    @abstractmethod
    def layer_names(self) -> tuple[str, ...]:
        """Its layers with weights, in their order, as the network names them; none where the weights are not ours."""

    @abstractmethod
    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        """The network: a keras.Model, windows [N, window_rows, ...] float32 → embeddings [N, K] float32.

        Args:
            embedding_activation: what follows the last layer: one of `activations`.
            precision: a keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
            seed: of the initial weights; the same seed gives the same weights. None = zeros, for weights
                that are loaded next.

        Raises:
            SettingsError: an unknown activation.
        """

    @abstractmethod
    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        """Put a checkpoint's weights into the network; other variables in it (a head's) are passed over.

        Raises:
            CheckpointError: naming every missing, misshapen and non-finite variable; nothing is loaded then.
        """

    @abstractmethod
    def split(self, network: Any) -> tuple[Any, Any | None]:
        """The frozen beginning of the network, and the rest, which share its layers.

        Args:
            network: as `freeze` left it, with a frozen layer at least.

        Returns:
            windows [N, ...] → activations [N, ...], and activations → embeddings (None: they are the embeddings).
        """

    @property
    def graph_sha256(self) -> str | None:
        """Of the files of a finished graph; None where the weights are among those of the classifier."""
        return None

    def resources(self, network: Any) -> list[Any]:
        """What a module must hold that is saved with this network's graph, beside its variables."""
        return []

    def verify(self) -> None:  # noqa: B027 - what comes with birdtune is known to work
        """Try it on made sound, where that is not known to work. Raises CheckpointError."""

    @abstractmethod
    def digest(self, network: Any) -> str:
        """SHA-256 that changes with anything that the frozen beginning of the network computes."""

    # ---- freezing ----

    @property
    @abstractmethod
    def freeze_points(self) -> tuple[str, ...]:
        """What `model.freeze` may be."""

    @abstractmethod
    def frozen_layers(self, point: str) -> int:
        """How many layers, from the first on, are frozen at a freeze point.

        Raises:
            SettingsError: an unknown point.
        """

    @abstractmethod
    def cut(self, n_frozen: int) -> Cut:
        """The backbone cut behind its first layers, of which there is one at least."""

    def freezes_all(self, point: str) -> bool:
        """Whether nothing is left to train at a freeze point."""
        return self.frozen_layers(point) == self.frozen_layers(ALL_BUT_HEAD)

    def freeze(self, network: Any, point: str) -> None:
        """Freeze the network up to a point; what comes after it is free.

        Raises:
            SettingsError: an unknown point.
        """
        frozen = self.frozen_layers(point)
        for position, name in enumerate(self.layer_names):
            network.get_layer(name).trainable = position >= frozen

    @abstractmethod
    def n_frozen(self, network: Any) -> int:
        """How many layers `freeze` has frozen."""

    def next_freeze_point(self, point: str) -> str | None:
        """What to freeze where training what `point` leaves is too much: half of it, then all; None: all is frozen."""
        if self.freezes_all(point):
            return None
        layers = self.layer_names
        middle = "conv" if "conv" in self.freeze_points else layers[len(layers) // 2]
        return middle if self.frozen_layers(point) < self.frozen_layers(middle) else ALL_BUT_HEAD

    # ---- weights and costs ----

    @abstractmethod
    def variables(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the variables that a checkpoint of this backbone holds."""

    @abstractmethod
    def weight_count(self) -> int:
        """Numbers in its weights."""

    @abstractmethod
    def window_flops(self) -> float:
        """Floating-point operations of one window forward, a multiply-add counted as two."""

    @abstractmethod
    def window_activations(self) -> int:
        """Numbers that leave the layers for one window."""


    def frozen_batch(self) -> int:
        """Windows that frozen layers are given at a time: more are no faster, or would take too much memory."""
        return max(1, min(_FROZEN_BATCH, _MOST_ACTIVATION_BYTES // (4 * max(1, self.window_activations()))))


def choose(value: str, choices: Iterable[str], setting: str) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        SettingsError: naming the setting, the value and the choices.
    """
    known = tuple(choices)
    if value not in known:
        raise SettingsError(f"{setting}: {shown(value)} is not known. Choose one of {', '.join(known)}.")
