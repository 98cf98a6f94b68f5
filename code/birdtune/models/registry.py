"""The backbones that there are, and where their first weights come from.

    Config ─▶ backbone_of ─▶ Backbone;  Config ─▶ checkpoint_path ─▶ read_weights ─▶ arrays by name

Another backbone is a file beside this one and a name in this table.
"""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.logmel import LogMel
from birdtune.audio.waveform import Waveform
from birdtune.config import Config
from birdtune.data.embedding_input import is_embeddings
from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models import custom, embedded, vggish, yamnet
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Backbone, choose
from birdtune.models.custom import SavedModelBackbone
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.runtime.fingerprints import checkpoint_files

BACKBONES: Mapping[str, LayerBackbone] = {
    backbone.name: backbone for backbone in (vggish.BACKBONE, vggish.SMALL, yamnet.BACKBONE)
}


def named(name: str) -> LayerBackbone:
    """The backbone of this name that comes with birdtune. Raises SettingsError where there is none."""
    choose(name, BACKBONES, "model.backbone")
    return BACKBONES[name]


def backbone_of(config: Config) -> Backbone:
    """The backbone that the settings ask for, with the band that they leave it.

    Raises:
        SettingsError: there is none of this name, or it cannot do what other settings ask for.
        CheckpointError: a SavedModel that cannot be used, or none was given.
        InputError: the data are embeddings, and damaged.
    """
    if is_embeddings(config.data_folder):
        embedded.refuse_settings(config)
        found: Backbone = embedded.backbone_of_data(config.data_folder)
    else:
        found = sound_backbone(config)
    if (config.train.hop_s or 0) > found.window_s:
        raise SettingsError(
            f"--train.hop-s {config.train.hop_s:g}: a window of {found.title} has {found.window_s:g} s, and what is "
            "between two windows would never be heard. Give at most that."
        )
    return found


def sound_backbone(config: Config) -> Backbone:
    """As `backbone_of`, whatever the data are. Raises SettingsError, CheckpointError."""
    if config.model.backbone == custom.NAME:
        found: Backbone = opened(_saved_model_folder(config), config)
        _require_no_bands(found, config)
    else:
        found = named(config.model.backbone).limited(config.audio.band_limit)
    return found


def opened(folder: Path, config: Config) -> SavedModelBackbone:
    """The SavedModel in a folder as a backbone, read once as long as its files stay as they are.

    Raises: as `custom.open_backbone`.
    """
    stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint_files(folder))
    return _opened(folder, stamp, config.model.sample_rate_hz, config.model.window_s)


@functools.lru_cache(maxsize=4)
def _opened(folder: Path, stamp: object, rate_hz: int | None, window_s: float | None) -> SavedModelBackbone:
    del stamp  # other files are read anew
    return custom.open_backbone(folder, rate_hz=rate_hz, window_s=window_s)


def _saved_model_folder(config: Config) -> Path:
    if config.model.checkpoint in (None, "none"):
        raise CheckpointError(
            "--model.backbone custom: there is no model. Give the folder of a SavedModel with --model.checkpoint PATH."
        )
    return Path(str(config.model.checkpoint))


def _require_no_bands(backbone: Backbone, config: Config) -> None:
    """Refuse settings about mel bands for a backbone that takes a waveform. Raises SettingsError, naming them."""
    asked = {
        "--audio.band-limit": config.audio.band_limit,
        "--augment.pitch-shift": config.augment.pitch_shift,
        "--augment.band-mask": config.augment.band_mask,
    }
    if on := [name for name, value in asked.items() if value]:
        raise SettingsError(
            f"{' and '.join(on)}: works on mel bands, and {backbone.title} takes a waveform. Leave it out; gain, "
            "noise, background, mixup, time roll and time mask work on waveforms, too."
        )


def settled(config: Config) -> tuple[Config, list[str]]:
    """The settings with what follows from the checkpoint itself where nobody said it, and sentences about that.

    A folder with a SavedModel is the backbone `custom`, and what cannot be trained is frozen.
    """
    given, said = config.given(), []
    folder = config.model.checkpoint
    if "model.backbone" not in given and folder is not None and custom.is_saved_model(Path(folder)):
        said.append(f"{shown(folder)} is a SavedModel: --model.backbone {custom.NAME}")
        config = _with_model(config, backbone=custom.NAME)
    if is_embeddings(config.data_folder) and "model.freeze" not in given:
        said.append(f"{shown(config.data_folder)} holds embeddings, on which a head is trained")
        config = _with_model(config, freeze=ALL_BUT_HEAD)
    elif config.model.backbone == custom.NAME and "model.freeze" not in given:
        said.append(f"a SavedModel is not trained: --model.freeze {ALL_BUT_HEAD}")
        config = _with_model(config, freeze=ALL_BUT_HEAD)
    return config, said


def _with_model(config: Config, **settings: str) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=settings)})


def front_end(config: Config) -> FrontEnd:
    """What sound is made into by these settings."""
    return backbone_of(config).front_end


def is_known(name: str) -> bool:
    """Whether a model may have been exported with a backbone of this name."""
    return name in BACKBONES or name in (custom.NAME, embedded.NAME)


def layer_names(name: str) -> tuple[str, ...]:
    """The layers whose weights an exported model of this backbone holds, as `Backbone.layer_names`."""
    return BACKBONES[name].layer_names if name in BACKBONES else ()


_KINDS: Mapping[str, type[FrontEnd]] = {kind.kind: kind for kind in (LogMel, Waveform, embedded.EmbeddingRows)}
_LONGEST_WINDOW_S = 60.0


def read_front_end(row: Mapping[str, Any]) -> FrontEnd | None:
    """The front end that model.json describes with `FrontEnd.row` and its digest; None: not one that makes sense.

    Raises:
        LookupError, TypeError, ValueError: it is not as it was written.
    """
    numbers = dict(row)
    digest, kind = numbers.pop("digest"), _KINDS[numbers.pop("kind")]
    found: FrontEnd = TypeAdapter(kind).validate_python(numbers)
    sizes = (found.window_rows, found.hop_rows, found.row_hop, found.row_samples, *found.row_shape)
    limit_hz = found.limit_hz is None or 0 < found.limit_hz < math.inf
    makes_sense = found.rate_hz > 0 and all(size > 0 for size in sizes) and limit_hz
    return found if makes_sense and found.window_s <= _LONGEST_WINDOW_S and found.digest == digest else None


def checkpoint_path(config: Config) -> Path | None:
    """Where the backbone's first weights come from; None: training from scratch was asked for.

    Where the data are embeddings: they themselves, as all that is there of their backbone.

    Raises:
        CheckpointError: there is nothing where it is said or expected to be.
    """
    return config.data_folder if is_embeddings(config.data_folder) else sound_checkpoint(config)


def sound_checkpoint(config: Config) -> Path | None:
    """As `checkpoint_path`, whatever the data are. Raises CheckpointError."""
    given = config.model.checkpoint
    if config.model.backbone == custom.NAME:
        return _saved_model_folder(config)
    backbone = named(config.model.backbone)
    if given == "none":
        return None
    places = [config.input / name for name in backbone.checkpoint_names] if given is None else [Path(given)]
    for path in places:
        # Of a checkpoint in several files only the common beginning of their names is given.
        if any(os.path.lexists(part) for part in (path, f"{path}.index")):
            return path
    raise CheckpointError(
        f"{' or '.join(shown(path) for path in places)}: there is no {backbone.title} checkpoint. "
        f"{backbone.where_to_get} "
        "Put them into the input folder, or name another place with --model.checkpoint PATH; or train from scratch "
        "with --model.checkpoint none (needs far more data)."
    )


def require_tensorflow_1(backbone: Backbone, head: str) -> None:
    """Refuse a backbone or a head of which there is no graph for TensorFlow 1.

    Raises:
        SettingsError: naming those of which there is one.
    """
    if head == "attention":
        raise SettingsError(
            "--format slim: TensorFlow 1 graphs score windows, and model.head attention scores recordings. What reads "
            "TensorFlow 1 alone needs --model.head linear or mlp."
        )
    if not backbone.has_tensorflow_1:
        known = ", ".join(name for name, other in BACKBONES.items() if other.has_tensorflow_1)
        raise SettingsError(
            f"--format slim: TensorFlow 1 graphs are made of the backbones {known}, and model.backbone is "
            f"{backbone.name}. "
            "What reads TensorFlow 1 alone needs one of these; the SavedModel of `export` has the same signatures."
        )


def read_weights(backbone: Backbone, path: Path) -> Arrays:
    """The variables in a checkpoint, by name; what is there beside the backbone's is left in.

    Raises:
        CheckpointError: absent, damaged, or of another kind than this backbone's checkpoints.
        RetryableError: the storage failed.
    """
    if not isinstance(backbone, LayerBackbone):
        return {}
    other = recognised(path)
    if other is not None and not backbone.recognises(path):
        raise CheckpointError(
            f"{shown(path)}: looks like weights of {other.title}, and the backbone is {backbone.name}. Give "
            f"--model.backbone {other.name}, or weights of {backbone.title} with --model.checkpoint."
        )
    return backbone.read(path)


def recognised(path: Path) -> LayerBackbone | None:
    """The first backbone whose checkpoints begin as this file does.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return next((backbone for backbone in BACKBONES.values() if backbone.recognises(path)), None)
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault
