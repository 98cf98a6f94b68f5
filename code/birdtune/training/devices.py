"""What this machine computes with, and which precision is fast on it.

TensorFlow is imported here: only stages that compute come this way.
"""

import contextlib
import functools
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.client import device_lib

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import InputError
from birdtune.runtime import bfloat16

# The wheel of TensorFlow 2.21 has kernels and PTX up to compute capability 9.0; on 10 and above
# (Blackwell) it fails in the middle of training.
_FIRST_UNSUPPORTED_CAPABILITY = (10, 0)
# On a CPU a model is given at most so many bytes of windows at a time: 8 windows of BirdNET, 200 of YAMNet. With 64 of
# BirdNET what its layers make fills gigabytes, which the system must clear anew for each batch.
_CPU_BATCH_BYTES = 5_000_000


@dataclass(frozen=True)
class Hardware:
    """The machine, for run.json and the report."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str  # "none", or its name and compute capability
    platform: str

    def rows(self) -> dict[str, str]:
        """As text, for the report."""
        return {name: str(value) for name, value in asdict(self).items()}


def _gpus() -> list[tuple[str, tuple[int, int]]]:
    found = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        found.append(
            (str(details.get("device_name", "GPU")), tuple(details.get("compute_capability") or (0, 0)))
        )
    return found


@functools.cache
def prepare_devices() -> str:
    """Make runs repeatable and find the GPU; return one line that says what will compute.

    To be called before anything is computed; later calls only return the line.

    Raises:
        InputError: the GPU is newer than this TensorFlow can use.
    """
    tf.config.experimental.enable_op_determinism()
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    for name, capability in _gpus():
        if capability >= _FIRST_UNSUPPORTED_CAPABILITY:
            version = ".".join(map(str, capability))
            raise InputError(
                f"{name}: has compute capability {version}, and TensorFlow {tf.__version__} computes up to 9.x "
                "only. Use an older card, or hide it (CUDA_VISIBLE_DEVICES=-1) to train on the CPU."
            )
    hardware = describe()
    if hardware.gpu == "none":
        built = " although this TensorFlow is built for one" if tf.test.is_built_with_cuda() else ""
        return f"no GPU found{built}; computing on the CPU ({hardware.cpu}, {hardware.cores} cores)"
    return f"computing on {hardware.gpu}"


def share_cores(n_here: int) -> None:
    """Leave the other processes of this machine their share of the cores, where these compute.

    To be called before anything is computed.
    """
    if not has_gpu() and n_here > 1 and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, len(os.sched_getaffinity(0)) // n_here))


def describe() -> Hardware:
    """The machine this runs on."""
    gpus = _gpus()
    return Hardware(
        cpu=bfloat16.cpuinfo("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        gpu=", ".join(f"{name} (compute capability {major}.{minor})" for name, (major, minor) in gpus)
        or "none",
        platform=platform.platform(),
    )


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def windows_at_once(batch_size: int, front_end: FrontEnd) -> int:
    """How many windows a model is given at a time: `batch_size` on a GPU, on a CPU fewer if they are large."""
    window_bytes = math.prod(front_end.window_shape) * np.dtype(np.float32).itemsize
    return batch_size if has_gpu() else max(1, min(batch_size, _CPU_BATCH_BYTES // window_bytes))


def tensor(array: npt.NDArray[Any]) -> Any:
    """An array as TensorFlow's; float16 becomes float32 where there is no GPU.

    oneDNN, which computes then, has nothing for float16 on most processors, and writes that to standard error.
    """
    widened = array.astype(np.float32) if array.dtype == np.float16 and not has_gpu() else array
    return tf.constant(widened)


def memory_bytes() -> int:
    """Bytes of memory of the smallest GPU that TensorFlow may use; 0 without one."""
    limits = [
        int(device.memory_limit) for device in device_lib.list_local_devices() if device.device_type == "GPU"
    ]
    return min(limits, default=0)


def multiplies_better_than_it_convolves(precision: str) -> bool:
    """Whether gradients of narrow convolutions are faster as matrix products (see convolution.py).

    So it was measured on a processor with bfloat16 in AVX-512. With AMX oneDNN has other kernels for both.
    """
    return precision == "mixed_bfloat16" and bfloat16.instructions() == "avx512_bf16" and not has_gpu()


def choose_precision(setting: str, *, gains_on_cpu: bool) -> tuple[str, str]:
    """Resolve `train.precision`.

    Args:
        setting: as it stands in the settings.
        gains_on_cpu: whether the network is faster in bfloat16 on a CPU that has instructions for it.

    `auto` decides by what the hardware has instructions for, not by a stop-watch: a job that resumes,
    or runs twice, must come to the same choice.

    Returns:
        the keras dtype policy, and why.
    """
    if setting != "auto":
        return setting, "as set"
    capabilities = [capability for _, capability in _gpus()]
    if capabilities:
        lowest = min(capabilities)
        if lowest >= (8, 0):
            return (
                "mixed_bfloat16",
                "the GPU multiplies bfloat16 in its tensor cores (compute capability 8 or more)",
            )
        if lowest >= (7, 0):
            return "mixed_float16", "the GPU multiplies float16 in its tensor cores, but not bfloat16"
        return "float32", "the GPU has no tensor cores"
    flag = bfloat16.instructions()
    if flag is None:
        return "float32", "this CPU has no bfloat16 instructions, without which bfloat16 would be slower"
    if not gains_on_cpu:
        return "float32", f"this CPU multiplies bfloat16 ({flag}), but this network is no faster with it"
    return "mixed_bfloat16", f"this CPU multiplies bfloat16 ({flag}), about twice as fast as float32"


@contextlib.contextmanager
def compiling_often() -> Iterator[None]:
    """While the block lasts, TensorFlow does not warn of steps that are compiled anew: each candidate has its own."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
