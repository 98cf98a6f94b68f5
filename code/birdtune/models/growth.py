"""The weights of a served classifier put into one with more columns.

    old weights [.., C], fresh weights [.., C + n], both by name ─▶ grown ─▶ weights [.., C + n]

Old columns come first and keep their numbers. A new one begins as the mean of the old ones, and a little of its own:
the exponential of a mean is never above the mean of the exponentials, so that a new class begins with a share of
1 / (C + 1) of a softmax at most, whatever is heard, and does not drown what was learnt (J. Hewitt, "Initializing new
word embeddings for pretrained language models", 2021).

New prototypes are fresh ones: the mean of prototypes points to what all sounds have in common, and would be like each
of them. Fresh ones are like nothing that was learnt.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[np.float32]]

# The last one has a column a class with the head sed-attention, and else one for all.
_COLUMNS = ("head/logits/kernel", "head/logits/bias", "head/logits/log_scale", "attention/attention/kernel")


def grown(old: Arrays, fresh: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """The weights to begin with.

    Args:
        old: of the served classifier.
        fresh: of the new one, drawn from its seed; of them only what new columns have of their own is used.
    """
    found = {name: np.asarray(array) for name, array in old.items()}
    for name in _COLUMNS:
        if name not in found or name not in fresh:
            continue  # not of this head, or of another network, which whoever loads them will say
        kept, drawn = found[name], fresh[name]
        if kept.shape[:-1] != drawn.shape[:-1]:
            continue  # of another network, which whoever loads them will say
        n_old = kept.shape[-1]
        mean = kept.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        # A fresh bias is the same for all columns, and a prior that the mean of learnt ones is better than.
        own = drawn[..., n_old:] if kept.ndim > 1 else np.zeros_like(drawn[n_old:])
        found[name] = np.concatenate([kept, own if kept.ndim == 3 else mean + own], axis=-1)
    return found
