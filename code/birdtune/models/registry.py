"""The backbones that there are, and where their first weights come from.

    model.backbone ─▶ BACKBONES ─▶ Backbone;  Config ─▶ checkpoint_path ─▶ read_weights ─▶ arrays by name

Another backbone is a file beside this one and a name in this table.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from birdtune.audio.logmel import FrontEnd
from birdtune.config import Config
from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models import vggish, yamnet
from birdtune.models.backbone import Arrays, Backbone

BACKBONES: Mapping[str, Backbone] = {
    backbone.name: backbone for backbone in (vggish.BACKBONE, vggish.SMALL, yamnet.BACKBONE)
}


def front_end(config: Config) -> FrontEnd:
    """What sound is made into by these settings."""
    return replace(BACKBONES[config.model.backbone].front_end, limit_hz=config.audio.band_limit)


def checkpoint_path(config: Config) -> Path | None:
    """Where the backbone's first weights come from; None: training from scratch was asked for.

    Raises:
        CheckpointError: there is nothing where it is said or expected to be.
    """
    backbone, given = BACKBONES[config.model.backbone], config.model.checkpoint
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


def require_tensorflow_1(name: str, head: str) -> None:
    """Refuse a backbone or a head of which there is no graph for TensorFlow 1.

    Raises:
        SettingsError: naming those of which there is one.
    """
    if head == "attention":
        raise SettingsError(
            "--format slim: TensorFlow 1 graphs score patches, and model.head attention scores recordings. What reads "
            "TensorFlow 1 alone needs --model.head linear or mlp."
        )
    if not BACKBONES[name].has_tensorflow_1:
        known = ", ".join(other for other, backbone in BACKBONES.items() if backbone.has_tensorflow_1)
        raise SettingsError(
            f"--format slim: TensorFlow 1 graphs are made of the backbones {known}, and model.backbone is {name}. "
            "What reads TensorFlow 1 alone needs one of these; the SavedModel of `export` has the same signatures."
        )


def read_weights(backbone: Backbone, path: Path) -> Arrays:
    """The variables in a checkpoint, by name; what is there beside the backbone's is left in.

    Raises:
        CheckpointError: absent, damaged, or of another kind than this backbone's checkpoints.
        RetryableError: the storage failed.
    """
    other = recognised(path)
    if other is not None and not backbone.recognises(path):
        raise CheckpointError(
            f"{shown(path)}: looks like weights of {other.title}, and the backbone is {backbone.name}. Give "
            f"--model.backbone {other.name}, or weights of {backbone.title} with --model.checkpoint."
        )
    return backbone.read(path)


def recognised(path: Path) -> Backbone | None:
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
