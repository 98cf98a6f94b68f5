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
from birdtune.data.embedding_files import ENDINGS, EmbeddedRecording, MadeBy, writing
from birdtune.runtime.files import read_csv

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
