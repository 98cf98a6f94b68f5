"""The classes that a backbone was published with, served beside those of the data.

    --model.keep-classes, classes of the data ─▶ keep ─▶ Kept: which of them match, and what is served
    columns of the published classifier ─▶ read_layer ─▶ Layer: embeddings [n, K] → logits [n, M]
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from birdtune.config import Config
from birdtune.errors import InputError, SettingsError, shown
from birdtune.evaluation.calibration import Calibration
from birdtune.models import registry
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Backbone, Published
from birdtune.models.embedded import EmbeddingsBackbone
from birdtune.models.labels_file import are_named
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.models.published_names import Names
from birdtune.runtime.parsing import decode_text, read_bounded
from birdtune.runtime.storage import read_error
from birdtune.runtime.text import count, some

ALL: Final = "all"
_SETTING = "--model.keep-classes"
_LARGEST_LIST_BYTES = 16 << 20
_MOST_NAMED = 5


@dataclass(frozen=True)
class Kept:
    """Which published classes a model serves beside its own.

    Attributes:
        backbone: its title.
        n_published: classes of its classifier.
        columns: [M] those that are served, in the classifier's order: kept, and no class of the data.
        labels: [M] their names.
        matched: class of the data → its column in the published classifier.
        label_of: the same → that column's label.
        several: class of the data that fits several labels → these labels; it counts as unmatched.
        unmatched: the other classes of the data.
    """

    backbone: str
    n_published: int
    columns: tuple[int, ...]
    labels: tuple[str, ...]
    matched: Mapping[str, int]
    label_of: Mapping[str, str]
    several: Mapping[str, tuple[str, ...]]
    unmatched: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.json and model.json; the labels are in published_labels.csv."""
        return {
            "backbone": self.backbone, "n_published": self.n_published, "n_kept": len(self.columns),
            "matched": dict(self.label_of), "unmatched": list(self.unmatched),
            "several": {name: list(labels) for name, labels in self.several.items()},
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """What is kept and what matches, for people."""
        yield (
            f"published classes: {self.backbone} has {self.n_published:,}; "
            f"{count(len(self.columns), 'class')} served beside those of the data"
        )
        n_classes = len(self.matched) + len(self.several) + len(self.unmatched)
        pairs = [f"{name} = {label}" for name, label in self.label_of.items()]
        if n_classes:
            listed = f": {some(pairs)}" if pairs else ""
            yield f"  {len(pairs):,} of {count(n_classes, 'class')} of the data {_are(pairs)} published{listed}"
        if self.unmatched:
            yield f"  no published class: {some(self.unmatched)}"
        for name, labels in self.several.items():
            yield f"  {shown(name)}: fits several published classes, and is matched with none: {some(labels)}"


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


@dataclass(frozen=True, eq=False)
class Layer:
    """Some columns of a published classifier."""

    kernel: npt.NDArray[np.float32]  # [K, M]
    bias: npt.NDArray[np.float32]  # [M]

    def logits(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embeddings [n, K] → [n, M]"""
        return np.asarray(embeddings @ self.kernel + self.bias, np.float32)


@dataclass(frozen=True, eq=False)
class Served:
    """What a model serves of the published classes."""

    labels: tuple[str, ...]  # [M]
    layer: Layer
    calibration: Calibration  # of sigmoids

    def windows(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embeddings of windows [n, K] → their scores [n, M]"""
        return self.calibration.windows(self.layer.logits(embeddings))


def keep(config: Config, classes: Sequence[str]) -> Kept | None:
    """Which published classes are kept, and which classes of the data are among them; None: none was asked for.

    Args:
        classes: of the data, or none, to see whether the setting can be followed at all.

    Raises:
        SettingsError: the backbone has no published classifier or is trained, or a name is not among its classes.
        InputError: the list or the file of labels cannot be read.
    """
    setting = config.model.keep_classes
    if setting is None:
        return None
    backbone, published = _published_of(config)
    labels = _labels(config, backbone, published)
    names = Names(labels)
    fits = {name: names.columns(name) for name in classes}
    matched = {name: columns[0] for name, columns in fits.items() if len(columns) == 1}
    wanted = range(len(labels)) if setting == ALL else _columns(_listed(setting, names), names, backbone)
    columns = tuple(column for column in wanted if column not in set(matched.values()))
    if not columns:
        raise SettingsError(
            f"{_SETTING} {shown(setting)}: each of these classes is a class of the data, which the head scores. "
            "Leave the setting out."
        )
    return Kept(
        backbone=backbone.title,
        n_published=len(labels),
        columns=columns,
        labels=tuple(labels[column] for column in columns),
        matched=matched,
        label_of={name: labels[column] for name, column in matched.items()},
        several={name: tuple(labels[each] for each in found) for name, found in fits.items() if len(found) > 1},
        unmatched=tuple(name for name, found in fits.items() if not found),
    )


def _published_of(config: Config) -> tuple[Backbone, Published]:
    """The backbone and the classifier that still fits it. Raises SettingsError."""
    backbone = registry.backbone_of(config)
    if isinstance(backbone, EmbeddingsBackbone):
        raise SettingsError(
            f"{_SETTING}: works on sound, and {shown(config.data_folder)} holds embeddings. Leave it out, or give the "
            "recordings."
        )
    if backbone.published is None:
        raise SettingsError(
            f"{_SETTING}: {backbone.title} comes without a classifier of its own. BirdNET, YAMNet and other TensorFlow "
            "Lite files that end in a layer of classes have one; leave the setting out, or give such a backbone."
        )
    if config.model.checkpoint == "none":
        raise SettingsError(f"{_SETTING}: with --model.checkpoint none there are no published weights. Leave one out.")
    if not backbone.freezes_all(config.model.freeze_point):
        raise SettingsError(
            f"{_SETTING}: with --model.freeze {config.model.freeze_point} the backbone is trained, and the classifier "
            f"that was published with it does not fit a changed backbone. Give --model.freeze {ALL_BUT_HEAD}, or leave "
            "the setting out."
        )
    return backbone, backbone.published


def _place(config: Config) -> Path:
    path = registry.sound_checkpoint(config)
    assert path is not None, "training from scratch was refused"
    return path


def _labels(config: Config, backbone: Backbone, published: Published) -> tuple[str, ...]:
    place = _place(config)
    labels = published.read_classes(place)
    if not are_named(labels):
        raise SettingsError(
            f"{_SETTING}: the names of the {published.n_classes:,} classes of {backbone.title} are not known. Put the "
            f"list that was published with it beside {shown(place)}."
        )
    return labels


# ---- what is asked for ---------------------------------------------------------------------------


def _listed(setting: str, names: Names) -> list[str]:
    """The names that the setting has: of a file, or itself."""
    if os.path.isfile(setting):  # noqa: PTH113 - names may be longer than a path can be, of which Path raises
        path = Path(setting)
        try:
            lines = decode_text(read_bounded(path, _LARGEST_LIST_BYTES, "a list of names"), path).splitlines()
        except OSError as fault:
            message = f"{_SETTING} {shown(path)}: cannot be read ({shown(fault.strerror)}). Check its rights."
            raise read_error(fault, path, message, InputError) from fault
        found = [line for line in lines if not line.lstrip().startswith("#")]
    elif setting.lower().endswith(".txt") or os.sep in setting:
        raise InputError(f"{_SETTING} {shown(setting)}: there is no such file. Expected names, or a text file of them.")
    else:  # a label may have a comma itself
        found = [setting] if names.columns(setting) else setting.split(",")
    listed = [name.strip() for name in found if name.strip()]
    if not listed:
        raise InputError(f"{_SETTING} {shown(setting)}: names no class. Give names, or {ALL}.")
    return listed


def _columns(listed: Sequence[str], names: Names, backbone: Backbone) -> list[int]:
    """The columns of names, ascending. Raises SettingsError, naming those that do not fit or fit several."""
    fits = {name: names.columns(name) for name in listed}
    unknown = [name for name, columns in fits.items() if not columns]
    several = [name for name, columns in fits.items() if len(columns) > 1]
    if unknown:
        described = ", ".join(f"{shown(name)}{names.nearest(name)}" for name in unknown[:_MOST_NAMED])
        more = f" and {len(unknown) - _MOST_NAMED:,} more" if len(unknown) > _MOST_NAMED else ""
        raise SettingsError(
            f"{_SETTING}: {len(unknown):,} of {count(len(fits), 'name')} {_are(unknown)} not among the classes of "
            f"{backbone.title}: {described}{more}. Give labels, scientific or common names as they were published."
        )
    if several:
        labels = "; ".join(
            f"{shown(name)}: {some([names.labels[each] for each in fits[name]])}" for name in several[:_MOST_NAMED]
        )
        raise SettingsError(f"{_SETTING}: {some(several)} {_are(several)} not clear: {labels}. Give whole labels.")
    return sorted({columns[0] for columns in fits.values()})


# ---- weights ------------------------------------------------------------------------------------


def read_layer(config: Config, columns: Sequence[int]) -> Layer:
    """Some columns of the published classifier. Raises CheckpointError, RetryableError."""
    backbone, published = _published_of(config)
    arrays = registry.read_weights(backbone, _place(config))
    kernel, bias = (arrays[name] for name in published.variables)
    return Layer(np.ascontiguousarray(kernel[:, columns]), np.ascontiguousarray(bias[list(columns)]))


def served(config: Config, kept: Kept, calibration: Calibration) -> Served:
    """What a model serves of the published classes. Raises as `read_layer`."""
    return Served(kept.labels, read_layer(config, kept.columns), calibration)


def is_backbone_of(config: Config, weights: Arrays) -> bool:
    """Whether the backbone of a trained model is the published one still.

    Args:
        weights: of the model, as `classifier.weights` names them.

    Raises:
        CheckpointError: the published weights cannot be read.
    """
    backbone = registry.backbone_of(config)
    published = registry.read_weights(backbone, _place(config))
    own = {name.removeprefix("backbone/"): array for name, array in weights.items()}
    if isinstance(backbone, LayerBackbone):
        own = backbone.from_trained(weights)
    return all(name in own and np.array_equal(own[name], published[name]) for name in backbone.variables())


def require_backbone(config: Config, weights: Arrays, title: str) -> None:
    """Refuse a base model whose backbone is not the published one any more.

    Args:
        weights: of the base model, as `classifier.weights` names them.
        title: of that model.

    Raises:
        SettingsError: the published classifier does not fit it.
        CheckpointError: the published weights cannot be read.
    """
    backbone, _ = _published_of(config)
    if not is_backbone_of(config, weights):
        raise SettingsError(
            f"{_SETTING}: the backbone of {title} was trained, and the classifier that was published with "
            f"{backbone.title} does not fit a changed backbone. Begin from another model, or leave the setting out."
        )
