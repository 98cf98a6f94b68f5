"""Embeddings in files: written of files and of data, in each format; read as data to train a head on."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from makers import write_sound
from test_custom import SIZE, saved

from birdtune import cli
from birdtune.data import embedding_data, embedding_input
from birdtune.data.batches import Windows
from birdtune.data.embedding_files import ENDINGS, EmbeddedRecording, MadeBy, writing, writing_by_split
from birdtune.data.frames import FrameStore
from birdtune.data.targets import WindowTargets, targets_of
from birdtune.models import embedded as backbones
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AudioSettings

RATE_HZ = 16_000
CLASSES = {"Apus": 1500.0, "Bubo": 3000.0, "Corvus": 6000.0}
has_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed: ./entrypoint.sh extras parquet"
)
pytestmark = pytest.mark.usefixtures("in_one_process")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that takes a second of sound."""
    return saved(tmp_path_factory.mktemp("model") / "bands", n_samples=RATE_HZ)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of each class, which differ in pitch."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    for name, hertz in CLASSES.items():
        for clip in range(8):
            rng = np.random.default_rng([clip, len(name)])
            time = np.arange(round(2.5 * RATE_HZ)) / RATE_HZ
            song = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * time)
            write_sound(folder / name / f"{name} {clip}.wav", song + 0.01 * rng.standard_normal(time.size))
    return folder


def of_model(model: Path) -> list[str]:
    return [f"--model={model}", f"--model.sample-rate-hz={RATE_HZ}", "--prepare.workers=1"]


def embedded(data: Path, model: Path, folder: Path, kind: str) -> Path:
    """The embeddings of the data, as the command writes them."""
    out = folder / f"made{ENDINGS[kind]}"
    settings = [f"--data={data}", f"--input={folder}", f"--output={folder / 'embed'}"]
    assert cli.main(["embed", *settings, *of_model(model), f"--format={kind}", f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def npz(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, in_one_process: None) -> Path:
    return embedded(data, model, tmp_path_factory.mktemp("npz"), "npz")


def arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def some() -> list[EmbeddedRecording]:
    """Three recordings, one with several labels, one with windows of none."""
    rng = np.random.default_rng(0)

    def one(name: str, labels: list[tuple[str, ...]], split: str) -> EmbeddedRecording:
        n = len(labels)
        vectors = rng.normal(size=(n, 4)).astype(np.float32)
        classes = tuple(sorted({label for some in labels for label in some}))
        start_s = np.arange(n) * 0.5
        frames = rng.normal(size=(n, 96, 64)).astype(np.float32)
        return EmbeddedRecording(name, vectors, start_s, start_s + 1.0, tuple(labels), classes, split, frames)

    return [
        one("a/ä 1.wav", [("a",), ("a", "b"), ()], "train"), one("a/2.wav", [("a",)], "val"),
        one("b/3.wav", [("b",)] * 2, ""),
    ]  # fmt: skip


MADE = MadeBy("vggish", "0123", 16_000, 1.0, 0.5)


def written(path: Path, kind: str) -> Path:
    with writing(path, kind, MADE) as add:
        for recording in some():
            add(recording)
    return path


# ---- written ------------------------------------------------------------------------------------


def test_data_are_written_with_labels_and_split(npz: Path, data: Path, model: Path) -> None:
    made = arrays(npz)
    assert made["embeddings"].shape == (24 * 3, SIZE) and made["embeddings"].dtype == np.float32
    assert made["classes"].tolist() == list(CLASSES)
    assert all(name.startswith(f"{label}/") for name, label in zip(made["recording"], made["class"], strict=True))
    assert (made["classes"][made["labels"].argmax(axis=1)] == made["class"]).all() and made["labels"].sum() == 72
    assert made["start_s"][:3].tolist() == [0.0, 1.0, 1.5] and made["end_s"][:3].tolist() == [1.0, 2.0, 2.5]
    sides = {row["recording"]: row["split"] for row in read_csv(npz.parent / "embed/split.csv")}
    assert {*sides.values()} == {"train", "val", "test"}
    assert [sides[name] for name in made["recording"]] == made["split"].tolist()
    facts = json.loads(str(made["birdtune"]))
    assert (facts["backbone"], facts["rate_hz"], facts["window_s"], facts["hop_s"]) == ("custom", RATE_HZ, 1.0, 1.0)
    assert len(facts["digest"]) == 64

    files = npz.parent / "files.npz"
    clip = data / "Bubo" / "Bubo 0.wav"
    assert cli.main(["embed", str(clip), *of_model(model), f"--out={files}"]) == 0
    of_file = arrays(files)
    assert of_file["labels"].shape == (3, 0) and json.loads(str(of_file["birdtune"])) == facts
    rows = made["embeddings"][made["recording"] == "Bubo/Bubo 0.wav"]
    np.testing.assert_allclose(of_file["embeddings"], rows, atol=1e-3)  # of 16-bit samples, kept in the cache


def test_npz_has_plain_arrays(tmp_path: Path) -> None:
    made = arrays(written(tmp_path / "x.npz", "npz"))
    assert made["recording"].tolist() == ["a/ä 1.wav"] * 3 + ["a/2.wav"] + ["b/3.wav"] * 2
    assert made["labels"].astype(int).tolist() == [[1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [0, 1]]
    assert made["class"].tolist() == ["a, b"] * 3 + ["a", "b", "b"]
    assert made["split"].tolist() == ["train"] * 3 + ["val", "", ""]
    np.testing.assert_array_equal(made["embeddings"], np.concatenate([one.embeddings for one in some()]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_find_tune_reads_what_it_knows(tmp_path: Path) -> None:
    made = arrays(written(tmp_path / "x.npz", "find-tune-npz"))
    assert made["X"].shape == (6, 4) and made["L"].shape == (6, 96, 64)
    assert made["y"].tolist() == [0, 0, -1, 0, 1, 1] and made["c"].tolist() == ["a", "a", "", "a", "b", "b"]
    assert made["s"].tolist() == [0.0, 0.5, 1.0, 0.0, 0.0, 0.5] and made["i"][3] == "a/2.wav"


def test_tfrecord_has_a_sequence_example_a_recording(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tfrecord", "tfrecord")
    records = [tf.train.SequenceExample.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    context = records[0].context.feature
    assert [record.context.feature["recording"].bytes_list.value[0].decode() for record in records] == [
        one.name for one in some()
    ]
    assert list(context["labels"].bytes_list.value) == [b"a", b"b"]
    rows = records[0].feature_lists.feature_list["audio_embedding"].feature
    np.testing.assert_array_equal([row.float_list.value for row in rows], some()[0].embeddings)


@has_pyarrow
def test_parquet_has_a_row_a_window(tmp_path: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(written(tmp_path / "x.parquet", "parquet"))
    assert json.loads(table.schema.metadata[b"birdtune"])["digest"] == "0123"
    assert table["labels"].to_pylist() == [["a"], ["a", "b"], [], ["a"], ["b"], ["b"]]
    assert table["start_s"].to_pylist() == [0.0, 0.5, 1.0, 0.0, 0.0, 0.5]
    np.testing.assert_array_equal(
        np.array(table["embedding"].to_pylist()), np.concatenate([one.embeddings for one in some()])
    )


def test_without_pyarrow_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["embed", "a.wav", f"--out={tmp_path / 'x.parquet'}"]) == 42
    assert "Install it: ./entrypoint.sh extras parquet" in capsys.readouterr().err


def test_each_part_of_the_split_has_a_file(tmp_path: Path) -> None:
    labels = (("a",), ())
    with writing_by_split(tmp_path / "e.npz", "npz", MADE) as add:
        for name, part in (("r1", "train"), ("r2", "test"), ("r3", "train")):
            rows, times = np.ones((2, 4), np.float32), np.arange(2.0)
            add(EmbeddedRecording(name, rows, times, times + 1, labels, ("a",), part))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.test.npz", "e.train.npz"]
    train = np.load(tmp_path / "e.train.npz")
    assert train["recording"].tolist() == ["r1", "r1", "r3", "r3"] and train["labels"].tolist() == [[1], [0]] * 2
    with pytest.raises(ZeroDivisionError), writing_by_split(tmp_path / "x.npz", "npz", MADE) as add:
        add(EmbeddedRecording("r", np.ones((2, 4), np.float32), times, times, labels, ("a",), "val"))
        raise ZeroDivisionError
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left of what stopped"


def test_what_stops_leaves_nothing(tmp_path: Path) -> None:
    for kind in ("npz", "tfrecord", "find-tune-npz"):
        with pytest.raises(ZeroDivisionError), writing(tmp_path / "x", kind, MADE) as add:
            add(some()[0])
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_find_tune_wants_log_mel_and_labels(
    tmp_path: Path, data: Path, model: Path, capsys: Captured
) -> None:
    assert cli.main(["embed", "a.wav", "--format=find-tune-npz"]) == 2
    out = tmp_path / "x.npz"
    settings = [f"--data={data}", f"--input={tmp_path}", f"--output={tmp_path / 'o'}", "--format=find-tune-npz"]
    assert cli.main(["embed", *settings, *of_model(model), f"--out={out}"]) == 42
    assert "has log-mel beside the embeddings" in capsys.readouterr().err and not out.exists()


# ---- read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "tfrecord", "find-tune-npz", pytest.param("parquet", marks=has_pyarrow)])
def test_what_was_written_is_read_again(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"x{ENDINGS[kind]}", kind)
    assert embedding_input.is_embeddings(path) and embedding_input.is_embeddings(tmp_path)
    found = embedding_input.header(path)
    assert (found.size, found.made) == (4, MADE)
    for ours, theirs in zip(embedding_input.read(path), some(), strict=True):
        assert (ours.name, ours.classes[:1]) == (theirs.name, theirs.classes[:1])
        np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
        np.testing.assert_array_equal(ours.start_s, theirs.start_s)
        if kind != "find-tune-npz":  # which has one label a window, and no split
            assert (ours.labels, ours.split) == (theirs.labels, theirs.split)


def test_long_recordings_and_many_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.npz", "npz")
    monkeypatch.setattr(embedding_input, "_PIECE", 2)
    sizes = [chunk.embeddings.shape for chunk in embedding_input._Npz(path).chunks()]
    assert sizes == [(2, 4)] * 3
    assert [len(one.embeddings) for one in embedding_input.read(path)] == [3, 1, 2]


def test_labels_are_those_of_the_windows(tmp_path: Path) -> None:
    path = written(tmp_path / "x.npz", "npz")
    spec = backbones.backbone_of_data(path).front_end
    assert (spec.rate_hz, spec.rows_per_s, spec.window_shape) == (16_000, 2.0, (1, 4))
    found = embedding_data.survey(path, spec, AudioSettings(), one_class=False, interrupts=Interrupts())
    assert found.given is not None and found.given.sides == {"a/ä 1.wav": "train", "a/2.wav": "val"}
    store = FrameStore(tmp_path / "cache", spec, AudioSettings())
    embedding_data.fill(store, path, found.file_index, Interrupts())
    files = {file.name: file for file in found.listing.files}
    part = [files[one.name] for one in some()]
    windows = Windows(store, [found.file_index.content(file) or "" for file in part], 1)
    np.testing.assert_array_equal(windows.features(np.arange(6))[:, 0], np.concatenate([r.embeddings for r in some()]))
    labels = [file.labels for file in part]
    targets, known = WindowTargets(targets_of(labels, ["a", "b"]), windows).of(np.arange(6))
    assert targets.tolist() == [[1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [0, 1]] and known.all()


def test_records_of_audioset_are_read(tmp_path: Path) -> None:
    rows = np.array([[0, 128, 255], [255, 0, 1]], np.uint8)
    byte_rows = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[row.tobytes()])) for row in rows]
    context = {
        "video_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"abc"])),
        "labels": tf.train.Feature(int64_list=tf.train.Int64List(value=[3, 106])),
    }
    lists = {"audio_embedding": tf.train.FeatureList(feature=byte_rows)}
    example = tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
    )
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        writer.write(example.SerializeToString())
    (found,) = embedding_input.read(tmp_path / "x.tfrecord")
    assert (found.name, found.labels) == ("abc", (("3", "106"),) * 2)
    np.testing.assert_allclose(found.embeddings, rows * (4 / 255) + 4 / 512 - 2, atol=1e-6)  # as YouTube-8M reads them
    made = embedding_input.made_by(tmp_path / "x.tfrecord")
    assert (made.digest, made.hop_s) == ("", 0.96)


def test_find_tunes_own_file_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = {"X": rng.normal(size=(4, 10, 128)), "y": np.array([1, 0, 1, 0]), "i": np.array(["p", "q", "r", "s"])}
    np.savez(tmp_path / "x.npz", **own, c=np.array(["tune", "rain", "tune", "rain"]), s=np.arange(4.0))
    found = list(embedding_input.read(tmp_path / "x.npz"))
    assert [(one.name, one.classes, one.embeddings.shape) for one in found] == [
        (name, (label,), (10, 128)) for name, label in zip("pqrs", "1010", strict=True)
    ]
    np.testing.assert_allclose(found[2].embeddings, own["X"][2], rtol=1e-6)


# ---- trained on ---------------------------------------------------------------------------------


def settings_of(data: Path, folder: Path) -> list[str]:
    return [
        f"--data={data}", f"--input={folder}", f"--output={folder / 'output'}", "--train.epochs=12",
        "--train.jit=false", "--train.learning-rate=0.01", "--train.batch-size=4", "--evaluate.bootstrap=50",
    ]  # fmt: skip


def test_a_head_is_trained_without_sound_and_exported_with_or_without_its_backbone(
    npz: Path, data: Path, model: Path, tmp_path: Path, capsys: Captured
) -> None:
    settings = [*settings_of(npz, tmp_path), "--train.refit=false"]  # so few recordings are not calibrated then
    assert cli.main(["run", *settings]) == 0
    assert "there is no sound to decode" in capsys.readouterr().out
    sides = {row["recording"]: row["split"] for row in read_csv(tmp_path / "output/split.csv")}
    assert sides == {row["recording"]: row["split"] for row in read_csv(npz.parent / "embed/split.csv")}
    assert read_json(tmp_path / "output/reports/1/metrics.json")["test"]["clip"]["accuracy"] == 1.0
    page = (tmp_path / "output/reports/1/report.html").read_text("utf-8")
    assert "there is no sound to decode, to look at or to listen to" in page and "data:audio" not in page

    served = tmp_path / "output/model/birdtune/1"
    loaded = tf.saved_model.load(str(served))
    assert set(loaded.signatures) == {"serving_default", "embeddings"}
    rows = arrays(npz)["embeddings"]
    scores = loaded.signatures["embeddings"](embeddings=tf.constant(rows))["scores"].numpy()
    assert scores.shape == (72, 3) and (scores.argmax(axis=1) == np.repeat([0, 1, 2], 24)).mean() > 0.9

    clip = str(data / "Bubo" / "Bubo 3.wav")
    output, table = f"--output={tmp_path / 'output'}", f"--out={tmp_path / 'p.csv'}"
    assert cli.main(["predict", output, table, clip]) == 42
    assert "takes embeddings, and no sound" in capsys.readouterr().err

    beside = [f"--model.checkpoint={model}", f"--model.sample-rate-hz={RATE_HZ}"]
    assert cli.main(["run", *settings, *beside]) == 0
    assert "the head is put on the model bands" in capsys.readouterr().out
    assert cli.main(["predict", output, table, clip]) == 0
    (row,) = read_csv(tmp_path / "p.csv")
    windows = scores[arrays(npz)["recording"] == "Bubo/Bubo 3.wav"]
    # The second run has the same seed and data, so the same head.
    assert float(row["score:Bubo"]) == pytest.approx(windows[:, 1].mean(), abs=1e-3)

    other = saved(tmp_path / "other", make=lambda net, x: 2.0 * net(x), n_samples=RATE_HZ)
    beside[0] = f"--model.checkpoint={other}"
    assert cli.main(["run", *settings, *beside]) == 42
    assert "did not make the embeddings in" in capsys.readouterr().err


def test_check_and_compare_take_them(npz: Path, tmp_path: Path, capsys: Captured) -> None:
    settings = settings_of(npz, tmp_path)
    assert cli.main(["check", *settings]) == 0
    said = capsys.readouterr().out
    assert "24 files found, 24 usable: 3 classes" in said and "The job can run" in said
    assert cli.main(["compare", *settings, "--train.epochs=1"]) == 0
    assert read_json(tmp_path / "output/compare.json")["best"]


def test_what_works_on_sound_is_refused(npz: Path, tmp_path: Path, capsys: Captured) -> None:
    settings = [*settings_of(npz, tmp_path), "--augment.gain-db=3", "--train.jitter-s=1"]
    assert cli.main(["run", *settings]) == 42
    assert "--augment.* and --train.jitter-s: works on sound" in capsys.readouterr().err
    assert cli.main(["embed", *settings_of(npz, tmp_path), f"--out={tmp_path / 'x.npz'}"]) == 42
    assert "holds embeddings, and no sound to embed" in capsys.readouterr().err


# ---- refused ------------------------------------------------------------------------------------


def saved_arrays(path: Path, **changes: Any) -> None:
    rows = {
        "embeddings": np.eye(4, dtype=np.float32), "recording": np.array(["a/1", "a/2", "b/3", "b/4"]),
        "label": np.array(["a", "a", "b", "b"]),
    }  # fmt: skip
    rows |= changes
    np.savez(path / "x.npz", **{name: array for name, array in rows.items() if array is not None})


def two_widths(path: Path) -> None:
    saved_arrays(path)
    (path / "x.npz").rename(path / "a.npz")
    saved_arrays(path, embeddings=np.ones((4, 5), np.float32))


def two_backbones(path: Path) -> None:
    for name, digest in (("a", "0123"), ("b", "4567")):
        with writing(path / f"{name}.npz", "npz", MadeBy("vggish", digest, 16_000, 1.0, 0.5)) as add:
            add(some()[0])


def cut_short(path: Path) -> None:
    whole = written(path / "x.tfrecord", "tfrecord")
    whole.write_bytes(whole.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: saved_arrays(path, embeddings=np.full((4, 4), np.nan)), "recording a/1 has NaN or infinity in"),
        (lambda path: saved_arrays(path, embeddings=np.diag([1, 1, 1, np.inf])), "recording b/4 has NaN or infinity"),
        (two_widths, "x.npz: its embeddings have 5 numbers, and those of"),
        (two_backbones, "(4567…), and those of"),
        (lambda path: saved_arrays(path, label=None), "no recording has a label"),
        (lambda path: saved_arrays(path, label=np.array([""] * 4)), "no recording has a label"),
        (lambda path: saved_arrays(path, recording=np.array(["a/1", "b/2", "a/1", "b/2"])), "a/1 stands in two places"),
        (lambda path: saved_arrays(path, recording=np.array(["a/1"])), "`recording` has 1 rows, and the embeddings 4"),
        (lambda path: saved_arrays(path, embeddings=np.zeros((0, 4)), recording=None, label=None), "is empty"),
        (lambda path: saved_arrays(path, embeddings=np.array([[{}]])), "`embeddings` holds pickled objects"),
        (lambda path: saved_arrays(path, split=np.array(["north"] * 4)), "a split is called north; expected is train"),
        (lambda path: saved_arrays(path, embeddings=None), "has no array `embeddings`, nor find-tune's `X`"),
        (lambda path: (path / "x.npz").write_bytes(b"PK\x03\x04 no archive"), "is damaged, or no file of embeddings"),
        (cut_short, "is damaged, or no file of embeddings (DataLossError"),
        (lambda path: (path / "x.tfrecord").touch(), "x.tfrecord: is empty"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, capsys: Captured, make: Any, words: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    assert cli.main(["prepare", f"--data={folder}", f"--input={tmp_path}", f"--output={tmp_path / 'o'}"]) == 42
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@has_pyarrow
def test_bad_parquet_is_refused_in_a_line(tmp_path: Path, capsys: Captured) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {"recording": ["a", "b"], "label": ["a", "b"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**rows, "embedding": [[1.0, 2.0], [1.0]]}, "its embeddings have 1 and 2 numbers"),
        ({**rows, "embedding": [[1.0, 2.0], None]}, "has rows without an embedding"),
        (rows, "has no column `embedding`"),
        ({"embedding": [[1.0, 2.0]]}, "has no column `recording`"),
    ]
    for table, words in cases:
        parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
        given = ["prepare", f"--data={tmp_path / 'x.parquet'}", f"--input={tmp_path}", f"--output={tmp_path / 'o'}"]
        assert cli.main(given) == 42
        assert words in capsys.readouterr().err
