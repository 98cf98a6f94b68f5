"""bfloat16 on this processor: whether it multiplies it, and having TensorFlow do so.

A float32 with 8 bits of mantissa in place of 24. Products take about half of the time where the processor has
instructions for it (AVX512-BF16, AMX): `bench predict`. Elsewhere they take longer than those of float32.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FLAGS: Final = ("amx_bf16", "avx512_bf16")  # the faster one first


def cpuinfo(key: str) -> str:
    """What Linux says of the first processor, e.g. its "model name"; "": nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def instructions() -> str | None:
    """The fastest instructions for products of bfloat16 that this processor has; None: none."""
    flags = cpuinfo("flags").split()
    return next((flag for flag in _FLAGS if flag in flags), None)


def use(on: bool = True) -> None:
    """From now on, have graphs of float32 multiply and convolve in bfloat16, and add in float32."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": on})


@contextlib.contextmanager
def used() -> Iterator[None]:
    """`use`, while the block lasts."""
    use()
    try:
        yield
    finally:
        use(False)
