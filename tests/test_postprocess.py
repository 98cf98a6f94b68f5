"""birdtune.models.postprocess: AudioSet's PCA and bytes, by its formula, and how they are written and read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import tone, write_sound
from test_custom import saved
from test_embeddings import has_pyarrow

from birdtune import cli
from birdtune.audio.logmel import VGGISH
from birdtune.data import embedding_input
from birdtune.data.embedding_files import ENDINGS
from birdtune.errors import InputError
from birdtune.models import postprocess
from birdtune.pipeline.embed import Embedder
from birdtune.serving.predict import embed_files


def parameters(path: Path, **changes: Any) -> Path:
    """Parameters of the right shapes; None leaves an array out."""
    rng = np.random.default_rng(1)
    arrays = {"pca_eigen_vectors": rng.normal(size=(128, 128)), "pca_means": rng.normal(size=(128, 1)), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def by_hand(embedding: np.ndarray, vectors: np.ndarray, means: np.ndarray) -> list[int]:
    """The formula, number by number."""
    found = []
    for vector in vectors:
        component = sum(v * (x - m) for v, x, m in zip(vector, embedding, means[:, 0], strict=True))
        found.append(int((min(max(component, -2.0), 2.0) + 2.0) * 255.0 / 4.0))
    return found


def test_components_are_cut_off_and_become_bytes_by_the_formula(tmp_path: Path) -> None:
    path = parameters(tmp_path / "pca.npz")
    arrays = np.load(path)
    embeddings = np.random.default_rng(2).normal(scale=0.1, size=(3, 128)).astype(np.float32)
    embeddings += arrays["pca_means"][:, 0].astype(np.float32)
    found = postprocess.read(path, "--postprocess")(embeddings)
    assert found.dtype == np.uint8 and 0 in found and 255 in found and np.mean((found > 0) & (found < 255)) > 0.2
    for row, embedding in zip(found, embeddings, strict=True):
        assert row.tolist() == by_hand(embedding.astype(np.float64), arrays["pca_eigen_vectors"], arrays["pca_means"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pca_means": None}, "has no array `pca_means`, but pca_eigen_vectors"),
        ({"pca_means": np.zeros(128)}, "`pca_means` is float64 [128]; expected are finite numbers [128, 1]"),
        ({"pca_eigen_vectors": np.zeros((64, 128))}, "`pca_eigen_vectors` is float64 [64, 128]"),
        ({"pca_eigen_vectors": np.full((128, 128), np.nan)}, "expected are finite numbers"),
        ({"pca_means": np.array([[{}]])}, "is no .npz of arrays (Object arrays cannot be loaded"),
    ],
)
def test_what_is_not_such_a_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = parameters(tmp_path / "pca.npz", **changes)
    with pytest.raises(InputError) as caught:
        postprocess.read(path, "--postprocess")
    assert words in str(caught.value) and "--postprocess" in str(caught.value) and "pca.npz" in str(caught.value)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(InputError, match=r"is no \.npz of arrays"):
            postprocess.read(tmp_path / name, "--postprocess")
    with pytest.raises(InputError, match="there is no such file"):
        postprocess.read(tmp_path / "none.npz", "--postprocess")


@pytest.mark.parametrize("kind", ["npz", "tfrecord", pytest.param("parquet", marks=has_pyarrow)])
def test_bytes_are_written_and_read_as_numbers_from_minus_2_to_2(tmp_path: Path, kind: str) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(3.0, 16_000), 16_000)
    made = [np.random.default_rng(5).normal(scale=0.02, size=(64, 128)).astype(np.float32)]
    plain = Embedder(lambda windows: made[0][: len(windows)], VGGISH, "vggish", "of the backbone")
    embedder = plain.with_postprocess(parameters(tmp_path / "pca.npz", pca_means=np.zeros((128, 1))))
    out = tmp_path / f"x{ENDINGS[kind]}"
    embed_files([sound], embedder.function, out, front_end=VGGISH, kind=kind, made=embedder.made(None))
    header = embedding_input.header(out)
    assert header.made is not None and header.made.quantised and header.size == 128
    assert header.made.digest not in ("of the backbone", ""), "what was made so does not go with the bare backbone"
    (recording,) = embedding_input.read(out)
    n = len(recording.embeddings)
    arrays = np.load(tmp_path / "pca.npz")
    components = np.clip(made[0][:n] @ arrays["pca_eigen_vectors"].T, -2, 2)
    assert n == 4 and np.abs(recording.embeddings - components).max() <= 4 / 255
    if kind == "npz":
        assert np.load(out)["embeddings"].dtype == np.uint8
    made[0] = np.full((64, 128), np.nan, np.float32)
    with pytest.raises(Exception, match="NaN"):
        embed_files([sound], embedder.function, out, front_end=VGGISH, kind=kind, made=embedder.made(None))


def test_it_is_of_vggish_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(3.0, 16_000), 16_000)
    model, given = saved(tmp_path / "bands", n_samples=16_000), parameters(tmp_path / "pca.npz")
    settings = [f"--model={model}", "--model.sample-rate-hz=16000", f"--out={tmp_path / 'x.npz'}"]
    assert cli.main(["embed", str(sound), *settings, f"--postprocess={given}"]) == 42
    assert "--postprocess: is for VGGish's embeddings; these are custom's" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
