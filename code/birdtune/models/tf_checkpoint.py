"""TensorFlow checkpoints in: found in whatever form they come, read, and compared with the network.

    V1 file | V2 prefix | folder | .tgz ─▶ {"vggish/conv1/weights": array, …}

Names and shapes are those of Google's VGGish training demo, which jibjib followed. TensorFlow does the
reading, in a process of its own: nothing here loads it into this one.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, shown
from birdtune.models import archive
from birdtune.runtime.files import temporary_folder
from birdtune.runtime.storage import read_error
from birdtune.runtime.workers import Crashed, Isolated

WHERE_TO_GET = (
    "Download Google's weights from https://storage.googleapis.com/audioset/vggish_model.ckpt (289 MB)."
)

# Weights of the network and of jibjib's head; an optimiser's slots end in another word.
_WANTED = re.compile(r"(vggish|mymodel)/(.+/)?(weights|biases)")
# Both checkpoint versions are, or begin with, a sorted string table; these eight bytes end one.
_TABLE_END = bytes.fromhex("57fb808b247547db")
_V2_PART = re.compile(r"(?P<prefix>.*)\.(index|meta|data-\d{5}-of-\d{5})", re.DOTALL)
# A table's own bookkeeping, beyond the numbers in it.
_FORMAT_BYTES = 1 << 20
_NAMES_SHOWN = 8


def read_checkpoint(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The network's weights in a TensorFlow checkpoint, by name; an optimiser's slots are passed over.

    Args:
        path: a file of a V1 Saver; the prefix (or any one file) of a V2 checkpoint; a folder that holds
            one of these; or a .tgz of such a folder, as jibjib publishes.

    Returns:
        float32 arrays "vggish/…/weights", "vggish/…/biases", and "mymodel/…" where there is a head.
        Whether they fit a network is `Backbone.load`'s to say.

    Raises:
        CheckpointError: absent, unreadable, damaged, ambiguous, unsafe, or without VGGish in it.
        RetryableError: no room to unpack an archive, or the storage fails.
    """
    with temporary_folder("checkpoint") as room:
        with _read_faults(path):
            if path.is_file() and archive.is_archive(path):
                archive.unpack(path, room / "archive")
                parts = _parts(_only_checkpoint(room / "archive", path, recursive=True), path)
            elif path.is_dir():
                parts = _parts(_only_checkpoint(path, path, recursive=False), path)
            else:
                parts = _parts(path, path)
            # TensorFlow takes its argument for a pattern and for UTF-8, and a user's folder may be named
            # "[2024] Vögel": it gets links with plain names.
            for suffix, part in parts.items():
                (room / f"model.ckpt{suffix}").symlink_to(part.resolve())
            n_bytes = sum(part.stat().st_size for part in parts.values())
        return _read(room / "model.ckpt", n_bytes, path)


def is_checkpoint(path: Path) -> bool:
    """Whether there may be a checkpoint of TensorFlow in a file, folder or archive. Raises OSError."""
    if path.is_file() and _V2_PART.fullmatch(path.name) is None:
        return archive.is_archive(path) or _is_table(path)
    return path.is_dir() or os.path.lexists(f"{path}.index")


@contextlib.contextmanager
def _read_faults(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading into birdtune's words."""
    try:
        yield
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or type(fault).__name__
        message = f"{shown(path)}: cannot be read ({shown(reason)}). Check the path and its rights."
        raise read_error(fault, path, message, CheckpointError) from fault


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
        return file.read() == _TABLE_END


def _parts(path: Path, source: Path) -> dict[str, Path]:
    """The files of the checkpoint at `path`, by what follows the prefix: one file if it is of V1."""
    if path.is_file() and _V2_PART.fullmatch(path.name) is None:
        if not _is_table(path):
            raise CheckpointError(
                f"{shown(source)}: is not a TensorFlow checkpoint, or its end is missing. Likely cause: a "
                f"download that stopped, or another file under this name. {WHERE_TO_GET}"
            )
        return {"": path}
    match = _V2_PART.fullmatch(path.name)
    prefix = path.with_name(match["prefix"]) if match else path
    siblings = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    parts = {file.name.removeprefix(prefix.name): file for file in siblings if _belongs(file, prefix)}
    if not parts:
        raise CheckpointError(f"{shown(source)}: there is no checkpoint here. {WHERE_TO_GET}")
    for kind in (".index", ".data-"):
        if not any(suffix.startswith(kind) for suffix in parts):
            raise CheckpointError(
                f"{shown(source)}: {shown(prefix.name)}{kind}… is missing beside "
                f"{', '.join(shown(part.name) for part in parts.values())}. A checkpoint of this kind is "
                "several files; copy all of them."
            )
    return parts


def _belongs(file: Path, prefix: Path) -> bool:
    match = _V2_PART.fullmatch(file.name)
    return match is not None and match["prefix"] == prefix.name and file.suffix != ".meta" and file.is_file()


def _only_checkpoint(folder: Path, source: Path, *, recursive: bool) -> Path:
    """The checkpoint in a folder; among several, the one that TensorFlow's `checkpoint` file names."""
    entries = sorted(entry for entry in folder.glob("**/*" if recursive else "*") if entry.is_file())
    tables = [entry for entry in entries if not _V2_PART.fullmatch(entry.name) and _is_table(entry)]
    found = tables + [entry.with_suffix("") for entry in entries if entry.suffix == ".index"]
    if not found:
        raise CheckpointError(f"{shown(source)}: holds no TensorFlow checkpoint. {WHERE_TO_GET}")
    named = {_named_in_state(entry) for entry in entries if entry.name == "checkpoint"}
    chosen = found if len(found) == 1 else [entry for entry in found if entry in named]
    if len(chosen) != 1:
        names = listed([str(entry.relative_to(folder)) for entry in found])
        raise CheckpointError(f"{shown(source)}: holds {len(found)} checkpoints ({names}). Give one of them.")
    return chosen[0]


def _named_in_state(state: Path) -> Path | None:
    match = re.search(r'^model_checkpoint_path:\s*"(.*)"', state.read_text("utf-8", "replace"), re.MULTILINE)
    # Often the absolute path of the machine that trained: only the name can be meant here.
    return state.parent / PurePosixPath(match[1]).name if match else None


def _read(prefix: Path, n_bytes: int, source: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read with TensorFlow, in a process of its own: its reader ends the process over some kinds of damage."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    with Isolated(_variables) as reader:
        try:
            for name, array in reader.items(_Task(prefix, n_bytes, source)):
                found[name] = array
        except Crashed as fault:
            raise CheckpointError(
                f"{shown(source)}: the checkpoint is damaged: TensorFlow's reader died on it. Likely cause: a "
                "download or copy that went wrong, or too little memory; get it again."
            ) from fault
    return found


@dataclass(frozen=True)
class _Task:
    prefix: Path
    n_bytes: int  # of all its files
    source: Path  # what messages call it


def _variables(task: _Task) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # this process has no business there
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(task.prefix))
        shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
        types: dict[str, tf.DType] = reader.get_variable_to_dtype_map()
        wanted = [name for name in sorted(shapes) if _WANTED.fullmatch(name) and types[name].is_floating]
        _check_sizes(task, shapes, {name: types[name].size for name in wanted})
        for name in wanted:
            yield name, np.asarray(reader.get_tensor(name), np.float32)
    except CheckpointError:
        raise
    except Exception as fault:  # whatever it is (OpError, IndexError, ValueError …), the file is the cause
        message = (
            f"{shown(task.source)}: the checkpoint is damaged: TensorFlow cannot read what it lists. Likely "
            "cause: a download or copy that went wrong; get it again."
        )
        raise read_error(fault, task.source, message, CheckpointError) from fault


def _check_sizes(task: _Task, shapes: Mapping[str, list[int]], item_bytes: Mapping[str, int]) -> None:
    """Refuse another network, and what cannot be in files of this size: a damaged shape could ask for all memory.

    Args:
        shapes: of all variables in the checkpoint.
        item_bytes: of one number of each variable that is wanted.
    """
    if not any(name.startswith("vggish/") for name in item_bytes):
        raise CheckpointError(
            f"{shown(task.source)}: is a checkpoint of another network: no variable in it is named "
            f"vggish/…/weights. It holds {listed(shapes) or 'nothing'}. {WHERE_TO_GET}"
        )
    needed = sum(float(np.prod(shapes[name], dtype=np.float64)) * size for name, size in item_bytes.items())
    if needed > task.n_bytes + _FORMAT_BYTES:
        raise CheckpointError(
            f"{shown(task.source)}: holds {task.n_bytes / 1e6:.1f} MB, but its variables take {needed / 1e6:.1f} "
            "MB. Likely cause: a download or copy that stopped; get it again."
        )


# ---- does it fit? -------------------------------------------------------------------------------


def check_variables(
    found: Mapping[str, npt.NDArray[np.generic]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    strict: bool = False,
) -> None:
    """Compare what was found with what a network needs, and tell all differences at once.

    Args:
        found: arrays by name.
        expected: shapes by name.
        source: what the message calls the origin of the arrays.
        strict: whether names that are not expected are a fault too.

    Raises:
        CheckpointError: naming every missing, misshapen and non-finite variable.
    """
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {', '.join(missing)}")
    present = [name for name in expected if name in found]
    if misshapen := [name for name in present if found[name].shape != expected[name]]:
        faults.append(
            "of another shape: "
            + "; ".join(
                f"{name} is {list(found[name].shape)}, not {list(expected[name])}" for name in misshapen
            )
        )
    if broken := [name for name in present if not np.isfinite(found[name]).all()]:
        faults.append(f"holding NaN or infinity: {', '.join(broken)}")
    others = [name for name in found if name not in expected]
    if faults or (strict and others):
        if others:
            faults.append(f"not expected, but there: {listed(others)}")
        raise CheckpointError(
            f"{source}: does not fit this network. Variables {'. Variables '.join(faults)}. "
            "Likely cause: the file is of another network or was trained with other model settings; "
            "give the matching checkpoint, or set the model as it was trained."
        )


def listed(names: Collection[str]) -> str:
    """The first few names, safe to print, and how many more there are."""
    first = ", ".join(shown(name) for name in sorted(names)[:_NAMES_SHOWN])
    return f"{first} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else first
