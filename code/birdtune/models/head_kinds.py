"""What heads there are, as far as it is known without Keras; `heads.py` builds them.

A new head is a function in `heads.py`, a row here, and a word in `config.ModelSettings.head`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from birdtune.errors import SettingsError


@dataclass(frozen=True)
class Pooling:
    """How scores of windows come to be those of their recording.

    Attributes:
        context: consecutive windows that a head over time sees at once; 0: it scores each by itself.
        weights: numbers that say how much a window counts: one, or one of each class.
        embedding_size: numbers in an embedding.
    """

    context: int = 0
    weights: int = 1
    embedding_size: int = 0

    def whole_contexts(self, n: int) -> int:
        """The most windows, `n` or fewer, that are whole contexts."""
        return n - n % self.context if self.context else n


@dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
        weights: names of all its weights, as `classifier.weights` gives them and in that order, with one hidden
            layer where it has any.
        has_tensorflow_1: whether there is a graph of it for TensorFlow 1.
    """

    weights: tuple[str, ...]
    has_tensorflow_1: bool = False


def _dense(*layers: str) -> tuple[str, ...]:
    return tuple(f"{layer}/{ending}" for layer in layers for ending in ("kernel", "bias"))


def _normal(layer: str) -> tuple[str, ...]:
    return f"head/{layer}/gamma", f"head/{layer}/beta"


def _recurrent(layer: str) -> tuple[str, ...]:
    return tuple(f"head/{layer}/{ending}" for ending in ("kernel", "recurrent_kernel", "bias"))


HEAD_KINDS: Mapping[str, HeadKind] = {
    "linear": HeadKind(_dense("head/logits"), has_tensorflow_1=True),
    "mlp": HeadKind(_dense("head/hidden", "head/logits"), has_tensorflow_1=True),
    "attention": HeadKind((*_dense("head/logits", "attention/hidden"), "attention/attention/kernel")),
    "sed-attention": HeadKind((*_dense("head/logits", "attention/hidden"), "attention/attention/kernel")),
    "prototype": HeadKind((*_dense("head/logits"), "head/logits/log_scale")),
    "gru": HeadKind(
        (
            *_normal("normal"),
            *(name for n in "1234" for name in (*_recurrent(f"gru{n}"), *_normal(f"normal{n}"))),
            *_dense("head/logits"),
        )
    ),
    "lstm": HeadKind(
        (
            *_normal("normal"), *_dense("head/conv"), *_recurrent("lstm"),
            *_dense("head/dense1", "head/dense2", "head/dense3", "head/logits"),
        )
    ),
    "self-attention": HeadKind(
        (
            *_normal("normal"), *_dense("head/project"), *_normal("normal1"),
            *_dense("head/query", "head/key", "head/value", "head/looked"),
            *_normal("normal2"), *_dense("head/wide", "head/narrow"), *_normal("normal3"), *_dense("head/logits"),
        )
    ),
}


def hidden_layers(hidden_units: int | str) -> dict[str, int]:
    """Names and widths of hidden layers, in their order.

    Args:
        hidden_units: one width, or several with commas.
    """
    widths = [int(width) for width in str(hidden_units).split(",")]
    return {f"hidden{number}" if number > 1 else "hidden": width for number, width in enumerate(widths, start=1)}


def require_tensorflow_1(head: str) -> None:
    """Refuse a head of which there is no graph for TensorFlow 1.

    Raises:
        SettingsError: naming those of which there is one.
    """
    if not HEAD_KINDS[head].has_tensorflow_1:
        known = " or ".join(name for name, kind in HEAD_KINDS.items() if kind.has_tensorflow_1)
        raise SettingsError(
            f"--format slim: there is no TensorFlow 1 graph of model.head {head}. What reads TensorFlow 1 alone needs "
            f"--model.head {known}."
        )
