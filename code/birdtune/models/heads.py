"""Heads: from the embedding to one number a class, and from that to scores.

    embeddings [N, K] float32 ─▶ logits [N, C] float32 ─▶ scores [N, C] float32 in 0…1
                             └─▶ attention [N] float32: how much each window counts in the score of its recording,
                                 or [N, C]: of each class
    embeddings [B, L, K] of consecutive windows ─▶ logits [B, L, C], by a head over time (sequence_heads.py)

Every recording's score is a mean over its windows, with weights: by attention, where the head has one, else all alike.

`softmax` takes one class a window to be true, and scores sum to one; `sigmoid` asks of each class by
itself whether it is heard.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from birdtune.errors import SettingsError
from birdtune.models.backbone import choose
from birdtune.models.head_kinds import hidden_layers
from birdtune.models.network import first_weights
from birdtune.models.sequence_heads import LAYERS
from birdtune.runtime.text import count
from birdtune.settings import SEQUENCE_HEADS

KINDS: Mapping[str, Any] = {"softmax": keras.ops.softmax, "sigmoid": keras.ops.sigmoid}

# Of the first layer that tells windows apart by how much they count: its tanh should not begin saturated, with
# embeddings of 10 in size as with those of 1.
_ATTENTION_SCALE = 0.05
# So little attention that nothing of a window is left, and yet no infinity that a gradient could make NaN of.
_NEVER = -1e9
# A fresh backbone's embeddings are some 10 in size; at He's scale of 2 the first logits would be as large,
# and the first scores confidently wrong. Not zero either: then no two windows could be told apart.
_LOGITS_SCALE = 0.01
# Of cosines, which lie in -1…1: with it a window that is like a prototype and unlike the others is scored near 1.
_FIRST_SCALE = 10.0
# Embeddings shorter than this are of digital silence: they have no direction.
_SHORTEST = 1e-6


@dataclass(frozen=True)
class HeadSizes:
    """What a head is built with.

    Attributes:
        n_classes: outputs.
        first_bias: of the logits.
        hidden_units: width of the layer in between (jibjib: 100), or of several with commas, where there are any.
        prototypes: of each class, where there are any.
        precision: a keras dtype policy for the hidden layer; the logits are always float32.
        seed: of the initial weights; None = zeros, for weights that are loaded next.
    """

    n_classes: int
    first_bias: float
    hidden_units: int | str
    prototypes: int
    precision: str
    seed: int | None


def _linear(embeddings: Any, sizes: HeadSizes) -> Any:
    """[…, K] → […, C]"""
    return keras.layers.Dense(
        sizes.n_classes,
        kernel_initializer=first_weights(sizes.seed, "logits", scale=_LOGITS_SCALE),
        bias_initializer=keras.initializers.Constant(sizes.first_bias),
        name="logits",
        # Losses and scores take exponentials of these: rounding them to half precision costs accuracy.
        dtype="float32",
    )(embeddings)


def _mlp(embeddings: Any, sizes: HeadSizes) -> Any:
    """[N, K] → [N, C] by way of ReLU layers [N, hidden_units]"""
    net = embeddings
    for name, width in hidden_layers(sizes.hidden_units).items():
        if width < 1:
            raise SettingsError(f"model.hidden-units: {width} is no width of a hidden layer. Give 1 or more.")
        net = keras.layers.Dense(
            width,
            activation="relu",
            kernel_initializer=first_weights(sizes.seed, name),
            name=name,
            dtype=sizes.precision,
        )(net)
    return _linear(net, sizes)


def _prototype(embeddings: Any, sizes: HeadSizes) -> Any:
    """[N, K] → [N, C] by the similarity to each class's prototypes"""
    if sizes.prototypes < 1:
        raise SettingsError(f"model.prototypes: {sizes.prototypes} is no number of prototypes. Give 1 or more.")
    return Prototypes(sizes, name="logits", dtype="float32")(embeddings)


def _over_time(kind: str) -> Callable[[Any, HeadSizes], Any]:
    """([B, L, K], [B, L]) → [B, L, C]"""

    def logits(given: Any, sizes: HeadSizes) -> Any:
        embeddings, inside = given
        return _linear(LAYERS[kind](embeddings, inside, sizes.seed), sizes)

    return logits


# What makes logits of embeddings; the attention heads also have `build_attention`.
HEADS: Mapping[str, Callable[[Any, HeadSizes], Any]] = {
    "linear": _linear,
    "mlp": _mlp,
    "attention": _linear,
    "sed-attention": _linear,
    "prototype": _prototype,
    **{kind: _over_time(kind) for kind in LAYERS},
}


class Prototypes(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Logits by the cosine similarity to prototypes, of which each class has some.

        logit = scale · similarity to the nearest prototype + bias, scale and bias of each class

    "Nearest" is smooth (the logarithm of the mean of exponentials), so that every prototype gets a gradient: the hard
    maximum leaves prototypes that begin far from all embeddings where they are. A class is a column of every weight,
    so that classes can be added, and left alone, one by one.
    """

    def __init__(self, sizes: HeadSizes, **options: Any) -> None:
        super().__init__(**options)
        self.n_prototypes, self._n_classes = sizes.prototypes, sizes.n_classes
        self._seed, self._first_bias = sizes.seed, sizes.first_bias

    def build(self, shape: Any) -> None:
        """Make the weights of embeddings [N, K]."""
        n_inputs, of_classes = int(shape[-1]), (self._n_classes,)
        # All axes but the last count as inputs: so the prototypes are 1 long, and Adam's steps turn them alike.
        first = first_weights(self._seed, "logits", scale=float(self.n_prototypes))
        constant = keras.initializers.Constant
        self.kernel = self.add_weight(
            shape=(n_inputs, self.n_prototypes, self._n_classes), initializer=first, name="kernel"
        )  # only the directions count
        self.bias = self.add_weight(shape=of_classes, initializer=constant(self._first_bias), name="bias")
        self.log_scale = self.add_weight(
            shape=of_classes, initializer=constant(math.log(_FIRST_SCALE)), name="log_scale"
        )

    def call(self, embeddings: Any) -> Any:
        """Embeddings [N, K] → logits [N, C]"""
        ops = keras.ops
        prototypes = ops.reshape(_directions(self.kernel, axis=0), (-1, self.n_prototypes * self._n_classes))
        cosines = ops.matmul(_directions(embeddings, axis=-1), prototypes)
        cosines = ops.reshape(cosines, (-1, self.n_prototypes, self._n_classes))  # [N, prototypes, C]
        nearest = ops.logsumexp(ops.exp(self.log_scale) * cosines, axis=1) - math.log(self.n_prototypes)
        return nearest + self.bias


def _directions(vectors: Any, axis: int) -> Any:
    ops = keras.ops
    squares = ops.sum(vectors * vectors, axis=axis, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, _SHORTEST**2))


def build_head(
    head: str,
    n_classes: int,
    *,
    scores: str,
    hidden_units: int | str,
    embedding_size: int,
    precision: str,
    seed: int | None,
    prototypes: int = 0,
    context: int = 0,
) -> keras.Model:
    """The classifier on top of the embedding, with fresh weights.

    Args:
        head: one of `HEADS`.
        n_classes: outputs, at least 2.
        scores: "softmax" or "sigmoid"; the first biases depend on it.
        embedding_size: inputs.
        hidden_units, precision, seed, prototypes: as in `HeadSizes`.
        context: consecutive windows that a head over time sees at once.

    Returns:
        A model [N, embedding_size] → [N, n_classes] with the layers `hidden_layers` (if any) and "logits"; named as the
        head. Of a head over time, from embeddings [B, context, embedding_size] and which of them are windows
        [B, context] to [B, context, n_classes].

    Raises:
        SettingsError: an unknown head or kind of scores, no width, or no class (of softmax: fewer than two).
    """
    choose(head, HEADS, "model.head")
    choose(scores, KINDS, "model.output")
    if n_classes < (least := 1 if scores == "sigmoid" else 2):
        raise SettingsError(f"a classifier by {scores} needs at least {count(least, 'class')}, and got {n_classes}.")
    if head == "sed-attention" and scores != "sigmoid":
        raise SettingsError("model.head sed-attention scores each class by itself; give --model.output sigmoid.")
    shape = (context, embedding_size) if head in SEQUENCE_HEADS else (embedding_size,)
    given: Any = keras.Input(shape, dtype="float32", name="embedding")
    if head in SEQUENCE_HEADS:
        given = [given, keras.Input((context,), dtype="bool", name="inside")]
    sizes = HeadSizes(n_classes, first_bias(scores, n_classes), hidden_units, prototypes, precision, seed)
    return keras.Model(given, HEADS[head](given, sizes), name=head)


def build_attention(
    *, hidden_units: int, embedding_size: int, precision: str, seed: int | None, n_classes: int = 0
) -> keras.Model:
    """What tells of each window how much it counts beside the others of its recording, with fresh weights.

    With classes, of each class by itself: one bird may sing where another is silent (Q. Kong et al., "Sound event
    detection of weakly labelled data with CNN-Transformer and automatic threshold optimization", 2020).

    One tanh layer and a sum (Ilse et al., "Attention-based deep multiple instance learning", 2018). The sum's weights
    are zero at first: all windows count alike, and the head begins as one without attention.

    Args:
        hidden_units, embedding_size, precision, seed: as `build_head`.
        n_classes: 0: a window counts alike for all classes.

    Returns:
        A model [N, embedding_size] → [N], or [N, n_classes], float32 with the layers "hidden" and "attention"; more is
        more, and differences are what matters.
    """
    embeddings = keras.Input((embedding_size,), dtype="float32", name="embedding")
    net = keras.layers.Dense(
        hidden_units,
        activation="tanh",
        kernel_initializer=first_weights(seed, "attention/hidden", scale=_ATTENTION_SCALE),
        name="hidden",
        dtype=precision,
    )(embeddings)  # [N, hidden_units]
    net = keras.layers.Dense(
        n_classes or 1, use_bias=False, kernel_initializer="zeros", name="attention", dtype="float32"
    )(net)
    return keras.Model(embeddings, net if n_classes else keras.layers.Reshape((), name="each")(net), name="attention")


def first_bias(kind: str, n_classes: int) -> float:
    """Of the logits of fresh heads, "softmax" or "sigmoid"."""
    # With sigmoids, one yes stands against C - 1 noes. Starting each score at 1 / C spares the first
    # epoch from learning that alone (Lin et al., "Focal loss for dense object detection", 2017, 3.3).
    return -math.log(max(n_classes - 1, 1)) if kind == "sigmoid" else 0.0


def scores(logits: Any, kind: str) -> Any:
    """Logits [N, C] → scores [N, C] float32 in 0…1.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.output")
    return KINDS[kind](keras.ops.cast(logits, "float32"))


def clip_logits(logits: Any, attention: Any, inside: Any, kind: str) -> Any:
    """The logits of recordings' scores, of which each is the mean over its windows by attention.

    By way of logarithms, so that no window is so sure that its gradient vanishes.

    Args:
        logits: [B · L, C] of windows, one recording after another.
        attention: [B · L], or [B · L, C] with "sigmoid".
        inside: [B, L] bool, which of them are windows; each recording has one.
        kind: "softmax" or "sigmoid".

    Returns:
        [B, C] float32.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.output")
    ops = keras.ops
    shape = ops.shape(inside)
    of_windows = ops.reshape(logits, (*shape, logits.shape[-1]))  # [B, L, C]
    width = 1 if len(attention.shape) == 1 else attention.shape[-1]
    counted = ops.where(inside[..., None], ops.reshape(attention, (*shape, width)), _NEVER)  # [B, L, 1 or C]
    share = ops.log_softmax(counted, axis=1)
    if kind == "softmax":
        return ops.logsumexp(share + ops.log_softmax(of_windows, axis=-1), axis=1)
    yes, no = (ops.logsumexp(share + ops.log_sigmoid(sign * of_windows), axis=1) for sign in (1.0, -1.0))
    return yes - no
