"""What heads there are, as far as it is known without Keras; `heads.py` builds them.

A new head is a function in `heads.py`, a row here, and a word in `config.ModelSettings.head`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from birdtune.errors import SettingsError


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


HEAD_KINDS: Mapping[str, HeadKind] = {
    "linear": HeadKind(_dense("head/logits"), has_tensorflow_1=True),
    "mlp": HeadKind(_dense("head/hidden", "head/logits"), has_tensorflow_1=True),
    "attention": HeadKind((*_dense("head/logits", "attention/hidden"), "attention/attention/kernel")),
    "prototype": HeadKind((*_dense("head/logits"), "head/logits/log_scale")),
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
