"""Heads over time: what is made of consecutive windows of a recording before the logits of each.

    embeddings [B, L, K], which of them are windows [B, L] ─▶ layers ─▶ [B, L, H]

L consecutive windows, `model.context-windows`, are a context; what fills up the last context of a recording lies behind
its windows. Layers keep no state but weights and draw nothing: what is dropped is drawn by the training step, so that a
run that goes on comes to the same bits. Therefore they are normalised by layer, not by batch.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from birdtune.models.network import first_weights

# S. Roy et al., "ChronoNet", 2019, has 32 units; as a head in BirdCLEF 2024 it had 128.
_GRU_LAYERS, _GRU_UNITS = 4, 128
# jibjib's second network, which read ten windows: a convolution of 56, an LSTM of 96, three dense layers of 64.
_LSTM_INPUTS, _LSTM_UNITS, _LSTM_DENSE = 56, 96, (64, 64, 64)
_ATTENTION_UNITS, _ATTENTION_HEADS = 128, 4
# Every layer of them computes in float32: beside a backbone they cost next to nothing.
_DTYPE = "float32"


def _dense(net: Any, width: int, name: str, seed: int | None, activation: str | None = None) -> Any:
    layer = keras.layers.Dense(
        width, activation=activation, kernel_initializer=first_weights(seed, name), name=name, dtype=_DTYPE
    )
    return layer(net)


def _normal(net: Any, name: str) -> Any:
    return keras.layers.LayerNormalization(name=name, dtype=_DTYPE)(net)


def _recurrent(kind: Any, net: Any, units: int, name: str, seed: int | None) -> Any:
    # Unrolled: XLA compiles no loop of gradients, and a graph that is served needs no lists of tensors.
    return kind(
        units, return_sequences=True, unroll=True, name=name, dtype=_DTYPE,
        kernel_initializer=first_weights(seed, name, scale=1.0), recurrent_initializer=_orthogonal(seed, name),
    )(net)  # fmt: skip


def _orthogonal(seed: int | None, name: str) -> Any:
    """Of recurrent weights: a signal neither dies nor explodes over the windows."""
    if seed is None:
        return keras.initializers.Zeros()
    digest = hashlib.sha256(f"{seed}/{name}/recurrent".encode()).digest()
    return keras.initializers.Orthogonal(seed=int.from_bytes(digest[:4], "little") >> 1)


def _gru(embeddings: Any, inside: Any, seed: int | None) -> Any:
    """Four GRU layers, each of which sees the outputs of all before it (dense skips). [B, L, K] → [B, L, 512]"""
    del inside  # each window is scored by those before it, and what fills up lies behind
    net, outputs = _normal(embeddings, "normal"), list[Any]()
    for number in range(1, _GRU_LAYERS + 1):
        net = _recurrent(keras.layers.GRU, net, _GRU_UNITS, f"gru{number}", seed)
        outputs.append(_normal(net, f"normal{number}"))
        net = outputs[0] if number == 1 else keras.layers.Concatenate(name=f"skip{number}")(outputs)
    return net


def _lstm(embeddings: Any, inside: Any, seed: int | None) -> Any:
    """A layer of each window alone, an LSTM, three dense layers. [B, L, K] → [B, L, 64]"""
    del inside  # as in `_gru`
    net = _dense(_normal(embeddings, "normal"), _LSTM_INPUTS, "conv", seed, "relu")
    net = _recurrent(keras.layers.LSTM, net, _LSTM_UNITS, "lstm", seed)
    for number, width in enumerate(_LSTM_DENSE, start=1):
        net = _dense(net, width, f"dense{number}", seed, "relu")
    return net


def _self_attention(embeddings: Any, inside: Any, seed: int | None) -> Any:
    """One layer of an encoder, with positions (Vaswani et al., "Attention is all you need", 2017).

    [B, L, K], [B, L] → [B, L, 128]
    """
    units = _ATTENTION_UNITS
    net = _dense(_normal(embeddings, "normal"), units, "project", seed)
    net = keras.layers.Add(name="place", dtype=_DTYPE)([net, _positions(int(net.shape[1]), units)])
    normal, length = _normal(net, "normal1"), int(net.shape[1])
    # Not Keras's layer of several heads: it draws query, key and value alike from one seed.
    query, key, value = (
        keras.ops.reshape(_dense(normal, units, name, seed), (-1, length, _ATTENTION_HEADS, units // _ATTENTION_HEADS))
        for name in ("query", "key", "value")
    )
    among = inside[:, None, None, :]  # none looks at what fills up
    looked = keras.ops.dot_product_attention(query, key, value, mask=among)  # [B, L, heads, units / heads]
    looked = _dense(keras.ops.reshape(looked, (-1, length, units)), units, "looked", seed)
    net = keras.layers.Add(name="with_looked", dtype=_DTYPE)([net, looked])
    wide = _dense(_normal(net, "normal2"), 2 * units, "wide", seed, "relu")
    net = keras.layers.Add(name="sum", dtype=_DTYPE)([net, _dense(wide, units, "narrow", seed)])
    return _normal(net, "normal3")


def _positions(length: int, units: int) -> Any:
    """Sines and cosines of the place of each window in its context. [1, L, units]"""
    rates = 10_000.0 ** (-np.arange(units // 2) / (units // 2))
    angles = np.arange(length)[:, None] * rates
    return keras.ops.convert_to_tensor(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None], _DTYPE)


# From embeddings, which of them are windows, and a seed, to what logits are made of.
LAYERS: Mapping[str, Callable[[Any, Any, int | None], Any]] = {
    "gru": _gru,
    "lstm": _lstm,
    "self-attention": _self_attention,
}
