"""TensorFlow's checkpoints in: in whatever form they come, and whatever was done to them."""

import io
import os
import tarfile
from pathlib import Path

import helpers_slim as made
import numpy as np
import pytest
from makers import Here

from birdtune.errors import CheckpointError
from birdtune.models import archive as archives
from birdtune.models import tf_checkpoint
from birdtune.models.registry import BACKBONES
from birdtune.models.tf_checkpoint import read_checkpoint


@pytest.fixture(autouse=True)
def _no_process(request, monkeypatch):
    """TensorFlow reads in this process, where it is loaded; in one of its own it would be for each test anew."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(tf_checkpoint, "Isolated", Here)


@pytest.fixture
def real_process():
    """Marks tests in which the reader has its process."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A narrow VGGish of tf-slim: folders "v1" and "v2" with its checkpoint, and its weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    with made.slim_session(divisor=8) as session:
        for version in (1, 2):
            (root / f"v{version}").mkdir()
            made.save(session, root / f"v{version}" / "vggish_model.ckpt", version)
        return root, made.values(session)


@pytest.fixture
def v1(small, tmp_path):
    """A V1 checkpoint that the test may damage."""
    path = tmp_path / "vggish_model.ckpt"
    path.write_bytes((small[0] / "v1" / "vggish_model.ckpt").read_bytes())
    return path


@pytest.fixture
def v2(small, tmp_path):
    """The prefix of a V2 checkpoint that the test may damage."""
    for part in (small[0] / "v2").glob("vggish_model.*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    return tmp_path / "vggish_model.ckpt"


def assert_equal_arrays(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# --- reading ---


@pytest.fixture(scope="module", params=[True, False], ids=["relu", "pre-activation"])
def full_size(request, tmp_path_factory):
    """A full-size checkpoint, of version 1 with ReLU, else of 2, and what the tf-slim graph makes of windows."""
    root, features = tmp_path_factory.mktemp("full"), made.features(3)
    with made.slim_session(relu=request.param) as session:
        expected = made.embed(session, features)
        prefix = made.save(session, root / "model.ckpt", 1 if request.param else 2)  # 289 MB, gone after the test
    yield "relu" if request.param else "none", features, expected, prefix
    for file in root.iterdir():
        file.unlink()


def test_embeddings_of_a_full_size_checkpoint_equal_those_of_the_tf_slim_graph(full_size):
    activation, features, expected, prefix = full_size
    assert expected.std() > 1.0 and (expected > 0).mean() > 0.3  # not a network of zeros
    assert (expected < 0).any() == (activation == "none")

    backbone = BACKBONES["vggish"].network(embedding_activation=activation, precision="float32", seed=None)
    BACKBONES["vggish"].load(backbone, read_checkpoint(prefix))
    np.testing.assert_allclose(backbone(features).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("where", ["v1/vggish_model.ckpt", "v1", "v2/vggish_model.ckpt", "v2"])
def test_a_checkpoint_is_read_by_file_prefix_or_folder(small, where):
    root, expected = small

    assert_equal_arrays(read_checkpoint(root / where), expected)


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001", "meta"])
def test_any_file_of_a_v2_checkpoint_stands_for_it(small, v2, ending):
    (v2.parent / f"{v2.name}.meta").write_bytes(b"a graph that is not read")

    assert_equal_arrays(read_checkpoint(v2.parent / f"{v2.name}.{ending}"), small[1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["[2024] *?{a,b}", "Vögel 'süß'", "\udcff\x1b[2J", " "])
def test_names_that_tensorflow_would_take_for_patterns_are_read(small, tmp_path, version, name):
    folder = tmp_path / name
    folder.mkdir()
    for part in (small[0] / f"v{version}").iterdir():
        if part.name != "checkpoint":
            (folder / part.name.replace("vggish_model", name)).write_bytes(part.read_bytes())

    assert_equal_arrays(read_checkpoint(folder / f"{name}.ckpt"), small[1])


def test_a_relative_path_is_read(small, monkeypatch):
    monkeypatch.chdir(small[0])

    assert_equal_arrays(read_checkpoint(Path("v2/vggish_model.ckpt")), small[1])


def test_the_head_is_read_and_an_optimisers_slots_are_not(tmp_path):
    one = np.ones(2, np.float32)
    prefix = made.write_checkpoint(
        tmp_path / "model.ckpt",
        {
            "vggish/conv1/weights": one,
            "vggish/conv1/weights/Adam": one,
            "vggish/conv1/weights/Adam_1": one,
            "mymodel/logits/biases": one.astype(np.float64),
            "mymodel/train/beta1_power": one,
            "mymodel/train/weights": one.astype(np.int64),
            "other/weights": one,
        },
    )

    arrays = read_checkpoint(prefix)

    assert list(arrays) == ["mymodel/logits/biases", "vggish/conv1/weights"]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_among_several_checkpoints_the_one_that_tensorflow_named_is_read(tmp_path):
    for step in (4, 8):
        made.write_checkpoint(
            tmp_path / f"m.ckpt-{step}", {"vggish/fc2/biases": np.full(2, step, np.float32)}
        )
    state = tmp_path / "checkpoint"
    state.write_text(
        'model_checkpoint_path: "/home/someone/else/m.ckpt-4"\nall_model_checkpoint_paths: "x"\n'
    )

    assert read_checkpoint(tmp_path)["vggish/fc2/biases"][0] == 4

    state.unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(m\.ckpt-4, m\.ckpt-8\)\. Give one"):
        read_checkpoint(tmp_path)


def test_every_variable_that_does_not_fit_is_named(tmp_path):
    arrays = {
        name: np.ones(shape, np.float32)
        for name, shape in BACKBONES["vggish-small"].variables().items()
    }
    del arrays["vggish/conv3/conv3_1/biases"]
    arrays["vggish/fc1/fc1_2/weights"] = np.ones((512, 511), np.float32)
    prefix = made.write_checkpoint(tmp_path / "m.ckpt", arrays)
    backbone = BACKBONES["vggish-small"].network(embedding_activation="relu", precision="float32", seed=None)

    with pytest.raises(
        CheckpointError, match=r"m\.ckpt: .*missing: vggish/conv3/conv3_1/biases\. .*"
    ) as caught:
        BACKBONES["vggish-small"].load(backbone, read_checkpoint(prefix), source=str(prefix))

    assert "vggish/fc1/fc1_2/weights is [512, 511], not [512, 512]" in str(caught.value)


# --- what is no checkpoint ---


def test_a_checkpoint_of_another_network_says_what_it_holds(tmp_path):
    prefix = made.write_checkpoint(
        tmp_path / "resnet.ckpt", {f"resnet/conv{i}/weights": np.ones(2, np.float32) for i in range(10)}
    )

    with pytest.raises(CheckpointError, match=r"another network.*resnet/conv0/weights, .* and 2 more\."):
        read_checkpoint(prefix)


@pytest.mark.parametrize(
    "name", ["absent.ckpt", "absent/deeper.ckpt", "file/deeper.ckpt", "absent.ckpt.index"]
)
def test_a_path_without_a_checkpoint_says_where_to_get_one(tmp_path, name):
    (tmp_path / "file").write_text("x")

    with pytest.raises(CheckpointError, match=r"there is no checkpoint here.*audioset/vggish_model\.ckpt"):
        read_checkpoint(tmp_path / name)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    (tmp_path / "checkpoint").write_bytes(b"\xff\x00")

    with pytest.raises(CheckpointError, match=r"holds no TensorFlow checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"version https://git-lfs", b"\x89HDF" * 99]
)
def test_a_file_of_another_kind_is_refused_with_a_likely_cause(tmp_path, content):
    path = tmp_path / "vggish_model.ckpt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"is not a TensorFlow checkpoint.*download"):
        read_checkpoint(path)


def test_half_of_a_v2_checkpoint_says_which_half_is_missing(v2):
    data = v2.parent / f"{v2.name}.data-00000-of-00001"
    content = data.read_bytes()
    data.unlink()
    with pytest.raises(CheckpointError, match=r"ckpt\.data-… is missing beside vggish_model\.ckpt\.index"):
        read_checkpoint(v2)

    data.write_bytes(content)
    (v2.parent / f"{v2.name}.index").unlink()
    with pytest.raises(
        CheckpointError, match=r"ckpt\.index… is missing beside vggish_model\.ckpt\.data-00000"
    ):
        read_checkpoint(v2)


def test_a_truncated_v1_file_is_refused(v1):
    os.truncate(v1, v1.stat().st_size // 2)

    with pytest.raises(CheckpointError, match=r"its end is missing.*download that stopped"):
        read_checkpoint(v1)


def test_a_v2_checkpoint_cut_short_says_how_much_is_there(v2):
    os.truncate(v2.parent / f"{v2.name}.data-00000-of-00001", 1_000_000)

    with pytest.raises(CheckpointError, match=r"holds 1\.0 MB, but its variables take 4\.7 MB"):
        read_checkpoint(v2)


@pytest.mark.parametrize("short_bytes", [1, 900_000])
def test_a_v2_checkpoint_cut_a_little_is_refused(v2, short_bytes):
    data = v2.parent / f"{v2.name}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size - short_bytes)

    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(v2)


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", [10, 4_000_000, -200])
def test_one_wrong_bit_in_a_v1_file_is_found(v1, place):
    flip_a_bit(v1, place)

    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(v1)


@pytest.mark.parametrize(
    ("part", "place"), [("index", 100), ("data-00000-of-00001", 10), ("data-00000-of-00001", -200)]
)
def test_one_wrong_bit_in_a_v2_checkpoint_is_found(v2, part, place):
    flip_a_bit(v2.parent / f"{v2.name}.{part}", place)

    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(v2)


def crc32c(content):
    """CRC-32C, masked as in the tables of LevelDB (its doc/table_format.md)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.usefixtures("real_process")
def test_damage_on_which_tensorflow_dies_is_damage(tmp_path):
    prefix = made.write_checkpoint(tmp_path / "m.ckpt", {"vggish/conv1/weights": np.ones((2, 2), np.float32)})
    assert_equal_arrays(read_checkpoint(prefix), {"vggish/conv1/weights": np.ones((2, 2), np.float32)})

    index = tmp_path / "m.ckpt.index"
    content = bytearray(index.read_bytes())
    # The entry's first field, its type of number, becomes one of no kind; the sum over the block is made right.
    at = content.index(b"weights") + len(b"weights")
    content[at] = 0x0F
    size = next(n for n in range(at, len(content)) if crc32c(index.read_bytes()[: n + 1]) == int.from_bytes(
        index.read_bytes()[n + 1 : n + 5], "little"))  # fmt: skip
    content[size + 1 : size + 5] = crc32c(content[: size + 1]).to_bytes(4, "little")
    index.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"m\.ckpt: .*damaged: TensorFlow's reader died on it"):
        read_checkpoint(prefix)


def test_a_file_that_may_not_be_read_says_so(v1, monkeypatch):
    # Tests may run as root, whom no right keeps out.
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(v1))

    monkeypatch.setattr(Path, "open", refused)

    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        read_checkpoint(v1)


def test_messages_hide_control_characters_of_names(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "a\x1b[2J.ckpt")

    assert "\x1b" not in str(caught.value) and "\\x1b[2J.ckpt" in str(caught.value)


# --- archives ---


def pack(path, members, mode="w:gz"):
    """Write an archive of (name, content) or TarInfo members."""
    # Packed quickly rather than well.
    level = {"gz": {"compresslevel": 1}, "bz2": {"compresslevel": 1}, "xz": {"preset": 0}}
    with tarfile.open(path, mode, **level.get(mode[2:], {})) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def members_of(folder, inside="jibjib/model/"):
    return [(f"{inside}{part.name}", part.read_bytes()) for part in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("version", "mode"),
    [("v1", "w:gz"), ("v2", "w:gz"), ("v1", "w"), ("v2", "w"), ("v2", "w:bz2"), ("v2", "w:xz")],
)
def test_an_archive_is_read_whatever_its_packing(small, tmp_path, version, mode):
    archive = pack(tmp_path / "model.tgz", members_of(small[0] / version), mode)

    assert_equal_arrays(read_checkpoint(archive), small[1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tgz"]


def test_nothing_but_the_checkpoint_is_unpacked_and_nothing_stays(small, tmp_path, monkeypatch):
    unpacked = []
    extract = tarfile.TarFile.extractfile

    def seen(self, member):
        unpacked.append(member.name)
        return extract(self, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", seen)
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    extras = [
        ("run.sh", b"#!/bin/sh"),
        ("jibjib/model/vggish_model.ckpt.meta", b"x"),
        ("data/a.wav", b"RIFF"),
    ]
    archive = pack(tmp_path / "m.tgz", extras + members_of(small[0] / "v2"))

    read_checkpoint(archive)

    assert sorted(Path(name).name for name in unpacked) == [
        "checkpoint",
        "vggish_model.ckpt.data-00000-of-00001",
        "vggish_model.ckpt.index",
    ]
    assert not list(room.iterdir())


def odd_member(kind, name="model.ckpt.index", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../climbed.ckpt", b"x"), "outside"),
        (("a/../../climbed.ckpt", b"x"), "outside"),
        (("/tmp/climbed.ckpt", b"x"), "outside"),
        (("../not-even-a-checkpoint.txt", b"x"), "outside"),
        (odd_member(tarfile.SYMTYPE), "link or a device"),
        (odd_member(tarfile.LNKTYPE), "link or a device"),
        (odd_member(tarfile.CHRTYPE), "link or a device"),
        (odd_member(tarfile.FIFOTYPE), "link or a device"),
    ],
)
def test_an_archive_with_an_unsafe_member_is_refused_whole(small, tmp_path, monkeypatch, member, why):
    room = tmp_path / "x" / "room"
    room.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(room))
    archive = pack(tmp_path / "evil.tgz", [*members_of(small[0] / "v2"), member])

    with pytest.raises(CheckpointError, match=rf"evil\.tgz: member .* {why}.*not used"):
        read_checkpoint(archive)

    assert [entry.name for entry in (tmp_path / "x").rglob("*")] == ["room"]


def test_an_archive_that_unpacks_to_too_much_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_LIMIT_BYTES", 4_000_000)
    archive = pack(tmp_path / "bomb.tgz", members_of(small[0] / "v2"))

    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_checkpoint(archive)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.99])
def test_an_archive_cut_short_is_refused(small, tmp_path, share):
    archive = pack(tmp_path / "cut.tgz", members_of(small[0] / "v2"))
    os.truncate(archive, int(archive.stat().st_size * share))

    with pytest.raises(CheckpointError, match=r"cut\.tgz: the archive is damaged or cut off"):
        read_checkpoint(archive)


def test_an_archive_without_a_checkpoint_says_so(tmp_path):
    archive = pack(tmp_path / "songs.tgz", [("a.wav", b"RIFF"), ("b.ckpt", b"no checkpoint")])

    with pytest.raises(CheckpointError, match=r"songs\.tgz: holds no TensorFlow checkpoint"):
        read_checkpoint(archive)
