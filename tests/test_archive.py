"""birdtune.models.archive: archives that somebody packed to do harm are refused, and cost little."""

import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtune.errors import CheckpointError, InputError
from birdtune.models import archive
from birdtune.models.archive import is_archive, unpack

PACKINGS = {"": b"", "gz": b"", "bz2": b"", "xz": b""}


def member(name: str, content: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def pack(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]], packing: str = "gz") -> Path:
    with tarfile.open(path, f"w:{packing}") as tar:  # type: ignore[call-overload]
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of 512 bytes whose size field is as given, twelve bytes, whatever they mean."""
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[100:108] = b"0000644\0"
    raw[124:136] = size
    raw[156:157] = kind
    raw[257:265] = b"ustar\x0000"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def refusal(path: Path, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        unpack(path, folder)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 500
    return str(caught.value)


@pytest.fixture
def traced() -> Iterator[None]:
    """No test in here may hold more than some megabytes at a time."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize("packing", PACKINGS)
def test_checkpoint_files_come_out_whole_and_nothing_else_does(tmp_path: Path, packing: str) -> None:
    content = os.urandom(100_000) + bytes(200_000)
    files = {"a/checkpoint": b"x", "a/b/m.ckpt.data-00000-of-00001": content, "a/b/m.ckpt.index": b"", "m.ckpt": b"1"}
    others = {"a/run.sh": b"#!", "a/b/m.ckpt.meta": content, "songs/a.wav": content, "x.txt": b"y"}
    path = pack(tmp_path / "m", [member("a", type=tarfile.DIRTYPE)] + [member(*i) for i in {**others, **files}.items()],
                packing)  # fmt: skip
    assert is_archive(path)
    unpack(path, tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {name: file.read_bytes() for name, file in found.items()} == files
    assert not is_archive(found["a/b/m.ckpt.data-00000-of-00001"]) and not is_archive(found["a/checkpoint"])


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"name": "../m.ckpt"}, "outside"), ({"name": "a/../../m.ckpt"}, "outside"),
        ({"name": "/tmp/m.ckpt"}, "outside"),
        ({"name": "m.ckpt", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link or a device"),
        ({"name": "m.ckpt", "type": tarfile.LNKTYPE, "linkname": "a"}, "a link or a device"),
        ({"name": "a.txt", "type": tarfile.SYMTYPE, "linkname": ".."}, "a link or a device"),
        ({"name": "m.ckpt", "type": tarfile.CHRTYPE}, "a link or a device"),
        ({"name": "m.ckpt", "type": tarfile.BLKTYPE}, "a link or a device"),
        ({"name": "m.ckpt", "type": tarfile.FIFOTYPE}, "a link or a device"),
        ({"name": "m.ckpt", "pax_headers": {"GNU.sparse.map": "0,1,1099511627776,1",
                                            "GNU.sparse.size": "1099511627777"}}, "full of holes"),
        ({"name": "\x1b[2J\u202e/../" + "x" * 3000}, "outside"),
    ],
)  # fmt: skip
def test_members_that_no_checkpoint_needs_are_refused(tmp_path: Path, facts: dict[str, str], why: str) -> None:
    facts = dict(facts)
    evil = member(facts.pop("name"), b"xy" if "pax_headers" in facts else b"", **facts)
    path = pack(tmp_path / "evil.tgz", [member("a.ckpt", b"a"), evil])
    assert why in refusal(path, tmp_path / "in" / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.tgz", "in"]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", ["m.ckpt", "song.wav"])
def test_a_bomb_is_refused_whether_or_not_it_would_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(archive, "_LIMIT_BYTES", 20_000_000)
    with gzip.open(tmp_path / "bomb.tgz", "wb", 1) as file:
        file.write(header(name.encode(), b"77777777777\0"))  # 8 GiB
        for _ in range(30):
            file.write(bytes(1_000_000))
    assert "unpacks to more than 0.0 GB" in refusal(tmp_path / "bomb.tgz", tmp_path / "out")
    written = sum(path.stat().st_size for path in tmp_path.rglob("m.ckpt"))
    assert written <= 20_000_000


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"S"])
def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path, kind: bytes) -> None:
    with gzip.open(tmp_path / "bomb.tgz", "wb", 1) as file:
        file.write(header(b"m.ckpt", b"00700000000\0", kind))  # 117 MB
        for _ in range(120):
            file.write(b"1" * 1_000_000)
    assert "damaged" in refusal(tmp_path / "bomb.tgz", tmp_path / "out") or kind == b"S"


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 10 + b"\xfc\x00", b"\x80" + b"\xff" * 11, b"-0000000777\0"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"7"])
def test_sizes_that_cannot_be_end_the_reading(tmp_path: Path, size: bytes, kind: bytes) -> None:
    # Less than nothing once led readers of archives back to where they had been, for ever.
    (tmp_path / "m.tar").write_bytes((header(b"a.txt", size, kind) + bytes(1024)) * 5)
    try:
        unpack(tmp_path / "m.tar", tmp_path / "out")
    except CheckpointError as fault:
        assert "damaged" in str(fault) or "outside" in str(fault)
    assert not (tmp_path / "out").exists()


def test_an_archive_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MOST_MEMBERS", 50)
    pack(tmp_path / "m.tgz", [member(f"d{number}", type=tarfile.DIRTYPE) for number in range(51)])
    assert "holds more than 50 files" in refusal(tmp_path / "m.tgz", tmp_path / "out")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_an_archive_cut_short_is_damaged(tmp_path: Path, packing: str, share: float) -> None:
    path = pack(tmp_path / "m", [member("m.ckpt", os.urandom(50_000))], packing)
    os.truncate(path, int(path.stat().st_size * share))
    if is_archive(path):  # a bare tar cut within its first block is none
        assert "damaged" in refusal(path, tmp_path / "out") or not packing


@pytest.mark.parametrize("name", ["perch/saved_model.pb", "BirdNET.tflite"])
def test_an_archive_of_another_model_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "m.tgz", [member(name, b"model"), member("variables/variables.index", b"x")])
    said = refusal(path, tmp_path / "out")
    assert name in said and "Unpack it" in said and ("the folder of it" if "/" in name else "that file") in said


def test_a_compressed_file_that_is_no_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (path := tmp_path / "model.tflite.gz").write_bytes(gzip.compress(os.urandom(5000)))
    assert "it is one file that was compressed" in refusal(path, tmp_path / "out")
    os.truncate(path, 300)
    assert "damaged or cut off" in (said := refusal(path, tmp_path / "out")) and "gunzip" not in said


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "m.tgz", [member("a.ckpt", b"x"), member("a.ckpt/b.ckpt", b"y")])
    with pytest.raises(CheckpointError, match=r"m\.tgz: the archive is damaged: a\.ckpt/b\.ckpt lies where"):
        unpack(path, tmp_path / "out")
    long = pack(tmp_path / "l.tgz", [member("n" * 300 + ".ckpt", b"x")])
    with pytest.raises(InputError, match="File name too long"):
        unpack(long, tmp_path / "out")


SEEDS = ("", "gz", "bz2", "xz")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    members = [
        member("a", type=tarfile.DIRTYPE), member("a/checkpoint", b'model_checkpoint_path: "m"\n'),
        member("a/" + "n" * 120 + "/m.ckpt.index", b"x" * 700),
        member("b.txt", b"y", pax_headers={"comment": "z" * 60}),
        member("a/m.ckpt.data-00000-of-00001", bytes(range(256)) * 8),
    ]  # fmt: skip
    return {packing: pack(folder / f"seed{packing}", members, packing).read_bytes() for packing in SEEDS}


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    packing=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=12)), max_size=4),
    end=st.floats(0, 1) | st.just(1.0),
)
def test_any_damage_is_refused_in_words_and_nothing_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory,
    seeds: dict[str, bytes],
    packing: str,
    changes: list[tuple[int, bytes]],
    end: float,
) -> None:
    room = tmp_path_factory.mktemp("room")
    content = bytearray(seeds[packing])
    for position, value in changes:
        at = position % len(content)
        content[at : at + len(value)] = value
    (room / "m").write_bytes(content[: int(len(content) * end)])
    (room / "in").mkdir()
    try:
        if is_archive(room / "m"):
            unpack(room / "m", room / "in" / "out")
    except (InputError, OSError):
        pass
    assert {entry.name for entry in room.iterdir()} == {"m", "in"}
    assert {entry.name for entry in (room / "in").iterdir()} <= {"out"}
