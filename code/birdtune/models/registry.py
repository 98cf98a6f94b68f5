"""The backbones that there are, and where their first weights come from.

    Config ─▶ backbone_of ─▶ Backbone;  Config ─▶ checkpoint_path ─▶ read_weights ─▶ arrays by name

Another backbone is a file beside this one and a name in this table.
"""

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
from birdtune.errors import CheckpointError, SettingsError, naming, shown
from birdtune.models import embedded, files, vggish, yamnet
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Backbone, choose
from birdtune.models.file_backbone import FileBackbone
from birdtune.models.graph_safety import GRAPH
from birdtune.models.layer_backbone import LayerBackbone

BACKBONES: Mapping[str, LayerBackbone] = {
    backbone.name: backbone for backbone in (vggish.BACKBONE, vggish.SMALL, yamnet.BACKBONE)
}


def named(name: str) -> LayerBackbone:
    """The backbone of this name that needs no file. Raises SettingsError where there is none."""
    choose(name, BACKBONES, "model.backbone")
    return BACKBONES[name]


def backbone_of(config: Config) -> Backbone:
    """The backbone that the settings ask for, with the band that they leave it.

    Raises:
        SettingsError: there is none of this name, or it cannot do what other settings ask for.
        CheckpointError: a model that cannot be used, or none was given.
        InputError: the data are embeddings, and damaged.
    """
    if is_embeddings(config.data_folder):
        embedded.refuse_settings(config)
        found: Backbone = embedded.backbone_of_data(config.data_folder)
    else:
        found = sound_backbone(config)
    for name, hop_s in (("train", config.train.hop_s or 0.0), ("evaluate", config.evaluate.hop_s or 0.0)):
        if hop_s > found.window_s:
            raise SettingsError(
                f"--{name}.hop-s {hop_s:g}: a window of {found.title} has {found.window_s:g} s, and what is between "
                "two windows would never be used. Give at most that."
            )
    return found


def sound_backbone(config: Config) -> Backbone:
    """As `backbone_of`, whatever the data are. Raises SettingsError, CheckpointError."""
    name = config.model.backbone
    if name not in files.NAMES:
        return named(name).limited(config.audio.band_limit)
    found = opened(_model_file(config), config, name)
    _require_no_bands(found, config)
    return found


def opened(path: Path, config: Config, name: str) -> Backbone:
    """The model in a file or folder as the backbone of this name. Raises as `files.open_file`."""
    model = config.model
    return files.open_file(
        path, name, rate_hz=model.sample_rate_hz, window_s=model.window_s, output=model.embedding_output
    )


def _model_file(config: Config) -> Path:
    """Where the graph of a backbone lies that is a file: as given, in the input folder, or installed."""
    name, given = config.model.backbone, config.model.checkpoint
    if given not in (None, "none"):
        return Path(str(given))
    known = files.KNOWN.get(name)
    if known is None or given == "none":
        raise CheckpointError(
            f"--model.backbone {name}: there is no model. Give a TensorFlow Lite, Keras or ONNX file or a SavedModel's "
            "folder with --model.checkpoint PATH."
        )
    found = _of_known(config, known) or files.installed(name)
    if found is None:
        raise CheckpointError(
            f"--model.backbone {name}: there is no {known.title} in {shown(config.input)}. {known.where_to_get}"
        )
    return found


def _in_input(config: Config) -> dict[str, Path]:
    """The backbones whose weights lie in the input folder, by name. Raises SettingsError."""
    places = {backbone.name: _first_there(config, backbone) for backbone in (vggish.BACKBONE, yamnet.BACKBONE)}
    places |= {known.name: _of_known(config, known) for known in files.KNOWN.values()}
    return {name: place for name, place in places.items() if place is not None}


def _of_known(config: Config, known: files.Known) -> Path | None:
    """Where a published model lies in the input folder. Raises SettingsError where there are several."""
    paths = [path for pattern in known.patterns for path in sorted(config.input.glob(pattern))]
    places = [path.parent if path.name == GRAPH else path for path in paths]
    found = [place for place in places if files.kind_of(place) == known.name]
    if len(found) > 1:
        listed = ", ".join(shown(str(place.relative_to(config.input))) for place in found)
        raise SettingsError(
            f"{shown(config.input)}: holds {known.title} {len(found)} times: {listed}. Name one with "
            f"--model.checkpoint {shown(found[0])}."
        )
    return found[0] if found else None


def _first_there(config: Config, backbone: LayerBackbone) -> Path | None:
    # Of a checkpoint in several files only the common beginning of their names is given.
    places = [config.input / name for name in backbone.checkpoint_names]
    return next((path for path in places if any(os.path.lexists(part) for part in (path, f"{path}.index"))), None)


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
    """The settings with what follows from the weights themselves where nobody set it, and sentences about that.

    Raises:
        SettingsError: weights of several backbones lie in the input folder.
        CheckpointError: a model is damaged.
    """
    given, said = config.given(), []
    if "model.backbone" not in given:
        name, why = _by_weights(config)
        if name is not None:
            said.append(f"{why}: --model.backbone {name}")
            config = config.with_model(backbone=name)
    known = files.KNOWN.get(config.model.backbone)
    is_free = "train.hop-s" not in given and not config.model.context
    if known is not None and is_free and not is_embeddings(config.data_folder):
        # Half a window: what lies across the border of two windows is in the middle of another.
        config = config.with_train_default(hop_s=known.n_samples / known.rate_hz / 2)
    if is_embeddings(config.data_folder) and "model.freeze" not in given:
        said.append(f"{shown(config.data_folder)} holds embeddings, on which a head is trained")
        config = config.with_model(freeze=ALL_BUT_HEAD)
    elif "model.freeze" not in given and config.model.freeze_point != "none":
        said.append(
            f"--model.freeze {config.model.freeze_point}: a head is trained on the backbone as it is; what training "
            "more of it brought stands in docs/backbones.md"
        )
    return config, said


def _by_weights(config: Config) -> tuple[str | None, str]:
    """The backbone that the weights are of, where they show it, and where they lie."""
    if (checkpoint := config.model.checkpoint) is not None:
        return _by_checkpoint(config, Path(checkpoint))
    found = _in_input(config)
    if len(found) > 1:
        listed = ", ".join(f"{name} ({shown(path.name)})" for name, path in found.items())
        raise SettingsError(
            f"{shown(config.input)}: weights of several backbones lie in the input folder: {listed}. Choose one with "
            "--model.backbone NAME."
        )
    name = next((name for name in found if name != Config().model.backbone), None)
    return (None, "") if name is None else (name, f"{shown(found[name].name)} lies in the input folder")


def _by_checkpoint(config: Config, place: Path) -> tuple[str | None, str]:
    """As `_by_weights`, of a file or folder that is named."""
    with naming("--model.checkpoint"):
        if yamnet.BACKBONE.recognises(place):
            return yamnet.BACKBONE.name, f"{shown(place)} has weights of {yamnet.BACKBONE.title}"
        return file_backbone(config, place), f"{shown(place)} is a model that takes a waveform"


def file_backbone(config: Config, place: Path) -> str | None:
    """Name of the backbone that a file or folder is the graph of: as set, or as it shows; None: it is no graph.

    Raises:
        CheckpointError: a file is damaged, or no graph in spite of its name.
        OSError: it cannot be read.
    """
    if not files.is_model(place):
        if not any(backbone.recognises(place) for backbone in BACKBONES.values()):
            files.require_content(place)
        return None
    if config.model.backbone in files.NAMES:
        return config.model.backbone
    return None if place.is_file() and yamnet.BACKBONE.recognises(place) else files.kind_of(place)


def front_end(config: Config) -> FrontEnd:
    """What sound is made into by these settings."""
    return backbone_of(config).front_end


def is_known(name: str) -> bool:
    """Whether a model may have been exported with a backbone of this name."""
    return name in BACKBONES or name in (*files.NAMES, embedded.NAME)


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
    if config.model.backbone in files.NAMES:
        return _model_file(config)
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
        "Put them into the input folder, or name another place with --model.checkpoint PATH; or take a backbone that "
        "knows birds: --model.backbone birdnet or perch (docs/backbones.md); or train from scratch with "
        "--model.checkpoint none (needs far more data)."
    )


def require_tensorflow_1(backbone: Backbone) -> None:
    """Refuse a backbone of which there is no graph for TensorFlow 1.

    Raises:
        SettingsError: naming those of which there is one.
    """
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
    if isinstance(backbone, FileBackbone):
        return backbone.arrays()
    if not isinstance(backbone, LayerBackbone):
        return {}
    other = recognised(path)
    if other is not None and not backbone.recognises(path):
        raise CheckpointError(
            f"{shown(path)}: looks like weights of {other.title}, and the backbone is {backbone.name}. Give "
            f"--model.backbone {other.name}, or weights of {backbone.title} with --model.checkpoint."
        )
    return backbone.read(path)


def recognised(path: Path) -> Backbone | None:
    """The backbone that a file has the weights of, if it shows that without settings.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        found = next((backbone for backbone in BACKBONES.values() if backbone.recognises(path)), None)
        name = files.kind_of(path) if found is None else None
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault
    if name in files.KNOWN:
        return files.open_file(path, str(name), rate_hz=None, window_s=None, output=None)
    return found
