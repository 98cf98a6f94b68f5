"""Files of embeddings, read: recordings with labels and a split, and no sound.

    file or folder ─▶ header ─▶ what made the embeddings, and how many numbers one has
                   ─▶ read ─▶ EmbeddedRecording, one after another

They are those that `embed` writes, find-tune's `.npz`, and records as AudioSet and YouTube-8M come in. Rows of a
recording stand one behind another; a recording at a time is in memory.
"""

import contextlib
import functools
import itertools
import math
import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from birdtune.data.embedding_files import (
    METADATA,
    EmbeddedRecording,
    Labels,
    MadeBy,
    read_metadata,
    require_pyarrow,
)
from birdtune.errors import InputError, shown
from birdtune.runtime.storage import read_error
from birdtune.runtime.tensorflow_import import load_tensorflow

ENDINGS = (".npz", ".parquet", ".tfrecord")
# Of windows of which a file does not say how far apart they are: VGGish's, as those of AudioSet.
USUAL_HOP_S, USUAL_RATE_HZ = 0.96, 16_000

_PIECE = 4096  # rows at a time
_WIDEST = 1 << 16  # numbers in an embedding
_LARGEST_ROW, _LARGEST_ARRAY = 1 << 20, 16 << 20  # bytes
# What TensorFlow puts around a reason: where in its own graph it arose.
_OF_TENSORFLOW = re.compile(r"\{\{.*?\}\} |\[Op:.*", re.DOTALL)
# YouTube-8M keeps numbers from -2 to 2 in a byte each.
_QUANTISED, _QUANTISED_BIAS = np.float32(4 / 255), np.float32(4 / 512 - 2)


@dataclass(frozen=True)
class Header:
    """What a file says before its rows."""

    size: int  # numbers in an embedding
    made: MadeBy | None  # None: it does not say


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some rows."""

    names: Sequence[str]  # [n] recording of each
    embeddings: npt.NDArray[np.float32]  # [n, K]
    labels: Sequence[Labels]  # [n]
    start_s: npt.NDArray[np.float64] | None = None  # [n]
    splits: Sequence[str] | None = None  # [n]


def is_embeddings(path: Path) -> bool:
    """Whether data are embeddings: a file with an ending of theirs, or a folder that holds nothing else."""
    if path.is_file():
        return path.suffix.lower() in ENDINGS
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            return bool(visible) and all(entry.name.lower().endswith(ENDINGS) and entry.is_file() for entry in visible)
    except OSError:
        return False  # whoever lists the folder says what is wrong with it


def files_of(path: Path) -> list[Path]:
    """The file, or those in a folder, sorted."""
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if not file.name.startswith("."))


def header(path: Path) -> Header:
    """What the files say of their embeddings, read once as long as they stay as they are.

    Raises:
        InputError: they are damaged, differ, or are not embeddings.
        RetryableError: the storage fails.
    """
    files = files_of(path)
    stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))
    return _header(tuple(files), stamps)


@functools.lru_cache(maxsize=4)
def _header(files: tuple[Path, ...], stamps: object) -> Header:
    del stamps  # other files are read anew
    first, *others = [_READERS[file.suffix.lower()](file).header() for file in files]
    for file, own in zip(files[1:], others, strict=True):
        if own.size != first.size:
            raise InputError(
                f"{shown(file)}: its embeddings have {own.size:,} numbers, and those of {shown(files[0])} "
                f"{first.size:,}. Give files of one backbone."
            )
        if own.made is not None and first.made is not None and own.made.digest != first.made.digest:
            raise InputError(
                f"{shown(file)}: its embeddings are of {shown(own.made.backbone or 'another backbone')} "
                f"({own.made.digest[:12]}…), and those of {shown(files[0])} of {shown(first.made.backbone)} "
                f"({first.made.digest[:12]}…). Give files of one backbone."
            )
    return first


def made_by(path: Path) -> MadeBy:
    """What made the embeddings, or is taken to have where the files do not say it.

    Then windows are as far apart as the times of the first recording say that has several, or else as VGGish's.

    Raises: as `header`.
    """
    stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files_of(path)))
    return header(path).made or _usual(path, stamps)


@functools.lru_cache(maxsize=4)
def _usual(path: Path, stamps: object) -> MadeBy:
    del stamps  # other files are read anew
    with contextlib.closing(read(path)) as recordings:
        steps = (np.diff(recording.start_s) for recording in itertools.islice(recordings, 100))
        hop_s = next((float(np.median(step)) for step in steps if step.size and np.median(step) > 0), USUAL_HOP_S)
    return MadeBy("", "", USUAL_RATE_HZ, hop_s, hop_s, "")


def read(path: Path) -> Generator[EmbeddedRecording]:
    """The recordings of the files, one after another; names and labels are safe to show.

    Raises:
        InputError: the files are damaged, empty, or hold what is no embedding.
        RetryableError: the storage fails.
    """
    size = header(path).size
    seen: set[str] = set()
    for file in files_of(path):
        for recording in _joined(_READERS[file.suffix.lower()](file).chunks()):
            where = f"{shown(file)}: recording {recording.name}"
            if recording.name in seen:
                raise InputError(
                    f"{where} stands in two places. Sort the rows by recording, and keep each recording in one file."
                )
            seen.add(recording.name)
            if recording.embeddings.shape[1] != size:
                raise InputError(
                    f"{where} has embeddings of {recording.embeddings.shape[1]:,} numbers, and others have {size:,}. "
                    "Write them again, by one backbone."
                )
            if not np.isfinite(recording.embeddings).all():
                row = int(np.flatnonzero(~np.isfinite(recording.embeddings).all(axis=1))[0])
                raise InputError(f"{where} has NaN or infinity in window {row + 1:,}. Write it again, or take it out.")
            yield recording
    if not seen:
        raise InputError(f"{shown(path)}: is empty: there is no embedding in it. Write it again.")


def _joined(chunks: Iterator[_Chunk]) -> Iterator[EmbeddedRecording]:
    """Rows with the same recording, one behind another, as one."""
    waiting: list[_Chunk] = []
    for chunk in chunks:
        names = np.array(chunk.names, object)
        begins = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1), len(names)] if len(names) else [0]
        for begin, end in itertools.pairwise(begins):
            if waiting and waiting[0].names[0] != names[begin]:
                yield _recording(waiting)
                waiting = []
            part = slice(begin, end)
            waiting.append(
                _Chunk(
                    chunk.names[part], chunk.embeddings[part], chunk.labels[part],
                    None if chunk.start_s is None else chunk.start_s[part],
                    None if chunk.splits is None else chunk.splits[part],
                )
            )  # fmt: skip
    if waiting:
        yield _recording(waiting)


def _recording(parts: Sequence[_Chunk]) -> EmbeddedRecording:
    embeddings = np.concatenate([part.embeddings for part in parts])
    starts = [part.start_s for part in parts if part.start_s is not None]
    start_s = np.concatenate(starts) if starts else np.zeros(0)
    labels = tuple(_named(row) for part in parts for row in part.labels)
    splits = {name.strip() for part in parts for name in part.splits or ()}
    split = shown(next(iter(splits))) if len(splits) == 1 else ""
    classes = tuple(dict.fromkeys(name for row in labels for name in row))
    return EmbeddedRecording(_safe(parts[0].names[0]), embeddings, start_s, start_s, labels, classes, split)


def _named(row: Labels) -> Labels:
    return tuple(dict.fromkeys(name for name in map(_safe, row) if name))


@functools.lru_cache(maxsize=4096)
def _safe(name: str) -> str:
    return shown(unicodedata.normalize("NFC", name.strip()))


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What libraries raise of a damaged file, in one sentence."""
    try:
        yield
    except InputError:
        raise
    except OSError as fault:
        raise read_error(fault, file, f"{shown(file)}: cannot be read ({_why(fault)}).") from fault
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as fault:
        raise _damaged(file, fault) from fault
    except Exception as fault:
        # Of TensorFlow (DataLossError), of protobuf (DecodeError), whose modules are not loaded for other files.
        if not type(fault).__module__.startswith(("tensorflow.", "google.")):
            raise
        raise _damaged(file, fault) from fault


def _damaged(file: Path, fault: Exception) -> InputError:
    return InputError(
        f"{shown(file)}: is damaged, or no file of embeddings ({type(fault).__name__}: {_why(fault)}). Copy or write "
        "it again."
    )


def _why(fault: Exception) -> str:
    words = _OF_TENSORFLOW.sub("", str(fault))
    return shown(" ".join(words.split())[:200])


def _lacks(file: Path, what: str, there: Sequence[str]) -> InputError:
    names = ", ".join(map(shown, there[:12])) or "nothing"
    return InputError(f"{shown(file)}: has no {what}; there is {names}. docs/embeddings.md says what is read.")


def _require_size(file: Path, size: int) -> int:
    if not 0 < size <= _WIDEST:
        raise InputError(f"{shown(file)}: its embeddings have {size:,} numbers; expected are 1 to {_WIDEST:,}.")
    return size


# ---- .npz ---------------------------------------------------------------------------------------


class _Array:
    """An array of an .npz, read from its first row to its last."""

    def __init__(self, file: Path, archive: zipfile.ZipFile, name: str) -> None:
        self._stream: IO[bytes] = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read_header(self._stream)
        if self.dtype.hasobject:
            raise InputError(
                f"{shown(file)}: its array `{name}` holds pickled objects, which could run code when they are read. "
                "Save it anew with an array of numbers or of strings (dtype float32, str)."
            )
        if fortran and len(self.shape) > 1:
            raise InputError(f"{shown(file)}: its array `{name}` is stored by columns. Save np.ascontiguousarray(it).")
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._row_bytes > _LARGEST_ROW:
            raise InputError(f"{shown(file)}: a row of its array `{name}` takes {self._row_bytes:,} bytes.")

    def __len__(self) -> int:
        return int(self.shape[0]) if self.shape else 0

    def take(self, n: int) -> npt.NDArray[Any]:
        """The next n rows. Raises EOFError."""
        return self._read((n, *self.shape[1:]), n * self._row_bytes)

    def whole(self) -> npt.NDArray[Any]:
        """All of a small array."""
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        if n_bytes > _LARGEST_ARRAY:
            raise ValueError(f"{n_bytes:,} bytes where some thousand are expected")
        return self._read(self.shape, n_bytes)

    def _read(self, shape: tuple[int, ...], n_bytes: int) -> npt.NDArray[Any]:
        found = self._stream.read(n_bytes)
        if len(found) < n_bytes:
            raise EOFError("an array breaks off")
        return np.frombuffer(found, self.dtype).reshape(shape)


def _numbers(rows: npt.NDArray[Any], made: MadeBy | None) -> npt.NDArray[np.float32]:
    """Embeddings as they are trained on: of quantised ones, what their bytes stand for."""
    found = rows.astype(np.float32)
    return np.asarray(found * _QUANTISED + _QUANTISED_BIAS, np.float32) if made and made.quantised else found


class _Npz:
    def __init__(self, file: Path) -> None:
        self._file = file

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[list[str], Callable[[str], _Array]]]:
        with _reading(self._file), zipfile.ZipFile(self._file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            yield names, lambda name: _Array(self._file, archive, name)

    def _embeddings(self, names: list[str], array: Callable[[str], _Array]) -> _Array:
        name = next((name for name in ("embeddings", "X") if name in names), None)
        if name is None:
            raise _lacks(self._file, "array `embeddings`, nor find-tune's `X`", names)
        found = array(name)
        if len(found.shape) not in (2, 3) or found.dtype.kind not in "fiu":
            raise InputError(
                f"{shown(self._file)}: its array `{name}` is {found.dtype} {list(found.shape)}; expected are numbers "
                "[rows, K], or [recordings, windows, K] as find-tune has them."
            )
        return found

    def header(self) -> Header:
        with self._open() as (names, array):
            size = self._embeddings(names, array).shape[-1]
            made = None
            if METADATA in names:
                made = read_metadata(str(array(METADATA).whole()), shown(self._file))
            return Header(_require_size(self._file, size), made)

    def chunks(self) -> Iterator[_Chunk]:
        with self._open() as (names, array):
            embeddings, made = self._embeddings(names, array), self.header().made
            n, windows = len(embeddings), embeddings.shape[1] if len(embeddings.shape) == 3 else 1

            def column(*possible: str) -> _Array | None:
                name = next((name for name in possible if name in names), None)
                found = array(name) if name is not None else None
                if found is not None and len(found) != n:
                    raise InputError(
                        f"{shown(self._file)}: its array `{name}` has {len(found):,} rows, and the embeddings {n:,}."
                    )
                return found

            recording, labels = column("recording", "i"), column("labels", "label", "class", "y")
            start_s, split = column("start_s", "s"), column("split")
            classes = [str(name) for name in array("classes").whole()] if "classes" in names else []
            for begin in range(0, n, step := max(1, _PIECE // max(1, windows))):
                count = min(step, n - begin)
                rows = _numbers(embeddings.take(count).reshape(count * windows, -1), made)
                own = _texts(recording.take(count)) if recording else [f"{begin + k + 1}" for k in range(count)]
                named = _labels(labels.take(count), classes) if labels else [()] * count
                splits = _texts(split.take(count)) if split else None
                times = None
                if start_s is not None and start_s.dtype.kind in "fiu" and windows == 1:
                    times = start_s.take(count).astype(np.float64)
                each = [row for row in range(count) for _ in range(windows)]
                yield _Chunk(
                    [own[row] for row in each], rows, [named[row] for row in each], times,
                    None if splits is None else [splits[row] for row in each],
                )  # fmt: skip


def _texts(values: npt.NDArray[Any]) -> list[str]:
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _labels(values: npt.NDArray[Any], classes: Sequence[str]) -> list[Labels]:
    """Labels of rows: a name, a number, or a column for each class."""
    if values.dtype.kind in "US":
        return [(name,) if name else () for name in _texts(values)]

    def name(column: int) -> str:
        return classes[column] if column < len(classes) else str(column)

    if values.ndim == 1:
        return [(name(int(value)),) if value >= 0 else () for value in values]
    return [tuple(name(int(column)) for column in np.flatnonzero(row)) for row in values]


# ---- Parquet ------------------------------------------------------------------------------------


class _Parquet:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._parquet = require_pyarrow(shown(file))[1]

    def _open(self) -> Any:
        # Without these two all of a row group is read at once, and more than one.
        return self._parquet.ParquetFile(self._file, pre_buffer=False, buffer_size=1 << 20)

    def _embeddings(self, schema: Any) -> str:
        import pyarrow

        for name in ("embedding", "embeddings"):
            kind = schema.field(name).type if name in schema.names else None
            lists = pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list
            if kind is not None and any(is_list(kind) for is_list in lists):
                return name
        raise _lacks(self._file, "column `embedding` of lists of numbers", schema.names)

    def header(self) -> Header:
        with _reading(self._file), self._open() as file:
            name = self._embeddings(file.schema_arrow)
            first = next(file.iter_batches(batch_size=1, columns=[name]), None)
            if first is None or not len(first):
                raise InputError(f"{shown(self._file)}: is empty: there is no embedding in it. Write it again.")
            text = (file.schema_arrow.metadata or {}).get(METADATA.encode())
            made = None if text is None else read_metadata(text.decode("utf-8", "replace"), shown(self._file))
            return Header(_require_size(self._file, len(first.column(0)[0].as_py() or ())), made)

    def chunks(self) -> Iterator[_Chunk]:
        with _reading(self._file), self._open() as file:
            there = file.schema_arrow.names
            vectors, header = self._embeddings(file.schema_arrow), self.header()
            if "recording" not in there:
                raise _lacks(self._file, "column `recording`", there)
            label = next((name for name in ("labels", "label", "class") if name in there), None)
            wanted = [vectors, "recording", *filter(None, [label]), *({"start_s", "split"} & set(there))]
            for batch in file.iter_batches(batch_size=_PIECE, columns=wanted, use_threads=False):
                rows = dict(zip(batch.schema.names, batch.columns, strict=True))
                embeddings = _numbers(self._rows(rows[vectors], header.size), header.made)
                named: list[Labels] = [()] * len(embeddings)
                if label is not None:
                    named = [_parquet_labels(value) for value in rows[label].to_pylist()]
                start_s = None
                if "start_s" in rows:
                    start_s = np.array(rows["start_s"].to_numpy(zero_copy_only=False), np.float64)
                splits = [str(value or "") for value in rows["split"].to_pylist()] if "split" in rows else None
                names = [str(value) for value in rows["recording"].to_pylist()]
                yield _Chunk(names, embeddings, named, start_s, splits)

    def _rows(self, column: Any, size: int) -> npt.NDArray[np.float32]:
        """Lists of one width as an array; a number that is not there is NaN. [n, K]"""
        if column.null_count:
            raise InputError(f"{shown(self._file)}: has rows without an embedding. Write it again, or take them out.")
        import pyarrow.compute

        widths = set(pyarrow.compute.list_value_length(column).unique().to_pylist()) | {size}
        if len(widths) > 1:
            listed = " and ".join(f"{width:,}" for width in sorted(widths))
            raise InputError(f"{shown(self._file)}: its embeddings have {listed} numbers. Give those of one backbone.")
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(column), size)


def _parquet_labels(value: Any) -> Labels:
    if isinstance(value, list):
        return tuple(str(name) for name in value if name is not None)
    return () if value is None or value == "" else (str(value),)


# ---- TFRecord -----------------------------------------------------------------------------------


class _TfRecord:
    def __init__(self, file: Path) -> None:
        self._file = file

    def _examples(self) -> Iterator[Any]:
        load_tensorflow()
        import tensorflow as tf

        with _reading(self._file):
            for record in tf.data.TFRecordDataset(str(self._file)).as_numpy_iterator():
                yield tf.train.SequenceExample.FromString(record)

    def header(self) -> Header:
        example = next(self._examples(), None)
        if example is None:
            raise InputError(f"{shown(self._file)}: is empty: there is no embedding in it. Write it again.")
        text = "".join(_values(example.context.feature, METADATA))
        made = read_metadata(text, shown(self._file)) if text else None
        return Header(_require_size(self._file, self._rows(example).shape[1]), made)

    def chunks(self) -> Iterator[_Chunk]:
        for number, example in enumerate(self._examples(), start=1):
            context, lists = example.context.feature, example.feature_lists.feature_list
            rows = self._rows(example)
            name = next((found[0] for key in ("recording", "video_id", "id") if (found := _values(context, key))), "")
            labels = [tuple(_values(context, "labels"))] * len(rows)
            if "window_labels" in lists and len(lists["window_labels"].feature) == len(rows):
                labels = [tuple(_texts_of(feature)) for feature in lists["window_labels"].feature]
            start_s = None
            if "start_s" in lists and len(lists["start_s"].feature) == len(rows):
                start_s = np.array([feature.float_list.value[0] for feature in lists["start_s"].feature], np.float64)
            split = next(iter(_values(context, "split")), "")
            yield _Chunk([name or f"{number}"] * len(rows), rows, labels, start_s, [split] * len(rows))

    def _rows(self, example: Any) -> npt.NDArray[np.float32]:
        features = example.feature_lists.feature_list["audio_embedding"].feature
        if not features:
            raise _lacks(self._file, "feature list `audio_embedding`", sorted(example.feature_lists.feature_list))
        rows = [
            np.frombuffer(feature.bytes_list.value[0], np.uint8) * _QUANTISED + _QUANTISED_BIAS
            if feature.bytes_list.value else np.array(feature.float_list.value, np.float32)
            for feature in features
        ]  # fmt: skip
        if len({len(row) for row in rows}) != 1:
            widths = " and ".join(f"{width:,}" for width in sorted({len(row) for row in rows}))
            raise InputError(f"{shown(self._file)}: its embeddings have {widths} numbers. Give those of one backbone.")
        return np.stack(rows)


def _values(features: Any, name: str) -> list[str]:
    return _texts_of(features[name]) if name in features else []


def _texts_of(feature: Any) -> list[str]:
    """Texts of a feature; AudioSet's labels are numbers."""
    texts = [value.decode("utf-8", "replace") for value in feature.bytes_list.value]
    return texts or [str(value) for value in feature.int64_list.value]


_READERS: dict[str, Callable[[Path], "_Npz | _Parquet | _TfRecord"]] = {
    ".npz": _Npz, ".parquet": _Parquet, ".tfrecord": _TfRecord,
}  # fmt: skip
