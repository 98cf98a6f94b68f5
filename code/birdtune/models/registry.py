"""The trunks that there are, and where their first weights come from.

    model.backbone ─▶ TRUNKS ─▶ Trunk;  Config ─▶ checkpoint_path ─▶ read_weights ─▶ arrays by name

Another trunk is a file beside this one and a name in this table.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from birdtune.audio.logmel import FrontEnd
from birdtune.config import Config
from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models import vggish, yamnet
from birdtune.models.backbone import Arrays, Trunk

TRUNKS: Mapping[str, Trunk] = {
    trunk.name: trunk for trunk in (vggish.TRUNK, vggish.SMALL, yamnet.TRUNK)
}


def front_end(config: Config) -> FrontEnd:
    """What sound is made into by these settings."""
    return replace(TRUNKS[config.model.backbone].front_end, limit_hz=config.sound.band_limit)


def checkpoint_path(config: Config) -> Path | None:
    """Where the trunk's first weights come from; None: training from scratch was asked for.

    Raises:
        CheckpointError: there is nothing where it is said or expected to be.
    """
    trunk, given = TRUNKS[config.model.backbone], config.model.checkpoint
    if given == "none":
        return None
    places = [config.input / name for name in trunk.checkpoint_names] if given is None else [Path(given)]
    for path in places:
        # Of a checkpoint in several files only the common beginning of their names is given.
        if any(os.path.lexists(part) for part in (path, f"{path}.index")):
            return path
    raise CheckpointError(
        f"{' or '.join(shown(path) for path in places)}: there is no {trunk.title} checkpoint. {trunk.where_to_get} "
        "Put them into the input folder, or name another place with --model.checkpoint PATH; or train from scratch "
        "with --model.checkpoint none (needs far more data)."
    )


def require_tensorflow_1(backbone: str, head: str) -> None:
    """Refuse a trunk or a head of which there is no graph for TensorFlow 1.

    Raises:
        SettingsError: naming those of which there is one.
    """
    if head == "attention":
        raise SettingsError(
            "--format slim: TensorFlow 1 graphs score patches, and model.head attention scores recordings. What reads "
            "TensorFlow 1 alone needs --model.head linear or mlp."
        )
    if not TRUNKS[backbone].has_tensorflow_1:
        known = ", ".join(name for name, trunk in TRUNKS.items() if trunk.has_tensorflow_1)
        raise SettingsError(
            f"--format slim: TensorFlow 1 graphs are made of the trunks {known}, and model.backbone is {backbone}. "
            "What reads TensorFlow 1 alone needs one of these; the SavedModel of `export` has the same signatures."
        )


def read_weights(trunk: Trunk, path: Path) -> Arrays:
    """The variables in a checkpoint, by name; what is there beside the trunk's is left in.

    Raises:
        CheckpointError: absent, damaged, or of another kind than this trunk's checkpoints.
        PassingError: the storage failed.
    """
    other = recognised(path)
    if other is not None and not trunk.recognises(path):
        raise CheckpointError(
            f"{shown(path)}: looks like weights of {other.title}, and the trunk is {trunk.name}. Give "
            f"--model.backbone {other.name}, or weights of {trunk.title} with --model.checkpoint."
        )
    return trunk.read(path)


def recognised(path: Path) -> Trunk | None:
    """The first trunk whose checkpoints begin as this file does.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return next((trunk for trunk in TRUNKS.values() if trunk.recognises(path)), None)
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault
