"""Embeddings in place of sound: which backbone made them, and a backbone that passes them on.

    Backbone, its weights ─▶ digest ─▶ SHA-256, the same for a checkpoint and for a model exported with it frozen
    files of embeddings ─▶ backbone_of_data ─▶ EmbeddingsBackbone: rows [N, 1, K] ─▶ embeddings [N, K]

So all that trains a head on a frozen backbone trains one on embeddings from files.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.data import embedding_input
from birdtune.errors import InputError, SettingsError, shown
from birdtune.models.backbone import Backbone
from birdtune.models.file_backbone import FrozenBackbone
from birdtune.models.known import KNOWN, UNKNOWN
from birdtune.runtime.files import value_sha256
from birdtune.settings import AugmentSettings

NAME = "embeddings"


def digest(
    backbone: Backbone, variables: Mapping[str, npt.NDArray[Any]] | None = None, activation: str = ""
) -> str:
    """SHA-256 that changes with anything that a backbone computes of sound.

    Args:
        variables: its weights, as `registry.read_weights` gives them; others in it do not count. None: it has
            none that can be trained.
        activation: `model.embedding-activation`.
    """
    own = {name: (variables or {})[name] for name in backbone.variables()}
    if backbone.graph_sha256 is not None:
        return digest_of_graph(backbone.graph_sha256, backbone.front_end, own)
    return value_sha256([backbone.name, backbone.front_end.digest, activation, _sha256(own)])


def digest_of_graph(graph_sha256: str, front_end: FrontEnd, weights: Mapping[str, npt.NDArray[Any]]) -> str:
    """As `digest`, of a graph and the weights of it that can be trained."""
    return value_sha256([graph_sha256, front_end.digest, _sha256(weights)])


def _sha256(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + b"\n")
        found.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return found.hexdigest()


# ---- a backbone without sound ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbeddingRows(FrontEnd):
    """Embeddings as rows, each a window: there is no sound to make them of."""

    kind: ClassVar[str] = NAME
    row_dtype: ClassVar[np.dtype[Any]] = np.dtype("<f4")
    has_sound: ClassVar[bool] = False

    size: int  # numbers in an embedding
    hop_samples: int  # of the sound that there was, from one row to the next
    made_by: str  # digest of what made them; "" where nobody knows

    @property
    def row_hop(self) -> int:
        return self.hop_samples

    @property
    def row_samples(self) -> int:
        return self.hop_samples

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def low_hz(self) -> float:
        return 0.0

    @property
    def top_hz(self) -> float:
        return self.rate_hz / 2

    def make_rows(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """None: InputError."""
        raise InputError("the model takes embeddings, and no sound. Give a model that was exported with its backbone.")

    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As they are."""
        return np.ascontiguousarray(rows, self.row_dtype)

    def sounding(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """All of them: nobody knows which were silent."""
        return np.ones(windows.shape[:2], np.bool_)

    def is_still(self, rows: npt.NDArray[Any]) -> bool:
        """Never known."""
        return False


@dataclass(frozen=True, kw_only=True)
class EmbeddingsBackbone(FrozenBackbone):
    """What passes embeddings on as they are."""

    why_frozen: ClassVar[str] = "the data are embeddings, and only a head is trained on them"
    front_end: EmbeddingRows

    @property
    def embedding_size(self) -> int:
        return self.front_end.size

    @property
    def graph_sha256(self) -> str | None:
        """Of what made the embeddings, so that no head goes on with those of another backbone."""
        return self.front_end.made_by or None

    def weight_count(self) -> int:
        return 0

    def window_flops(self) -> float:
        return 0.0

    def window_activations(self) -> int:
        return self.embedding_size

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        """Rows [N, 1, K] → [N, K]."""
        import keras

        del embedding_activation, precision, seed
        windows = keras.Input(self.front_end.window_shape, dtype="float32", name="windows")
        rows = keras.layers.Reshape((self.embedding_size,), name="rows", dtype="float32")(windows)
        return keras.Model(windows, rows, name=self.name)

    def n_frozen(self, network: Any) -> int:
        """None: there is nothing that could be computed once and kept."""
        return 0


def backbone_of_data(path: Path) -> EmbeddingsBackbone:
    """What passes on the embeddings in some files.

    Raises: as `embedding_input.header`.
    """
    made = embedding_input.made_by(path)
    rows = EmbeddingRows(
        name=NAME, rate_hz=made.rate_hz, window_rows=1, hop_rows=1, size=embedding_input.header(path).size,
        hop_samples=max(1, round(made.hop_s * made.rate_hz)), made_by=made.digest,
    )  # fmt: skip
    title = f"embeddings of {shown(made.backbone)}" if made.backbone else "embeddings of an unknown backbone"
    return EmbeddingsBackbone(name=NAME, title=title, front_end=rows, origin=KNOWN.get(made.backbone, UNKNOWN))


def in_place_of(backbone: Backbone) -> EmbeddingsBackbone:
    """What passes on the embeddings of a backbone, which makes them elsewhere."""
    rows = EmbeddingRows(
        name=NAME, rate_hz=backbone.sample_rate_hz, window_rows=1, hop_rows=1, size=backbone.embedding_size,
        hop_samples=max(1, round(backbone.hop_s * backbone.sample_rate_hz)), made_by=backbone.graph_sha256 or "",
    )  # fmt: skip
    return EmbeddingsBackbone(name=NAME, title=f"embeddings of {backbone.title}", front_end=rows)


def refuse_settings(config: Config) -> None:
    """Refuse settings that work on sound, where the data are embeddings.

    Raises:
        SettingsError: naming them.
    """
    asked = {
        "--augment.*": config.augment != AugmentSettings(),
        "--audio.band-limit": config.audio.band_limit is not None,
        "--train.jitter-s": config.train.jitter_s > 0,
        "--labels.table": config.labels.table is not None,
        "--background": config.background is not None,
        "--gate.champion": config.gate.champion is not None,
    }
    if on := [name for name, value in asked.items() if value]:
        raise SettingsError(
            f"{' and '.join(on)}: works on sound, and {shown(config.data_folder)} holds embeddings. Leave it out, or "
            "give the recordings."
        )
