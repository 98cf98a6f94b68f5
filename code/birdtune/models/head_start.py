"""First weights of a head from the classifier that was published with the backbone.

    classes of the data ─▶ find ─▶ HeadStart: class → published column;  training.first_weights puts them into the head

Behind the columns of a base model (`--init-from`) only the new ones begin so (measured in docs/backbones.md). They are
taken as published there, too: scaled to the size of the columns that were trained they were no better.

A classifier of thousands of species has learnt each from far more recordings than most users have. Where a class of the
data is one of them, its column is the best place to begin from (docs/backbones.md has what it is worth).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.config import Config
from birdtune.errors import SettingsError, shown
from birdtune.models import registry
from birdtune.models.backbone import Arrays, Backbone, Published
from birdtune.models.embedded import EmbeddingsBackbone
from birdtune.models.labels_file import are_named
from birdtune.models.published_names import Names
from birdtune.runtime.text import count, some

Array = npt.NDArray[np.float32]
_SETTING = "--model.head-weights published"
# Heads whose logits are a linear function of the embedding, as those of a published classifier are.
LINEAR_HEADS = ("linear", "attention", "sed-attention")


@dataclass(frozen=True)
class HeadStart:
    """Which classes of the data begin from a published one.

    Attributes:
        backbone: its title.
        n_classes: of the data; with a base model, new ones.
        columns: class of the data → column of the published classifier.
        labels: the same → that column's label.
        variables: kernel and bias of the published classifier, as a checkpoint names them.
        are_named: whether the names of the published classes are known.
        knows_all: whether all classes are among the published ones, those of a base model as well.
        base: title of the base model; None: there is none.
        has_changed: whether the backbone of the base model was trained, so that no published column fits it.
    """

    backbone: str
    n_classes: int
    columns: Mapping[str, int]
    labels: Mapping[str, str]
    variables: tuple[str, str]
    are_named: bool
    knows_all: bool
    base: str | None = None
    has_changed: bool = False

    def row(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {"backbone": self.backbone, "classes": dict(self.labels)}

    def lines(self) -> Iterator[str]:
        """What begins from what, for people."""
        if self.base is not None and not self.n_classes:
            return
        of = count(self.n_classes, "new class" if self.base is not None else "class")
        begins = "head: begins at random" if self.base is None else "head: new classes begin as the mean of the others"
        if self.has_changed:
            yield f"{begins}; the backbone of {self.base} was trained, and {self.backbone}'s classifier does not fit it"
        elif not self.are_named:
            yield (
                f"{begins}; the names of {self.backbone}'s own classes are not known (the list that was "
                "published with the weights belongs beside them)"
            )
        elif not self.columns:
            yield f"{begins}; none of {of} has the name of one of {self.backbone}'s own classes"
        else:
            pairs = [name if name == label else f"{name} = {label}" for name, label in self.labels.items()]
            verb = "begins" if len(pairs) == 1 else "begin"
            yield f"head: {len(pairs):,} of {of} {verb} from {self.backbone}'s own classifier: {some(pairs)}"
        for label, names in self._of_label.items():
            if len(names) > 1:
                yield (
                    f"  {' and '.join(names)} are both {self.backbone}'s {label}: if they are one class, put them into "
                    "one folder"
                )

    @property
    def _of_label(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, label in self.labels.items():
            found.setdefault(label, []).append(shown(name))
        return found

    def weights(self, published: Arrays, columns: Sequence[int] | None = None) -> tuple[Array, Array]:
        """Kernel [K, M] and bias [M] of some columns (default: of the classes), from a checkpoint's variables."""
        kernel, bias = (published[name] for name in self.variables)
        chosen = list(self.columns.values() if columns is None else columns)
        return kernel[:, chosen], bias[chosen]


def require(config: Config) -> None:
    """Refuse to begin from published weights where there are none that fit the settings. Raises SettingsError."""
    if config.model.head_weights == "published":
        _, _, why_not = _published(config, config.model.head)
        if why_not:
            raise SettingsError(f"{_SETTING}: {why_not}. Leave the setting out, or change that.")


def find(config: Config, classes: Sequence[str], base: str | None = None, n_kept: int = 0) -> HeadStart | None:
    """Which classes of the data begin from a published one; None: the head begins at random.

    Args:
        classes: of the data; the first `n_kept` are those of a base model, and begin with its columns.
        base: title of the base model.

    Raises:
        SettingsError: published weights are asked for, and there are none that fit.
        InputError: the file of labels cannot be read.
    """
    require(config)
    found = _match(config, config.model.head, classes, base, n_kept)
    if config.model.head_weights == "published" and found is not None and found.n_classes and not found.columns:
        named = "no class of the data is among them" if found.are_named else "their names are not known"
        raise SettingsError(
            f"{_SETTING}: {found.backbone} was published with a classifier of its own classes, but {named}. Name "
            "classes by their scientific or common name as published, and keep the list of labels beside the weights."
        )
    return found


def of_head(config: Config, head: str, classes: Sequence[str]) -> HeadStart | None:
    """As `find`, for a head that may be another than that of the settings; None: no class of it begins so."""
    found = _match(config, head, classes)
    return found if found is not None and found.columns else None


def _match(
    config: Config, head: str, classes: Sequence[str], base: str | None = None, n_kept: int = 0
) -> HeadStart | None:
    """What begins from what, or None."""
    backbone, published, why_not = _published(config, head)
    wanted = config.model.head_weights
    if published is None or why_not or wanted == "random" or (wanted == "auto" and not published.starts_heads):
        return None
    path = registry.sound_checkpoint(config)
    assert path is not None, "training from scratch was refused"
    labels = published.read_classes(path)
    known = Names(labels).only(classes) if are_named(labels) else {}
    columns = {name: known[name] for name in classes[n_kept:] if name in known}
    return HeadStart(
        backbone.title, len(classes) - n_kept, columns, {name: labels[column] for name, column in columns.items()},
        published.variables, are_named(labels), len(known) == len(classes), base,
    )  # fmt: skip


def _published(config: Config, head: str) -> tuple[Backbone, Published | None, str]:
    """The backbone, the classifier it was published with, and why no head begins from it ("" where one may)."""
    backbone, model = registry.backbone_of(config), config.model
    if isinstance(backbone, EmbeddingsBackbone):
        why_not = "the data are embeddings, on which every head begins at random"
    elif backbone.published is None:
        why_not = f"{backbone.title} comes without a classifier of its own"
    elif model.checkpoint == "none":
        why_not = "with --model.checkpoint none there are no published weights"
    elif head not in LINEAR_HEADS:
        why_not = f"a published classifier is linear, and --model.head {head} is not"
    elif model.embedding_activation != backbone.activations[0]:
        why_not = f"it was published with --model.embedding-activation {backbone.activations[0]}"
    else:
        why_not = ""
    return backbone, backbone.published, why_not
