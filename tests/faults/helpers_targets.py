"""What birdtune reads from outside, each as a function from bytes: for the fuzzer and for the properties.

    TARGETS: name ─▶ Target(seeds, run);   attempt(target, bytes, room) ─▶ taken or refused

A target feeds bytes to the very function that reads such files. It lets birdtune's own errors pass, and
nothing else: any other exception is a finding, and so is what helpers_watch.py notes.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import flatbuffers
import helpers_own as own
import helpers_tables
import numpy as np
import safetensors.numpy
import soundfile
from helpers_watch import watched

from birdtune import cli
from birdtune.audio import decode
from birdtune.audio.decode import SoundFacts
from birdtune.config import Config, options
from birdtune.data import split
from birdtune.data.label_map import read_label_map
from birdtune.data.labels import Label
from birdtune.data.scan import Recording
from birdtune.errors import BirdtuneError, InputError, shown
from birdtune.models import archive, tf_checkpoint, tflite
from birdtune.runtime import configure, fingerprints
from birdtune.runtime.files import write_json
from birdtune.runtime.workers import Isolated
from birdtune.serving.verify import open_model
from birdtune.settings import SplitSettings
from birdtune.training.checkpoints import Checkpoints, State, read_arrays

# The extra `media`, where it is installed: what its loading does is no deed of a file.
with contextlib.suppress(ImportError):
    import av  # noqa: F401

RATE_HZ = 16_000


@dataclass(frozen=True)
class Target:
    """Something that reads bytes from outside.

    Args:
        seeds: what it reads without complaint, to begin from.
        run: (bytes, an empty folder) → None, or a BirdtuneError.
        words: pieces that are worth putting in.
    """

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], object]
    words: tuple[bytes, ...] = ()


# ---- sound --------------------------------------------------------------------------------------


def _tone(seconds: float, channels: int = 1, rate_hz: int = RATE_HZ) -> Any:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.tile(0.3 * np.sin(2 * np.pi * 700 * time_s)[:, None], channels)


def _sounds() -> list[bytes]:
    found = []
    kinds = [
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "ULAW"), ("WAV",
        "GSM610"),
        ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "DWVW_16"),
        ("AU", "G723_24"), ("AU", "PCM_16"), ("CAF", "ALAC_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC",
        "PCM_24"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("NIST", "PCM_16"), ("VOC", "PCM_16"),
        ("PAF", "PCM_24"), ("SVX", "PCM_16"), ("IRCAM", "PCM_16"), ("MAT4", "PCM_16"), ("MAT5", "PCM_16"), ("PVF",
        "PCM_16"),
        ("HTK", "PCM_16"), ("SDS", "PCM_16"), ("AVR", "PCM_16"), ("XI", "DPCM_16"), ("MPC2K", "PCM_16"),
    ]  # fmt: skip
    for format_name, encoding in kinds:
        for channels in (1, 2):
            buffer = io.BytesIO()
            try:
                soundfile.write(buffer, _tone(0.12, channels), RATE_HZ, format=format_name, subtype=encoding)
            except (soundfile.LibsndfileError, ValueError, TypeError):
                continue  # not every format holds two channels
            found.append(buffer.getvalue())
    return found


def _hear(data: bytes, room: Path) -> None:
    path = room / "x.wav"
    path.write_bytes(data)
    facts = decode.examine(path, longest_s=3600.0)
    assert facts.duration_s >= 0 and facts.rate_hz > 0 and facts.channels > 0


# ---- label maps ---------------------------------------------------------------------------------

_BIRDS = {
    "Turdus_merula": 0,
    "Erithacus_rubecula": 70_000,
    "Parus_major": 2**40,
    "Noise_noise": -1,
    "Grünling": "g",
}


def _pickles() -> list[bytes]:
    plain = [pickle.dumps(_BIRDS, protocol) for protocol in range(6)]
    # As Python 2 wrote them, with byte strings and numbers in many sizes.
    python_2 = b"(dp0\nS'Turdus_merula'\np1\nI0\nsS'Gr\\xc3\\xbcnling'\np2\nI17\ns."
    evil = b"cos\nsystem\n(S'touch it-ran'\ntR."
    return [
        *plain,
        python_2,
        b"\x80\x02}q\x00(U\x01aK\x01U\x01bM\x00\x01u.",
        evil,
        pickle.dumps(list(_BIRDS), 2),
    ]


def _label_map(ending: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, room: Path) -> None:
        path = room / f"bird_id_map.{ending}"
        path.write_bytes(data)
        found = read_label_map(path)
        for name, value in found.items():
            assert isinstance(name, str) and isinstance(value, int | str) and not isinstance(value, bool)
        json.dumps(found)  # as model.json is written

    return run


def _json_maps() -> list[bytes]:
    return [
        json.dumps(_BIRDS).encode(),
        b'\xef\xbb\xbf{"a": 1, "\\u00e9": "x"}',
        b"{}",
        b'{"a": {"b": [1, null, 2e3]}}',
    ]


def _yaml_maps() -> list[bytes]:
    return [
        "Turdus_merula: 7\nGrünling: g-1\n# birds\n'x y': 0x1F\n".encode(), b"{a: 1, ? b\n: 'c'}",
        b"a: !!str 7\n--- \n",
        b"a: &x {k: 1}\nb: *x\nc: {<<: *x}\n", b"!!python/object/apply:os.system ['touch it-ran']",
        b"a: 1:30:59\nb: 2001-01-01\nc: .inf\nd: ~\ne: |\n  text\n  more\nf: \"\\x41\"\n",
    ]  # fmt: skip


def _csv_maps() -> list[bytes]:
    return [
        "name,id\nTurdus_merula,7\nGrünling,g-1\n".encode(),
        b'\xef\xbb\xbfname;id;;\r\n"a;b";7;;\r\n',
        b"'=x,y\n'=a,-1\n",
    ]


# ---- splits -------------------------------------------------------------------------------------


def _recordings() -> list[Recording]:
    names = [
        "A/A-12_1",
        "A/A-12_2",
        "A/b",
        "A/2021/c",
        "B/A-12_3",
        "B/d_1",
        "B/d_2",
        "B/-e",
        "C/'=f",
        "C/g\\\\n",
        "C/h",
    ]
    facts = SoundFacts(RATE_HZ, 1, 2.0, -8.0, "WAV PCM_16")
    return [Recording(f"{n}.wav", Path(n), (Label(n[0]),), f"{k:064x}", facts) for k, n in enumerate(names)]


def _user_splits() -> list[bytes]:
    named = b'recording,split\nA/A-12_1.wav,train\nb.wav,test\nB/d_1.wav,VAL\n"C/h.wav",training\n'
    return [
        b"\x00" + named,
        b"\x01recording,fold\nA/A-12_1.wav,1\nb.wav,2\nd_1.wav,3\nh.wav,3\n",
        b"\x02" + named.replace(b",", b";"),
    ]


def _split_by_user(data: bytes, room: Path) -> None:
    path = room / "user.csv"
    path.write_bytes(data[1:])
    fold = data[0] % 4 if data else 0
    settings = SplitSettings(file=str(path), test_fold=fold or None, val_fold=(fold + 1) % 4 or None)
    _check_split(split.assign(_recordings(), settings, room / "split.csv"))


def _earlier_splits() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "split.csv"
        recordings = _recordings()
        split.remember_settings(path, SplitSettings())
        split.write(path, recordings, split.assign(recordings, SplitSettings(), path).places, path)
        table, beside = path.read_bytes(), path.with_suffix(".json").read_bytes()
    return [
        table + b"\0" + beside,
        table.replace(b"A/b.wav", b"A/gone.wav") + b"\0{}",
        b"recording,split,group\n\0",
    ]


def _split_as_before(data: bytes, room: Path) -> None:
    path = room / "split.csv"
    table, _, beside = data.partition(b"\0")
    path.write_bytes(table)
    path.with_suffix(".json").write_bytes(beside)
    recordings = _recordings()
    result = split.assign(recordings, SplitSettings(), path)
    _check_split(result)
    assert result.places.keys() == {recording.name for recording in recordings}
    split.write(path, recordings, result.places, path)
    # What was written is kept by the next run, whatever was in the file before.
    assert split.assign(recordings, SplitSettings(), path).places == result.places


def _check_split(result: split.SplitResult) -> None:
    assert all(place.split in split.SPLITS and place.group for place in result.places.values())
    for notice in result.notices:
        assert notice == shown(notice)


# ---- settings -----------------------------------------------------------------------------------


def _job_yamls() -> list[bytes]:
    return [
        b"train:\n  epochs: 3\n  batch-size: 16\nmodel: {freeze: conv, checkpoint: none}\nsplit.seed: 7\n",
        b"data: sounds\nlabels: {map: map.json}\naudio: {max_hours: 1.5}\ntrain:\n",
        b"train: &t {epochs: !!int '3'}\nmodel: *t\n",
        b"train: {learning-rate: 1e-3, jit: no}\nexport: {name: birds}\n", "".join(
            f"{option.name}: {json.dumps(option.default, default=str)}\n" for option in options(
                ) if option.default is not None
        ).replace("input: ", "# ").encode(),
    ]  # fmt: skip


def _job_yaml(data: bytes, room: Path) -> None:
    (room / "job.yaml").write_bytes(data)
    _use(configure.load({"input": str(room)}, {}), room)


def _command_lines() -> list[bytes]:
    lines = [
        "--train.epochs\03\0--input\0in\0\0BIRDTUNE_TRAIN__SEED=7",
        "--train.batch_size=16\0--model.checkpoint=none\0\0BIRDTUNE_SPLIT__VAL_FRACTION=0.2\0BIRDTUNE_SERVICE_HOST=x",
        "\0BIRDTUNE_MODEL__FREEZE=conv\0BIRDTUNE_TRAIN__JIT=true\0BIRDTUNE_EPOCHS=1",
    ]
    return [line.encode() for line in lines]


def _command_line(data: bytes, room: Path) -> None:
    flags, _, environment = data.partition(b"\0\0")
    arguments = [os.fsdecode(part) for part in flags.split(b"\0") if part]
    pairs = (os.fsdecode(part).partition("=") for part in environment.split(b"\0") if part)
    variables = {name: value for name, _, value in pairs}
    if {"--help", "-h", "--version"} & set(arguments):
        return
    options_given, given = cli.parse("run", arguments)
    del options_given
    # Where the settings lead is not looked at; they may well lead out of the room.
    _use(configure.load(given, variables, job_yaml=False), room)


def _use(config: Config, room: Path) -> None:
    """What is done with settings before anything else: they are told, kept and compared."""
    json.dumps(config.flat(), allow_nan=False)
    write_json(room / "settings.json", config.model_dump(mode="json"))
    configure.write_job_yaml(room / "again.yaml", config)
    fingerprints.fingerprint(config, "", None)
    (room / "again").mkdir(exist_ok=True)
    shutil.move(room / "again.yaml", room / "again" / "job.yaml")
    again = configure.load({"input": str(room / "again")}, {})
    written = [option.name for option in options() if len(option.path) == 2 and option.unit != "path"]
    assert {name: again.flat()[name] for name in written} == {name: config.flat()[name] for name in written}


# ---- checkpoints --------------------------------------------------------------------------------


def _weights() -> dict[str, Any]:
    return {
        "backbone/conv1/kernel": np.arange(36, dtype=np.float32).reshape(3, 3, 1, 4),
        "step": np.int64(3).reshape(1),
    }


def _safetensors() -> list[bytes]:
    empty = b'{"__metadata__":{"a":"b"}}'
    odd = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    return [
        safetensors.numpy.save(_weights()), struct.pack("<Q", len(empty)) + empty, struct.pack("<Q", len(
            odd)) + odd + bytes(4),
    ]  # fmt: skip


def _read_arrays(data: bytes, room: Path) -> None:
    (room / "weights.safetensors").write_bytes(data)
    for array in read_arrays(room / "weights.safetensors").values():
        np.asarray(array).tobytes()


def _state() -> State:
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": None, "seconds": 2.5}
    return State(epoch=1, updates=7, history=[row], best=row)


def _states() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = Checkpoints(Path(name), keep=2).save(_weights(), _weights(), _state())
        return [(path / "state.json").read_bytes()]


def _state_json(data: bytes, room: Path) -> None:
    checkpoints = Checkpoints(room / "checkpoints", keep=2)
    path = checkpoints.save(_weights(), _weights(), _state())
    (path / "state.json").write_bytes(data)
    saved, complaints = checkpoints.newest()
    assert (saved is None) == bool(complaints)
    if saved is not None:
        # What was changed in it without being noticed must not be more than blanks.
        assert asdict(saved.state) == asdict(_state())
    checkpoints.lost()
    checkpoints.best()


def _archives() -> list[bytes]:
    found = []
    for packing in ("", "gz", "bz2", "xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{packing}") as tar:  # type: ignore[call-overload]
            for name, content in (
                ("a/checkpoint", b"x"),
                ("a/m.ckpt.index", b"y" * 600),
                ("n" * 150 + "/b.txt", b"z"),
            ):
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(content), {"comment": "remark"}
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("m.ckpt")
            link.type, link.linkname = tarfile.SYMTYPE, "../../out"
            if packing == "bz2":
                tar.addfile(link)
        found.append(buffer.getvalue())
    return found


def _unpack(data: bytes, room: Path) -> None:
    (room / "m.tgz").write_bytes(data)
    if archive.is_archive(room / "m.tgz"):
        try:
            archive.unpack(room / "m.tgz", room / "out")
        except OSError as fault:
            # A name that this file system does not take; `checkpoint.read_checkpoint` says it in words.
            raise InputError(str(fault.strerror)) from fault


def _unpack_tar(data: bytes, room: Path) -> None:
    """As `_unpack`, behind the compression, which keeps a fuzzer from getting anywhere."""
    _unpack(gzip.compress(data, 1), room)


def _tar() -> list[bytes]:
    return [_archives()[0], gzip.decompress(_archives()[1])]


def _checkpoint_tables() -> list[bytes]:
    return [helpers_tables.packed(1, helpers_tables.V1), helpers_tables.packed(2, helpers_tables.V2)]


def _read_table(data: bytes, room: Path) -> None:
    """A checkpoint of TensorFlow with right checksums; one process reads all of them, until it dies of one."""
    version, entries = helpers_tables.unpacked(data)
    written = helpers_tables.table(entries)
    (room / ("m.ckpt" if version == 1 else "m.ckpt.index")).write_bytes(written)
    if version == 2:
        (room / "m.ckpt.data-00000-of-00001").write_bytes(helpers_tables.V2_DATA)
    with mock.patch.object(tf_checkpoint, "Isolated", _Kept):
        for array in tf_checkpoint.read_checkpoint(room / "m.ckpt").values():
            assert array.dtype == np.float32


class _Kept:
    """`workers.Isolated`, whose process outlives the block."""

    process: Isolated[Any, Any] | None = None

    def __init__(self, function: Callable[[Any], Iterator[Any]]) -> None:
        _Kept.process = _Kept.process or Isolated(function)

    def __enter__(self) -> Isolated[Any, Any]:
        assert _Kept.process is not None
        return _Kept.process

    def __exit__(self, *fault: object) -> None:
        return None


def _tflites() -> list[bytes]:
    """A dense layer of 2 × 2 in whole numbers, as TensorFlow Lite writes it down (its schema.fbs)."""
    builder = flatbuffers.Builder(0)

    def table(*fields: tuple[int, str, int]) -> int:
        builder.StartObject(7)
        for slot, kind, value in fields:
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(builder.EndObject())

    def numbers(values: list[Any], kind: str) -> int:
        return int(builder.CreateNumpyVector(np.array(values, kind)))

    def tables(*offsets: int) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    to = "UOffsetTRelative"
    buffers = tables(
        table(), table((0, to, numbers([1, -2, 3, 4], "i1"))), table((0, to, numbers([0, 0, 128, 63] * 2, "u1")))
    )
    how = table((2, to, numbers([0.5, 0.25], "f4")), (3, to, numbers([0, 1], "i8")))
    tensors = tables(
        table((0, to, numbers([1, 2], "i4"))),
        table((0, to, numbers([2, 2], "i4")), (1, "Int8", 9), (2, "Uint32", 1), (4, to, how)),
        table((0, to, numbers([2], "i4")), (2, "Uint32", 2)),
        table((0, to, numbers([1, 2], "i4"))),
    )
    options = (3, "Uint8", 8), (4, to, table())  # of a dense layer, all as usual
    dense = table((1, to, numbers([0, 1, 2], "i4")), (2, to, numbers([3], "i4")), *options)
    given, made = numbers([0], "i4"), numbers([3], "i4")
    graph = table((0, to, tensors), (1, to, given), (2, to, made), (3, to, tables(dense)))
    code = table((0, "Int8", 9), (3, "Int32", 9))
    builder.Finish(table((1, to, tables(code)), (2, to, tables(graph)), (4, to, buffers)), b"TFL3")
    return [bytes(builder.Output())]


def _read_tflite(data: bytes, room: Path) -> None:
    (room / "x.tflite").write_bytes(data)
    for layer in tflite.read_layers(room / "x.tflite"):
        assert layer.kernel.dtype == layer.bias.dtype == np.float32


def _model_jsons() -> list[bytes]:
    return [
        json.dumps({"format": 4, "classes": ["a"], "front_end": {"digest": "x"}}).encode(),
        b"[]",
        b"null",
    ]


def _model_json(data: bytes, room: Path) -> None:
    (room / "model.json").write_bytes(data)
    open_model(room)


# ---- all of them -------------------------------------------------------------------------------


def attempt(target: Target, data: bytes, room: Path) -> bool:
    """Run a target; whether the data were taken. Any exception that comes out is a finding."""
    temporary, tempfile.tempdir = tempfile.tempdir, str(room)
    try:
        with watched(room):
            try:
                target.run(data, room)
            except BirdtuneError as fault:
                check_message(fault)
                return False
    finally:
        tempfile.tempdir = temporary
    return True


def check_message(fault: BirdtuneError) -> None:
    """What is said of bad data is one line of bounded length that commands no terminal."""
    text = str(fault)
    assert text and text == shown(text), f"{type(fault).__name__} says what cannot be shown: {text!r:.300}"
    assert len(text) < 3000, f"{type(fault).__name__} says {len(text):,} characters: {text!r:.300}"


TARGETS: dict[str, Target] = {
    "sound": Target(
        _sounds, _hear, (b"RIFF", b"data", b"fmt ", b"OggS", b"fLaC", b"LIST", b"COMM", b"ID3", b"Xing")
    ),
    "pickle": Target(
        _pickles, _label_map("pickle"), (b"cos\nsystem\n", b"\x93", b"R", b"(", b"\x8c\x02os", b"u", b"}")
    ),
    "map-json": Target(
        _json_maps, _label_map("json"), (b'"a":', b"\\ud800", b"[[[[", b"1e999", b"NaN", b"null")
    ),
    "map-yaml": Target(
        _yaml_maps, _label_map("yaml"), (b"!!python/name:os.system", b"&a", b"*a", b"<<: ", b"!!int ", b"? ")
    ),
    "map-csv": Target(_csv_maps, _label_map("csv"), (b'"', b",", b";", b"\r", b"'=", b"\xef\xbb\xbf")),
    "split-user": Target(
        _user_splits, _split_by_user, (b"train", b"recording", b"fold", b'"', b"\xcc\x88", b",,")
    ),
    "split-kept": Target(
        _earlier_splits, _split_as_before, (b"train", b"group", b"content", b'"', b"'=", b"id 12")
    ),
    "job-yaml": Target(
        _job_yamls, _job_yaml, (b"!!int ", b"&a", b"*a", b"<<: ", b"train", b": {", b"1:1", b"!!timestamp x")
    ),
    "command-line": Target(
        _command_lines, _command_line, (b"BIRDTUNE_", b"--", b"=", b"\0", b"1e999", b"\xff", b"none")
    ),
    "safetensors": Target(
        _safetensors, _read_arrays, (b'"F64"', b'"BF16"', b'"shape":[', b"[]", b"__metadata__", b"\xff" * 8)
    ),
    "state-json": Target(_states, _state_json, (b"null", b"NaN", b'"best":', b"[]", b"{}", b"1e999")),
    "archive": Target(_archives, _unpack),
    "tflite": Target(_tflites, _read_tflite, (b"TFL3", b"\xff" * 4, b"\0" * 8)),
    "tar": Target(
        _tar, _unpack_tar, (b"../", b"ustar", b"\xff" * 11, b"GNU.sparse", b"L", b"x", b"path=", b"size=")
    ),
    "tables": Target(
        _checkpoint_tables,
        _read_table,
        (b"\x12\x02\x08", b"vggish/", b"\xff" * 9 + b"\x01", b"\x08\x01", b"("),
    ),
    "model-json": Target(_model_jsons, _model_json),
    "file_index": Target(
        own.file_indexes, own.file_index, (b'"stats"', b'"facts"', b"null", b"[]", b"{}", b'"duration_s"', b'"problem"')
    ),
    "index": Target(
        own.indexes, own.index, (b'"start": ', b"-1", b"1e99", b"null", b'"../', b"[]", b'"facts"')
    ),
    "record": Target(
        own.records, own.record, (b'"stages"', b'"done"', b"null", b"[]", b"{}", b'"x"', b"NaN", b"1e999")
    ),
    "ancestor": Target(
        own.ancestors,
        own.begin_from,
        (b'"classes"', b"null", b"NaN", b"1e999", b"[]", b"{}", b'"a"', b"-1", b"\\ud800", b"7,0.5"),
    ),
    "scores": Target(
        own.scores, own.read_scores, (b"NUMPY", b"'<f4'", b"'|O'", b"PK\x03\x04", b"(3, 2)", b"True")
    ),
    "names": Target(
        own.names, own.make_names, (b"\0", b"/", b"\x01", b"..", b".wav", b"\xcc\x88", b"\xe2\x80\xae", b"'=")
    ),
}
