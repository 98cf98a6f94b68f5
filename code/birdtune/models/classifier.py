"""The classifier: backbone and head together, and its weights as named arrays.

    settings ─▶ Classifier;  windows [N, ...] ─▶ scores [N, C], embeddings [N, K]

The names of the weights ("backbone/conv1/kernel", "head/logits/bias") are a file format: checkpoints hold
them, and `weights_sha256` says whether two models are the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.models import front_end_graph, heads
from birdtune.models.backbone import ALL_BUT_HEAD, Backbone
from birdtune.models.head_kinds import Pooling
from birdtune.models.tf_checkpoint import check_variables
from birdtune.settings import ATTENTION_HEADS


@dataclass(frozen=True)
class Classifier:
    """A network (windows → embeddings), a head (embeddings → logits), and what the columns mean."""

    backbone: Backbone
    network: keras.Model
    head: keras.Model
    kind: str  # of scores: "softmax" or "sigmoid"
    classes: tuple[str, ...]  # position = column of the scores
    attention: keras.Model | None = None  # embeddings → how much each window counts; None: all alike

    @property
    def head_name(self) -> str:
        """The head's name in `heads.HEADS`."""
        return str(self.head.name)

    @property
    def front_end(self) -> FrontEnd:
        """What the backbone wants sound to be made into."""
        return self.backbone.front_end

    @property
    def embedding_activation(self) -> str:
        """What follows the backbone's last layer: "relu" or "none"."""
        layers = self.backbone.layer_names
        activation = getattr(self.network.get_layer(layers[-1]), "activation", None) if layers else None
        if activation is None:  # of a graph that is as it is
            return self.backbone.activations[0]
        return "none" if activation is keras.activations.linear else "relu"

    @property
    def is_frozen(self) -> bool:
        """Whether its embeddings are those of the backbone as it was given: only the head is trained."""
        return not self.network.trainable_variables

    @property
    def hidden_units(self) -> int | str:
        """Width of the head's hidden layer, or of several with commas; 0 = none."""
        layers = (self.attention or self.head).layers
        widths = [int(layer.units) for layer in layers if layer.name.startswith("hidden")] or [0]
        return widths[0] if len(widths) == 1 else ",".join(map(str, widths))

    @property
    def prototypes(self) -> int:
        """How many prototypes each class has, 0 = none."""
        return int(getattr(self.head.get_layer("logits"), "n_prototypes", 0))

    @property
    def pooling(self) -> Pooling:
        """How its scores of windows come to be those of recordings."""
        given = self.head.inputs
        return Pooling(
            context=int(given[0].shape[1]) if len(given) > 1 else 0,
            weights=len(self.classes) if self.head_name == "sed-attention" else 1,
            embedding_size=self.backbone.embedding_size,
        )

    @property
    def by_recording(self) -> bool:
        """Whether it learns from recordings, of which it scores several windows."""
        return self.attention is not None or self.pooling.context > 0

    @property
    def parts(self) -> dict[str, keras.Model]:
        """The networks it is made of, by the names under which their weights are kept."""
        found = {"backbone": self.network, "head": self.head}
        return found if self.attention is None else {**found, "attention": self.attention}

    @property
    def variables(self) -> list[keras.Variable]:
        """All weights, backbone first."""
        return [variable for part in self.parts.values() for variable in part.weights]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The weights that are not frozen, backbone first."""
        return [variable for part in self.parts.values() for variable in part.trainable_variables]

    def embed(self, windows: Any) -> Any:
        """Windows [N, ...], float32 or as they are stored → embeddings [N, K] float32."""
        return self.network(front_end_graph.as_float(windows))

    def logits(self, windows: Any) -> tuple[Any, Any]:
        """Windows [N, ...] → logits [N, C] and embeddings [N, K], both float32."""
        embeddings = self.embed(windows)
        return self.of_places(embeddings), embeddings

    def of_places(self, embeddings: Any, inside: Any = None) -> Any:
        """Embeddings [B · P, K] of P consecutive windows each → logits [B · P, C].

        Args:
            inside: [B, P] bool, which of them are windows; those come first. None: each window is alone.
        """
        context, ops = self.pooling.context, keras.ops
        if not context:
            return self.head(embeddings)
        if inside is None:
            inside = ops.ones_like(embeddings[:, :1], dtype="bool")
        n, places = inside.shape[0] or ops.shape(inside)[0], int(inside.shape[1])
        behind = (0, context - places)
        windows = ops.pad(ops.reshape(embeddings, (n, places, self.backbone.embedding_size)), ((0, 0), behind, (0, 0)))
        logits = self.head([windows, ops.pad(inside, ((0, 0), behind))])  # [B, L, C]
        return ops.reshape(logits[:, :places], (-1, len(self.classes)))

    def sequence_logits(self, embeddings: Any, recording: Any) -> Any:
        """Embeddings [T, K] of the windows of recordings → logits [T, C].

        A head over time sees them context by context, from the first window of each recording on.

        Args:
            recording: [T] which recording each window is of, ascending; windows in their order.
        """
        context = self.pooling.context
        if not context:
            return self.head(embeddings)
        ops = keras.ops
        recording = ops.cast(recording, "int32")
        number = ops.cumsum(ops.ones_like(recording)) - 1  # [T]
        differs = ops.cast(recording[1:] != recording[:-1], "int32")
        each = ops.cumsum(ops.concatenate([ops.zeros_like(recording[:1]), differs]))  # [T] recordings, from 0
        place = (number + ops.take(ops.segment_max(-number, each), each)) % context  # [T] in its context
        row = ops.cumsum(ops.cast(place == 0, "int32")) - 1  # [T] its context
        at, n = ops.stack([row, place], axis=1), row[-1] + 1
        windows = ops.scatter(at, ops.cast(embeddings, "float32"), (n, context, self.backbone.embedding_size))
        inside = ops.scatter(at, ops.ones_like(place), (n, context)) > 0
        logits = ops.reshape(self.head([windows, inside]), (-1, len(self.classes)))
        return ops.take(logits, row * context + place, axis=0)

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        """As `sequence_logits`, but scores [T, C] float32; not calibrated."""
        return heads.scores(self.sequence_logits(embeddings, recording), self.kind)

    def scores(self, windows: Any) -> tuple[Any, Any]:
        """Windows [N, ...] → scores [N, C] and embeddings [N, K], both float32; not calibrated."""
        logits, embeddings = self.logits(windows)
        return heads.scores(logits, self.kind), embeddings

    def attend(self, embeddings: Any) -> Any:
        """Embeddings [N, K] → how much each window counts beside the others of its recording [N] float32; or [N, C],
        of each class by itself.

        Weights of a mean over windows are its softmax over them.
        """
        return keras.ops.zeros_like(embeddings[:, 0]) if self.attention is None else self.attention(embeddings)


def build(
    backbone: Backbone,
    *,
    head: str,
    scores: str,
    hidden_units: int | str,
    embedding_activation: str,
    freeze: str,
    classes: Sequence[str],
    precision: str,
    seed: int | None,
    prototypes: int = 0,
    context: int = 0,
) -> Classifier:
    """A classifier with fresh weights; see `Backbone.network`, `Backbone.freeze`, `heads.HeadSizes`.

    With `seed` None the weights are zero, for a caller that loads all of them next. Where the whole backbone is frozen
    it computes in float32, so that embeddings in training are those that are served.

    Raises:
        SettingsError: a setting that is not known or out of range.
    """
    own = "float32" if backbone.freezes_all(freeze) else precision
    network = backbone.network(embedding_activation=embedding_activation, precision=own, seed=seed)
    backbone.freeze(network, freeze)
    return on_network(
        backbone, network, head=head, scores=scores, hidden_units=hidden_units, classes=classes, precision=precision,
        seed=seed, prototypes=prototypes, context=context,
    )  # fmt: skip


def on_network(
    backbone: Backbone,
    network: keras.Model,
    *,
    head: str,
    scores: str,
    hidden_units: int | str,
    classes: Sequence[str],
    precision: str,
    seed: int | None,
    prototypes: int = 0,
    context: int = 0,
) -> Classifier:
    """A backbone's network that is there with a fresh head; arguments as `build`."""
    sizes: dict[str, Any] = {
        "hidden_units": hidden_units,
        "embedding_size": backbone.embedding_size,
        "precision": precision,
        "seed": seed,
    }
    top = heads.build_head(head, len(classes), scores=scores, prototypes=prototypes, context=context, **sizes)
    attention = None
    if head in ATTENTION_HEADS:
        attention = heads.build_attention(**sizes, n_classes=len(classes) if head == "sed-attention" else 0)
    return Classifier(backbone, network, top, scores, tuple(classes), attention)


def published(
    backbone: Backbone, variables: Mapping[str, npt.NDArray[np.float32]], classes: Sequence[str]
) -> Classifier:
    """The classifier as it was published with a backbone, e.g. YAMNet with its 521 classes of AudioSet.

    Args:
        backbone: one that has such a classifier.
        variables: of the checkpoint, as `registry.read_weights` gives them.
        classes: names of the columns.

    Raises:
        CheckpointError: the variables do not fit.
    """
    assert backbone.published is not None
    found = build(
        backbone,
        head="linear",
        scores="sigmoid",
        hidden_units=0,
        embedding_activation=backbone.activations[0],
        freeze=ALL_BUT_HEAD,
        classes=classes,
        precision="float32",
        seed=None,
    )
    backbone.load(found.network, variables, source="the checkpoint")
    logits = found.head.get_layer("logits")
    for variable, name in zip((logits.kernel, logits.bias), backbone.published.variables, strict=True):
        variable.assign(variables[name])
    return found


def in_float32(classifier: Classifier) -> Classifier:
    """A copy with the same weights that computes in float32; the classifier itself, if it does."""
    layers = (layer for part in classifier.parts.values() for layer in part.layers)
    if all(layer.compute_dtype == "float32" for layer in layers):
        return classifier
    copy = build(
        classifier.backbone,
        head=classifier.head_name,
        scores=classifier.kind,
        hidden_units=classifier.hidden_units,
        prototypes=classifier.prototypes,
        context=classifier.pooling.context,
        embedding_activation=classifier.embedding_activation,
        freeze=ALL_BUT_HEAD,
        classes=classifier.classes,
        precision="float32",
        seed=None,
    )
    load_weights(copy, weights(classifier))
    return copy


def _named(classifier: Classifier) -> Iterator[tuple[str, keras.Variable]]:
    for part, model in classifier.parts.items():
        for layer in model.layers:
            for variable in layer.weights:
                # Of a network within the network, names alone would not tell weights apart.
                own = variable.path if isinstance(layer, keras.Model) else variable.name
                yield f"{part}/{layer.name}/{own}", variable


def _copied(variable: keras.Variable) -> npt.NDArray[np.float32]:
    # `numpy()` copies, so that training on does not change what was taken here.
    return np.asarray(variable.numpy(), np.float32)


def weights(
    classifier: Classifier, read: Callable[[keras.Variable], npt.NDArray[np.float32]] = _copied
) -> dict[str, npt.NDArray[np.float32]]:
    """All weights by name, in float32; frozen ones too.

    Args:
        read: how a variable's numbers are taken; if not given, as a copy.
    """
    return {name: read(variable) for name, variable in _named(classifier)}


def trained_weights(classifier: Classifier) -> dict[str, npt.NDArray[np.float32]]:
    """As `weights`, of those that are not frozen."""
    free = {id(variable) for variable in classifier.trainable_variables}
    return {
        name: _copied(variable)
        for name, variable in _named(classifier)
        if id(variable) in free
    }


def load_weights(
    classifier: Classifier,
    arrays: Mapping[str, npt.NDArray[np.generic]],
    *,
    source: str = "the saved weights",
) -> None:
    """Put weights by name into the classifier, all of them or none.

    Args:
        classifier: built with the same settings.
        arrays: as `weights` gave them.
        source: what an error message calls their origin.

    Raises:
        CheckpointError: naming every missing, misshapen, non-finite and unexpected one.
    """
    variables = dict(_named(classifier))
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    check_variables(arrays, shapes, source=source, strict=True)
    for name, variable in variables.items():
        variable.assign(np.asarray(arrays[name], np.float32))


def weights_sha256(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """SHA-256 over names (sorted), types, shapes and little-endian bytes: the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        # A line of JSON before the bytes: where one array ends and the next begins stays unambiguous.
        header = json.dumps([name, little.dtype.str, list(arrays[name].shape)])
        digest.update(header.encode() + b"\n")
        digest.update(little.data)
    return digest.hexdigest()
