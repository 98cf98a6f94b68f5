"""Heads: from the embedding to one number a class, and from that to scores.

    embeddings [N, K] float32 ─▶ logits [N, C] float32 ─▶ scores [N, C] float32 in 0…1

`softmax` takes one class a patch to be true, and scores sum to one; `sigmoid` asks of each class by
itself whether it is heard.
"""

import math
from collections.abc import Mapping
from typing import Any

import keras

from birdtune.errors import SettingsError
from birdtune.model.architecture import choose
from birdtune.model.network import first_weights

KINDS: Mapping[str, Any] = {"softmax": keras.ops.softmax, "sigmoid": keras.ops.sigmoid}

# A fresh trunk's embeddings are some 10 in size; at He's scale of 2 the first logits would be as large,
# and the first scores confidently wrong. Not zero either: then no two patches could be told apart.
_LOGITS_SCALE = 0.01


def build_head(
    kind: str, n_classes: int, *, hidden_units: int, embedding_size: int, precision: str, seed: int | None
) -> keras.Model:
    """The classifier on top of the embedding, with fresh weights.

    Args:
        kind: "softmax" or "sigmoid".
        n_classes: outputs, at least 2.
        hidden_units: width of a ReLU layer in between (jibjib: 100); 0 = none.
        embedding_size: inputs.
        precision: a keras dtype policy for the hidden layer; the logits are always float32.
        seed: of the initial weights; None = zeros, for weights that are loaded next.

    Returns:
        A model [N, embedding_size] → [N, n_classes] with the layers "hidden" (if any) and "logits".

    Raises:
        SettingsError: an unknown kind, fewer than two classes, or a negative width.
    """
    choose(kind, KINDS, "model.head")
    if n_classes < 2:
        raise SettingsError(f"a classifier needs at least 2 classes, and got {n_classes}.")
    if hidden_units < 0:
        raise SettingsError(
            f"model.hidden-units: {hidden_units} is negative. Give a width, or 0 for no hidden layer."
        )
    embeddings = keras.Input((embedding_size,), dtype="float32", name="embedding")
    net = embeddings
    if hidden_units:
        net = keras.layers.Dense(
            hidden_units,
            activation="relu",
            kernel_initializer=first_weights(seed, "hidden"),
            name="hidden",
            dtype=precision,
        )(net)  # [N, hidden_units]
    logits = keras.layers.Dense(
        n_classes,
        kernel_initializer=first_weights(seed, "logits", scale=_LOGITS_SCALE),
        bias_initializer=keras.initializers.Constant(_first_bias(kind, n_classes)),
        name="logits",
        # Losses and scores take exponentials of these: rounding them to half precision costs accuracy.
        dtype="float32",
    )(net)  # [N, n_classes]
    return keras.Model(embeddings, logits, name="head")


def _first_bias(kind: str, n_classes: int) -> float:
    # With sigmoids, one yes stands against C - 1 noes. Starting each score at 1 / C spares the first
    # epoch from learning that alone (Lin et al., "Focal loss for dense object detection", 2017, 3.3).
    return -math.log(n_classes - 1) if kind == "sigmoid" else 0.0


def scores(logits: Any, kind: str) -> Any:
    """Logits [N, C] → scores [N, C] float32 in 0…1.

    Raises:
        SettingsError: an unknown kind.
    """
    choose(kind, KINDS, "model.head")
    return KINDS[kind](keras.ops.cast(logits, "float32"))
