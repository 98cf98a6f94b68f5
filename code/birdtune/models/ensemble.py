"""Several heads on one frozen backbone, as one head whose logits are the mean of theirs.

    weights of each member, by name ─▶ averaged ─▶ weights of one head;  wide: its hidden units

The mean of linear heads is a linear head. Heads with hidden layers lie beside each other in wider ones: each unit sees
its own member alone, and the logits are the mean over all. So an ensemble is served, exported and begun from as any
other model, and costs a window no more than one head.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from birdtune.config import Config
from birdtune.errors import SettingsError
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays

# Heads of which this holds: the mean of cosines to other prototypes, or of other attention, is no head of that kind.
HEADS = ("linear", "mlp")

_LOGITS, _FIRST = "head/logits/", "head/hidden/kernel"


def require(config: Config) -> None:
    """Refuse an ensemble that could not be served as one model, or not be evaluated.

    Raises:
        SettingsError: saying what to change.
    """
    n, model = config.train.ensemble, config.model
    if n is None:
        return
    reason = ""
    if model.freeze_point != ALL_BUT_HEAD:
        reason = (
            f"with --model.freeze {model.freeze_point} each member would have a backbone of its own, and the model "
            f"served would take {n} times as long. Give --model.freeze {ALL_BUT_HEAD}"
        )
    elif model.head not in HEADS:
        give = " or ".join(HEADS)
        reason = f"the mean of several {model.head} heads is no {model.head} head. Give --model.head {give}"
    elif config.init_from is not None:
        reason = (
            "the base model (--init-from) has learnt from recordings that members validate on. Leave --init-from out: "
            "a head is trained in minutes"
        )
    elif config.train.refit:
        reason = "its members learn from all recordings but those of test, so leave --train.refit out"
    if reason:
        raise SettingsError(f"--train.ensemble {n}: {reason}, or leave --train.ensemble out.")


def wide(hidden_units: int | str, n: int) -> int | str:
    """The hidden units of n heads beside each other, as `heads.HeadSizes` has them; 0: they have none."""
    widths = [str(n * int(width)) for width in str(hidden_units).split(",")]
    return int(widths[0]) if len(widths) == 1 else ",".join(widths)


def averaged(members: Sequence[Arrays]) -> Arrays:
    """The weights of one classifier whose logits are the mean of the members' logits.

    Args:
        members: of each, as `classifier.weights` names them: on one backbone, with a head of `HEADS`.

    Raises:
        ValueError: their backbones differ.
    """
    first, *others = members
    found = {}
    for name, array in first.items():
        arrays = [member[name] for member in members]
        if not name.startswith("head/"):
            if not all(np.array_equal(array, other[name]) for other in others):
                raise ValueError(f"members of an ensemble differ in {name}, and cannot share one backbone")
            found[name] = array
        else:
            found[name] = _beside(name, arrays, has_hidden=_FIRST in first).astype(np.float32)
    return found


def _beside(name: str, arrays: Sequence[npt.NDArray[Any]], *, has_hidden: bool) -> npt.NDArray[Any]:
    """One weight of a head out of those of all members."""
    if name.startswith(_LOGITS):
        # [H, C] each → [n H, C]: the sum over all hidden units, so that what is added up is divided here.
        is_joined = has_hidden and name.endswith("kernel")
        wholes = np.asarray(arrays, np.float64)
        return np.concatenate(wholes) / len(arrays) if is_joined else wholes.mean(axis=0)
    if name.endswith("bias"):
        return np.concatenate(arrays)  # [n H]
    if name == _FIRST:
        return np.concatenate(arrays, axis=1)  # [K, n H]
    return np.asarray(scipy.linalg.block_diag(*arrays))  # [n H, n H'], zeros between members
