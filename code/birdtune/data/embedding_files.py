"""Files of embeddings, one row a window: what `embed` writes.

    EmbeddedRecording, one after another ─▶ writing ─▶ .npz | .parquet | .tfrecord | find-tune's .npz

What made the embeddings (`MadeBy`) stands in each file, so that a head trained on them finds its backbone again. A
recording at a time is in memory: the files may be larger than it. `embedding_input.py` reads them.
"""

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

import birdtune
from birdtune.audio.front_end import FrontEnd
from birdtune.errors import InputError, RetryableError, shown
from birdtune.runtime.files import new_file

# Under this name what made the embeddings stands in a file, as JSON.
METADATA = "birdtune"
HOW_TO_GET = "./entrypoint.sh extras parquet (in an image: build it with --build-arg EXTRAS=parquet)"
# Format → ending of the file.
ENDINGS = {"npz": ".npz", "parquet": ".parquet", "tfrecord": ".tfrecord", "find-tune-npz": ".npz"}
_PIECE = 8192  # rows copied at a time

Floats = npt.NDArray[np.float32]
Labels = tuple[str, ...]


@dataclass(frozen=True)
class MadeBy:
    """What made some embeddings."""

    backbone: str  # its name; "" where nobody knows
    digest: str  # of what it computes, its front end with it; "" where nobody knows
    rate_hz: int
    window_s: float
    hop_s: float
    birdtune: str = birdtune.__version__
    quantised: bool = False  # numbers from -2 to 2 in a byte each, as AudioSet has them

    @property
    def dtype(self) -> str:
        """Of a number of an embedding in a file."""
        return "|u1" if self.quantised else "<f4"

    @classmethod
    def of(cls, front_end: FrontEnd, hop_s: float | None, backbone: str = "", digest: str = "") -> "MadeBy":
        """Of a backbone with this front end, its windows `hop_s` apart (None: as it says)."""
        hop = front_end.hop(hop_s) / front_end.rows_per_s
        return cls(backbone, digest, front_end.rate_hz, front_end.window_s, hop)


@dataclass(frozen=True, eq=False)
class EmbeddedRecording:
    """The windows of a recording."""

    name: str
    embeddings: Floats  # [n, K]; of quantised ones the bytes, 0 … 255
    start_s: npt.NDArray[np.float64]  # [n] in the recording
    end_s: npt.NDArray[np.float64]  # [n]
    labels: tuple[Labels, ...]  # [n] classes in each window
    classes: Labels = ()  # of the recording
    split: str = ""  # "train", "val", "test"; "" where nobody knows
    features: npt.NDArray[Any] | None = None  # [n, rows, bands] what the backbone was given, for find-tune


Add = Callable[[EmbeddedRecording], None]


@contextlib.contextmanager
def writing(path: Path, kind: str, made: MadeBy) -> Iterator[Add]:
    """A function that writes one recording after another; the file is there when the block ends well.

    Args:
        kind: of `ENDINGS`.

    Raises:
        InputError: pyarrow is needed and not installed.
        InputError, RetryableError: as `storage_faults`.
    """
    writer = {"npz": _npz, "parquet": _parquet, "tfrecord": _tfrecord, "find-tune-npz": _find_tune}[kind]
    with new_file(path, "embeddings") as place, writer(place, made) as add:
        yield add


@contextlib.contextmanager
def writing_by_split(path: Path, kind: str, made: MadeBy) -> Iterator[Add]:
    """As `writing`, with a file for each part of the split: embeddings.npz is embeddings.train.npz and so on."""
    with contextlib.ExitStack() as stack:
        writers: dict[str, Add] = {}

        def add(recording: EmbeddedRecording) -> None:
            part = recording.split
            if part not in writers:
                own = path.with_name(f"{path.stem}.{part}{path.suffix}")
                writers[part] = stack.enter_context(writing(own, kind, made))
            writers[part](recording)

        yield add


def require_pyarrow(what: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Args:
        what: needs them, for people.

    Raises:
        InputError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as fault:
        raise InputError(f"{what}: Parquet needs pyarrow, which is not installed. Install it: {HOW_TO_GET}.") from fault
    return pyarrow, pyarrow.parquet


def _metadata(made: MadeBy) -> str:
    return json.dumps(asdict(made))


def read_metadata(text: str, where: str) -> MadeBy:
    """What `embed` wrote of what made embeddings.

    Raises:
        InputError: it is no such text.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(MadeBy).validate_json(text)
        if not (found.rate_hz > 0 and 0 < found.hop_s < 3600 and 0 < found.window_s < 3600):
            raise ValueError("a rate or a time that cannot be")
    except (ValidationError, ValueError) as fault:
        raise InputError(
            f"{where}: its metadata `{METADATA}` are not as `embed` writes them: {shown(text[:80])}. Write it again."
        ) from fault
    return found


# ---- .npz ---------------------------------------------------------------------------------------


@dataclass
class _Columns:
    """What is kept of all rows but the embeddings: some bytes a row."""

    names: list[str] = field(default_factory=list)  # [recordings]
    classes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    start_s: list[npt.NDArray[np.float32]] = field(default_factory=list)
    end_s: list[npt.NDArray[np.float32]] = field(default_factory=list)
    sets: dict[Labels, int] = field(default_factory=dict)  # labels of a window → their number
    codes: list[npt.NDArray[np.int32]] = field(default_factory=list)  # of each window

    def add(self, recording: EmbeddedRecording) -> None:
        self.names.append(recording.name)
        self.classes.append(", ".join(recording.classes))
        self.splits.append(recording.split)
        self.counts.append(len(recording.embeddings))
        self.start_s.append(recording.start_s.astype(np.float32))
        self.end_s.append(recording.end_s.astype(np.float32))
        codes = [self.sets.setdefault(labels, len(self.sets)) for labels in recording.labels]
        self.codes.append(np.array(codes, np.int32))

    @property
    def known(self) -> list[str]:
        """All classes, sorted."""
        return sorted({name for labels in self.sets for name in labels})

    @property
    def code(self) -> npt.NDArray[np.int32]:
        return np.concatenate([np.zeros(0, np.int32), *self.codes])

    def times(self, parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        return np.concatenate([np.zeros(0, np.float32), *parts])


class _Archive:
    """Arrays into an .npz, piece by piece; numpy.savez takes whole arrays, and none called `file`."""

    def __init__(self, place: Path) -> None:
        self._zip = zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

    def close(self) -> None:
        self._zip.close()

    @contextlib.contextmanager
    def _entry(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[IO[bytes]]:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as entry:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(entry, header)
            yield entry

    def array(self, name: str, values: Any) -> None:
        """An array that is small enough to lie in memory; text becomes an array of strings."""
        found = np.asarray(values)
        with self._entry(name, found.shape, found.dtype) as entry:
            entry.write(np.ascontiguousarray(found).tobytes())

    def spooled(self, name: str, shape: tuple[int, ...], spool: IO[bytes], dtype: str = "<f4") -> None:
        """An array whose bytes were written to a file."""
        spool.seek(0)
        with self._entry(name, shape, np.dtype(dtype)) as entry:
            shutil.copyfileobj(spool, entry, 1 << 20)

    def repeated(self, name: str, values: Sequence[str], counts: Sequence[int]) -> None:
        """A text for each recording as an array with a text for each row."""
        table = np.array(values, np.str_) if values else np.zeros(0, "<U1")
        self.gathered(name, table, np.repeat(np.arange(len(values)), counts))

    def gathered(self, name: str, table: npt.NDArray[Any], index: npt.NDArray[Any]) -> None:
        """`table[index]`, of which a piece at a time is made."""
        with self._entry(name, (len(index), *table.shape[1:]), table.dtype) as entry:
            for begin in range(0, len(index), _PIECE):
                entry.write(np.ascontiguousarray(table[index[begin : begin + _PIECE]]).tobytes())


@contextlib.contextmanager
def _spool(place: Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile(dir=place.parent) as file:
        yield file


@contextlib.contextmanager
def _npz(place: Path, made: MadeBy) -> Iterator[Add]:
    """Arrays of numbers and strings, a row a window; `labels` [P, C] says which of `classes` [C] are in each."""
    columns, size = _Columns(), 0
    with _spool(place) as spool:

        def add(recording: EmbeddedRecording) -> None:
            nonlocal size
            size = recording.embeddings.shape[1]
            columns.add(recording)
            spool.write(np.ascontiguousarray(recording.embeddings, made.dtype).tobytes())

        yield add
        with contextlib.closing(_Archive(place)) as archive:
            classes, counts = columns.known, columns.counts
            archive.spooled("embeddings", (sum(counts), size), spool, made.dtype)
            archive.repeated("recording", columns.names, counts)
            archive.array("start_s", columns.times(columns.start_s))
            archive.array("end_s", columns.times(columns.end_s))
            inside = np.array([[name in labels for name in classes] for labels in columns.sets], np.bool_)
            archive.gathered("labels", inside.reshape(len(columns.sets), len(classes)), columns.code)
            archive.array("classes", np.array(classes, np.str_))
            archive.repeated("class", columns.classes, counts)
            archive.repeated("split", columns.splits, counts)
            archive.array(METADATA, _metadata(made))


@contextlib.contextmanager
def _find_tune(place: Path, made: MadeBy) -> Iterator[Add]:
    """find-tune's arrays: X embeddings, y column, c class, s second, i recording, L log-mel; a row a window.

    Beside them `classes`, whose position is the column, and what made the embeddings; find-tune passes them over.
    """
    columns, size, window = _Columns(), 0, (0, 0)
    with _spool(place) as spool, _spool(place) as frames:

        def add(recording: EmbeddedRecording) -> None:
            nonlocal size, window
            assert recording.features is not None
            features = recording.features
            size, window = recording.embeddings.shape[1], features.shape[1:]
            columns.add(recording)
            spool.write(np.ascontiguousarray(recording.embeddings, made.dtype).tobytes())
            frames.write(np.ascontiguousarray(features, "<f4").tobytes())

        yield add
        classes, counts = columns.known, columns.counts
        # One label a window, as find-tune has it: the first; -1 and "" where there is none.
        first = [labels[0] if labels else "" for labels in columns.sets]
        column = np.array([classes.index(name) if name else -1 for name in first], np.int64)
        with contextlib.closing(_Archive(place)) as archive:
            archive.spooled("X", (sum(counts), size), spool, made.dtype)
            archive.gathered("y", column, columns.code)
            archive.gathered("c", np.array(first or [""], np.str_), columns.code)
            archive.array("s", columns.times(columns.start_s))
            archive.repeated("i", columns.names, counts)
            archive.spooled("L", (sum(counts), *window), frames)
            archive.array("classes", np.array(classes, np.str_))
            archive.array(METADATA, _metadata(made))


# ---- Parquet ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _parquet(place: Path, made: MadeBy) -> Iterator[Add]:
    """A row a window; what made them in the metadata of the schema."""
    pa, parquet = require_pyarrow("--format parquet")
    writer: Any = None
    waiting: list[EmbeddedRecording] = []  # small recordings share a row group

    def schema(size: int) -> Any:
        text, number = pa.string(), pa.uint8() if made.quantised else pa.float32()
        columns = {
            "recording": text, "start_s": pa.float32(), "end_s": pa.float32(), "labels": pa.list_(text), "class": text,
            "split": text, "embedding": pa.list_(number, size) if size else pa.list_(number),
        }  # fmt: skip
        return pa.schema(list(columns.items()), metadata={METADATA: _metadata(made)})

    def flush() -> None:
        nonlocal writer
        size = waiting[0].embeddings.shape[1] if waiting else 0
        if writer is None:
            writer = parquet.ParquetWriter(str(place), schema(size))
        if waiting:
            flat = np.concatenate([recording.embeddings for recording in waiting]).astype(made.dtype).ravel()
            rows = {
                "recording": [r.name for r in waiting for _ in r.labels],
                "start_s": np.concatenate([r.start_s for r in waiting]).astype(np.float32),
                "end_s": np.concatenate([r.end_s for r in waiting]).astype(np.float32),
                "labels": [list(labels) for r in waiting for labels in r.labels],
                "class": [", ".join(r.classes) for r in waiting for _ in r.labels],
                "split": [r.split for r in waiting for _ in r.labels],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), size),
            }
            writer.write_table(pa.table(rows, schema=writer.schema))
        waiting.clear()

    def add(recording: EmbeddedRecording) -> None:
        waiting.append(recording)
        if sum(len(one.labels) for one in waiting) >= _PIECE:
            flush()

    try:
        yield add
        flush()
    finally:
        if writer is not None:
            writer.close()


# ---- TFRecord -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _tfrecord(place: Path, made: MadeBy) -> Iterator[Add]:
    """A SequenceExample a recording, as AudioSet's and YouTube-8M's embeddings come, unless quantised with floats."""
    import tensorflow as tf

    try:
        with tf.io.TFRecordWriter(str(place)) as writer:
            yield lambda recording: writer.write(_sequence_example(recording, made))
    except tf.errors.OpError as fault:
        raise RetryableError(f"{shown(place.parent)}: the file cannot be written ({shown(fault.message)}).") from fault


def _sequence_example(recording: EmbeddedRecording, made: MadeBy) -> bytes:
    import tensorflow as tf

    def texts(values: Sequence[str]) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))

    def floats(values: Any) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def embedding(row: Floats) -> Any:
        if not made.quantised:
            return floats(row.tolist())
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[row.astype(np.uint8).tobytes()]))

    everywhere = dict.fromkeys(name for labels in recording.labels for name in labels)
    context = {
        "recording": [recording.name], "labels": list(everywhere), "class": [", ".join(recording.classes)],
        "split": [recording.split], METADATA: [_metadata(made)],
    }  # fmt: skip
    lists: Mapping[str, list[Any]] = {
        "audio_embedding": [embedding(row) for row in recording.embeddings],
        "start_s": [floats([value]) for value in recording.start_s],
        "end_s": [floats([value]) for value in recording.end_s],
        "window_labels": [texts(labels) for labels in recording.labels],
    }
    example = tf.train.SequenceExample(
        context=tf.train.Features(feature={name: texts(values) for name, values in context.items()}),
        feature_lists=tf.train.FeatureLists(
            feature_list={name: tf.train.FeatureList(feature=values) for name, values in lists.items()}
        ),
    )
    return bytes(example.SerializeToString())
