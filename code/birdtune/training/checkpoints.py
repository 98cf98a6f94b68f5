"""Checkpoints: atomic, checksummed, few.

    weights, optimizer, State ─▶ checkpoints/<v>/epoch-0007-step-000000/
                                     weights.safetensors  optimizer.safetensors  state.json
                             checkpoints/<v>/weights-epoch-0007.safetensors   where every epoch's stay

`epoch-E-step-S` says what comes next: epoch E (from 0), batch S. A folder appears under its name only
when it is whole; state.json holds the checksums of all three, so that one that was damaged later is
found out, named and passed over for the one before. safetensors holds nothing that could be executed.

Which epoch is the best stands in the newest state, and nowhere else: a second place could disagree with
it after a kill between the two. Its folder is kept for as long as it is the best.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import xxhash

from birdtune.errors import CheckpointError, shown
from birdtune.runtime.files import new_file, new_folder, read_json, value_sha256, write_json
from birdtune.runtime.storage import UNFINISHED, free_bytes, need_space, read_error, size_text

Arrays = Mapping[str, npt.NDArray[Any]]

_NAME = re.compile(r"^epoch-(\d+)-step-(\d+)$")
WEIGHTS_NAME = "weights.safetensors"
# numpy's name of a type → that of safetensors
_TYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "|u1": "U8", "|b1": "BOOL"}
_OF_EPOCHS = "weights-epoch-{}.safetensors"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"
# Checksums find damage, not forgery, so that the faster hash will do for arrays. Earlier checkpoints have the other.
_XXH3, _SHA256 = "xxh3_128", "sha256"
_HASHES: Mapping[str, Any] = {_XXH3: xxhash.xxh3_128, _SHA256: hashlib.sha256}
# After so many bytes the disk begins to write them.
_PIECE_BYTES = 4 << 20


@dataclass
class State:
    """Where training stands: all that it needs to go on as if it had never stopped."""

    epoch: int = 0  # the epoch that comes next or is under way, from 0
    step: int = 0  # batches of it that are done
    updates: int = 0  # of the weights, over all epochs
    loss_sum: float = 0.0  # of this epoch so far, weighted
    weight_sum: float = 0.0
    seconds: float = 0.0  # of this epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)  # one row an epoch; 0 is before the first update
    best: dict[str, Any] | None = None  # the row of the best epoch
    finished: bool = False
    trace: list[list[float]] = field(default_factory=list)  # [update, loss, learning rate] now and then

    @property
    def stale_epochs(self) -> int:
        """Epochs since the best one."""
        return int(self.history[-1]["epoch"]) - int(self.best["epoch"]) if self.best else 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back."""

    weights: Arrays
    optimizer: Arrays
    state: State


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: theirs alone.
        keep: how many of the newest stay; the best one stays beside them.
        every_epoch: whether the weights at the end of each epoch stay as well.
    """

    def __init__(self, folder: Path, keep: int, *, every_epoch: bool = False) -> None:
        self.folder = folder
        self._keep = keep
        self._every_epoch = every_epoch

    def names(self) -> list[str]:
        """Names of all whole checkpoints, oldest first."""
        try:
            found = [entry.name for entry in self.folder.iterdir() if _NAME.match(entry.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=_position)

    def save(self, weights: Arrays, optimizer: Arrays, state: State) -> Path:
        """Write a checkpoint, and remove those that are neither among the newest nor the best.

        Raises:
            RetryableError, InputError: the storage refuses (see files.storage_faults).
        """
        path = self.folder / _name(state.epoch, state.step)
        parts = {WEIGHTS_NAME: weights, _OPTIMIZER: optimizer}
        n_bytes = sum(array.nbytes for arrays in parts.values() for array in arrays.values())
        free = free_bytes(self.folder)
        if free is not None and free < n_bytes:
            # Whoever lowered --train.keep-checkpoints to make room has it now, not after the checkpoint that has none.
            self.tidy(self._newest_state() or state)
        with new_folder(path, what="a checkpoint", needed=n_bytes) as building:
            # Side by side: writing and hashing both let go of the interpreter.
            with ThreadPoolExecutor(len(parts)) as threads:
                found = threads.map(lambda name: write_arrays(building / name, parts[name]), parts)
                sums = dict(zip(parts, found, strict=True))
            stored = asdict(state)
            write_json(building / _STATE, {_XXH3: sums, _SHA256: {_STATE: value_sha256(stored)}, "state": stored})
        self.tidy(state)
        return path

    def need_room(self, n_bytes: int, n_to_come: int, weights_bytes: int) -> None:
        """Refuse to begin what will have no room: as many checkpoints as stand beside each other at a time.

        Args:
            n_bytes: of one.
            n_to_come: how many are still to be saved at the end of an epoch.
            weights_bytes: of its weights alone.

        Raises:
            RetryableError: the disk is too full.
        """
        there = len(self.names())
        n_more = max(0, min(self._keep + 1, there + n_to_come) - there)
        what = f"{n_more} more checkpoints, as --train.keep-checkpoints allows ({size_text(n_bytes)} each)"
        of_epochs = n_to_come * weights_bytes if self._every_epoch else 0
        if of_epochs:
            what += f" and the weights of {n_to_come} epochs (--train.keep-weights; {size_text(weights_bytes)} each)"
        need_space(self.folder, n_more * n_bytes + of_epochs, what)

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def tidy(self, state: State) -> None:
        """Remove what a job that stands at `state` needs no more: all but the newest and the best.

        Where every epoch's weights stay, they are kept here, before their checkpoint goes.

        What reaches further is damaged, or it would not stand here: it would count as the newest, in the place of
        those that are whole.
        """
        names = self.names()
        reached = [name for name in names if _position(name) <= (state.epoch, state.step)]
        for name in reached if self._every_epoch else ():
            self._keep_weights(name)
        for path in self.folder.glob(_OF_EPOCHS.format("*")):
            if path.name > _OF_EPOCHS.format(f"{state.epoch:04d}"):  # of an epoch that is done again
                path.unlink()
        wanted = {*reached[-self._keep :], _best_name(state)}
        for name in [name for name in names if name not in wanted]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for left in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _keep_weights(self, name: str) -> None:
        """Keep the weights of a checkpoint at the end of an epoch: the same file under a second name, if possible."""
        epoch, step = _position(name)
        path = self.folder / _OF_EPOCHS.format(f"{epoch:04d}")
        if step or path.exists():
            return
        with new_file(path, "the weights of an epoch") as temporary:
            try:
                temporary.hardlink_to(self.folder / name / WEIGHTS_NAME)
            except OSError:  # a file system without links
                shutil.copyfile(self.folder / name / WEIGHTS_NAME, temporary)

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with newer ones that had to be passed over."""
        complaints: list[str] = []
        for name in reversed(self.names()):
            try:
                folder = self.folder / name
                state = _read_state(folder, (WEIGHTS_NAME, _OPTIMIZER))
                return Saved(
                    read_arrays(folder / WEIGHTS_NAME), read_arrays(folder / _OPTIMIZER), state
                ), complaints
            except CheckpointError as fault:
                complaints.append(str(fault))
        return None, complaints

    def best(self) -> Arrays:
        """The weights that validation chose.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        state = self._newest_state()
        name = _best_name(state) if state is not None else None
        if name is None:
            raise CheckpointError(
                f"{shown(self.folder)}: no trained weights. `./entrypoint.sh train` makes them."
            )
        _read_state(self.folder / name, (WEIGHTS_NAME,))
        return read_arrays(self.folder / name / WEIGHTS_NAME)

    def lost(self) -> str | None:
        """Why the weights of the best epoch cannot be had, if there was one; None if all is well."""
        state = self._newest_state()
        if state is None or state.best is None:
            return None
        try:
            self.best()
        except CheckpointError as fault:
            return str(fault)
        return None

    def _newest_state(self) -> State | None:
        for name in reversed(self.names()):
            with contextlib.suppress(CheckpointError):
                return _read_state(self.folder / name, (WEIGHTS_NAME, _OPTIMIZER))
        return None


def _name(epoch: int, step: int) -> str:
    return f"epoch-{epoch:04d}-step-{step:06d}"


def _best_name(state: State) -> str | None:
    return _name(int(state.best["epoch"]), 0) if state.best is not None else None


def _position(name: str) -> tuple[int, int]:
    match = _NAME.match(name)
    assert match is not None
    return int(match[1]), int(match[2])


def write_arrays(path: Path, arrays: Arrays) -> str:
    """Write arrays as a safetensors file and return its XXH3 of 128 bits, in hexadecimal.

    The library's own writer would copy every array first and leave the file to be read again for its
    checksum, which for 72 million weights and Adam's two moments (866 MB) took two to three times as long.
    Hashing, writing and the disk work at the same time, which counts where many processes share few cores.
    Layout: https://github.com/huggingface/safetensors#format; the same arrays give the same bytes.

    Raises:
        OSError: the storage refuses.
    """
    # Large items first, as the library sorts them, so that each array begins at a multiple of its item's size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.str], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blocks: list[Any] = [len(text).to_bytes(8, "little"), text]
    blocks += [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, array in ordered]
    with ThreadPoolExecutor(1) as thread, path.open("wb", buffering=0) as file:
        digest = thread.submit(_xxh3, blocks)
        for block in blocks:
            for begin in range(0, len(block), _PIECE_BYTES):
                _write(file, memoryview(block)[begin : begin + _PIECE_BYTES])
    return digest.result()


def _xxh3(blocks: Iterable[Any]) -> str:
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _write(file: IO[bytes], piece: memoryview) -> None:
    """Write a piece whole, and let the disk begin with it: left to itself, the system begins when all is written."""
    begin, left = file.tell(), piece
    while left:
        left = left[file.write(left) :]
    with contextlib.suppress(OSError):  # not every file system does so
        os.posix_fadvise(file.fileno(), begin, len(piece), os.POSIX_FADV_DONTNEED)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name from a safetensors file.

    Raises:
        CheckpointError: absent, or not a whole safetensors file.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, LookupError) as fault:
        # TypeError, LookupError: of kinds of numbers that numpy does not have.
        reason = shown(str(fault)[:200])
        message = f"{shown(path)}: is not a whole safetensors file ({reason})."
        raise read_error(fault, path, message, CheckpointError) from fault


def _read_state(folder: Path, files: tuple[str, ...]) -> State:
    stored = read_json(folder / _STATE)
    try:
        of_arrays = _XXH3 if _XXH3 in stored else _SHA256
        sums = {name: stored[of_arrays][name] for name in files}
        if stored[_SHA256][_STATE] != value_sha256(stored["state"]):
            raise ValueError("another state than was written")
        state = State(**stored["state"])
    except (TypeError, LookupError, ValueError, RecursionError) as fault:
        raise CheckpointError(
            f"{shown(folder / _STATE)}: is damaged; the checkpoint is passed over."
        ) from fault
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or _file_checksum(path, _HASHES[of_arrays]) != expected:
            raise CheckpointError(
                f"{shown(path)}: does not match its checksum; the checkpoint is passed over."
            )
    return state


def _file_checksum(path: Path, new: Callable[[], Any]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, new).hexdigest()
