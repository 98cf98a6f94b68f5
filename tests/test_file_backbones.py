"""Keras and ONNX files as backbones: made networks that take a second of waveform at 16 kHz, through the commands."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from makers import write_tones

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import BirdtuneError
from birdtune.evaluation.calibration import Calibration
from birdtune.models import files, keras_archive, onnx_backbone, registry
from birdtune.models.weights import verify_checkpoint
from birdtune.runtime.files import read_csv, read_json
from birdtune.serving import backbone_file

RATE_HZ, SIZE = 16_000, 12
CLASSES = {"Apus": 900.0, "Bubo": 2500.0, "Corvus": 6000.0}
HAS_ONNX = importlib.util.find_spec("onnxruntime") is not None
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras and onnx, about numpy
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("data"), CLASSES, 1.5, RATE_HZ)


def config(path: Path, **settings: Any) -> Config:
    return registry.settled(Config(model={"checkpoint": str(path), "sample_rate_hz": RATE_HZ, **settings}))[0]


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(BirdtuneError) as caught:
        verify_checkpoint(config(path, **settings), remember=False)
    assert caught.value.exit_code == 42 and "\n" not in str(caught.value)
    return str(caught.value)


def arguments(data: Path, output: Path, model: Path, *more: str) -> list[str]:
    return [
        "run", "--data", str(data), "--output", str(output), "--model.checkpoint", str(model), "--evaluate.bootstrap",
        "50", "--model.sample-rate-hz", str(RATE_HZ), "--train.epochs", "3", "--train.precision", "float32", *more,
    ]  # fmt: skip


# ---- Keras --------------------------------------------------------------------------------------


def layers(kernels: Any = keras.layers.Conv1D) -> tuple[Any, Any]:
    """Waveform in; energies in learnt bands, normalised. The embedding is unnamed, and three classes follow on it."""
    keras.utils.set_random_seed(0)
    waveform = keras.Input((RATE_HZ,), name="waveform")
    net = keras.layers.Reshape((RATE_HZ, 1))(waveform)
    net = kernels(16, 64, strides=32, name="bands")(net)
    net = keras.layers.BatchNormalization(name="norm")(keras.ops.log(keras.ops.square(net) + 1e-3))
    net = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling1D()(net))
    return waveform, keras.layers.Dense(SIZE, name="small")(net)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    waveform, net = layers()
    scores = keras.layers.Activation("softmax")(keras.layers.Dense(3, name="classes")(net))
    path = tmp_path_factory.mktemp("keras") / "made.keras"
    keras.Model(waveform, scores).save(path)
    return path.rename(path.with_name("no ending"))  # recognised by what is in it


def test_a_keras_file_gives_what_keras_gives(keras_file: Path) -> None:
    backbone = registry.backbone_of(config(keras_file))
    assert (backbone.name, backbone.embedding_size) == ("custom", SIZE)
    assert backbone.freeze_points == ("none", "all-but-head")
    assert "last dense layer classes takes" in backbone.embedding
    network = backbone.network(embedding_activation="", precision="float32", seed=None)
    waveforms = np.random.default_rng(1).normal(0, 0.1, (3, RATE_HZ)).astype(np.float32)
    found = network(waveforms.reshape(3, *backbone.front_end.window_shape)).numpy()
    (copy := keras_file.with_name("copy.keras")).write_bytes(keras_file.read_bytes())
    theirs = keras.saving.load_model(copy)
    wanted = keras.Model(theirs.input, theirs.get_layer("small").output)(waveforms, training=False).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert registry.backbone_of(config(keras_file, embedding_output="classes")).embedding_size == 3


def test_a_keras_file_may_end_in_an_operation_in_place_of_a_layer(tmp_path: Path) -> None:
    waveform, net = layers()
    keras.Model(waveform, keras.ops.softmax(keras.layers.Dense(3, name="classes")(net))).save(tmp_path / "scores.keras")
    found = registry.backbone_of(config(tmp_path / "scores.keras"))
    assert "last dense layer classes takes" in found.embedding and found.embedding_size == SIZE
    keras.Model(waveform, keras.ops.relu(net)).save(tmp_path / "embedding.keras")
    found = registry.backbone_of(config(tmp_path / "embedding.keras"))
    network = found.network(embedding_activation="", precision="float32", seed=None)
    noise = np.random.default_rng(1).normal(0, 0.1, (2, RATE_HZ)).astype(np.float32)
    wanted = keras.saving.load_model(tmp_path / "embedding.keras")(noise, training=False).numpy()
    np.testing.assert_allclose(network(noise.reshape(2, *found.front_end.window_shape)), wanted, atol=1e-6)


@pytest.mark.long
def test_tensorflow_says_nothing_in_between(keras_file: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "birdtune", *arguments(data, tmp_path / "out", keras_file)]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    said = done.stdout + done.stderr
    assert "0000 00:00" not in said and "oneDNN" not in said and "XLA" not in said, said


@pytest.mark.parametrize("freeze", ["all-but-head", "none"])
def test_a_keras_file_is_trained_or_not_exported_and_begun_from(
    keras_file: Path, data: Path, tmp_path: Path, in_one_process: None, freeze: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from birdtune.models import saved_model

    output = tmp_path / "output"
    assert cli.main(arguments(data, output, keras_file, "--model.freeze", freeze)) == 0
    folder = output / "model/birdtune/1"
    facts = read_json(folder / "model.json")
    assert {"backbone/network/bands/kernel", "backbone/network/norm/moving_mean"} < set(facts["weights"])
    trained = saved_model.read(folder, tuple(facts["weights"]), facts["weights_sha256"])
    first = registry.backbone_of(config(keras_file)).arrays()
    moved = {name for name in first if not np.array_equal(first[name], trained[f"backbone/{name}"])}
    assert bool(moved) == (freeze == "none") and "network/norm/moving_mean" not in moved
    # The backbone, its file and its rate are those of the model that the run begins from.
    again = [f"--data={data}", f"--output={output}", "--train.epochs=1", "--evaluate.bootstrap=50"]
    capsys.readouterr()
    assert cli.main(["run", *again, "--model.freeze", freeze, "--init-from", "latest"]) == 0
    said = capsys.readouterr().out
    assert "--init-from latest: version 1 has the backbone custom: --model.backbone custom" in said
    assert "begins from version 1" in said


def rewritten(path: Path, place: Path, change: Callable[[str], str]) -> Path:
    """A copy of a Keras file with another description of its layers."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(place, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content.decode()) if name == keras_archive.CONFIG else content)
    return place


def test_code_in_a_keras_file_is_not_run(keras_file: Path, tmp_path: Path) -> None:
    waveform, net = layers()
    path = tmp_path / "lambda.keras"
    keras.Model(waveform, keras.layers.Lambda(lambda x: x * 2.0)(net)).save(path)
    assert "was not loaded: it describes" in (said := refused(path)) and "Lambda" in said
    for found, put in (
        ('"keras.layers", "class_name": "Dense"', '"os", "class_name": "system"'),
        ('"class_name": "Dense"', '"class_name": "TFSMLayer"'),
        ('"softmax"', '{"module": "builtins", "class_name": "function", "config": "eval"}'),
        ('"registered_name": "Log"', '"registered_name": "mine>Log"'),
    ):
        changed = rewritten(keras_file, tmp_path / "changed.keras", lambda text, a=found, b=put: text.replace(a, b))
        assert "was not loaded: it describes" in refused(changed), put


@pytest.mark.parametrize("name", ["cut off.keras", "empty.onnx", "words.tflite"])
def test_a_file_that_is_not_what_its_name_says_is_refused_as_that(
    name: str, keras_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"cut off.keras": keras_file.read_bytes()[:3000], "empty.onnx": b"", "words.tflite": b"hello"}[name]
    (path := tmp_path / name).write_bytes(content)
    (tmp_path / "data").mkdir()
    given = ["check", f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'out'}", "--model.sample-rate-hz=16000"]
    assert cli.main([*given, f"--model.checkpoint={path}"]) == 42
    [said] = capsys.readouterr().err.splitlines()
    assert f"{path}: is neither a TensorFlow Lite, a Keras or an ONNX file" in said
    assert f"though its name ends in {path.suffix}. It has {len(content):,} byte" in said
    assert "a download or copy that stopped" in said and "VGGish" not in said


def test_damaged_and_unfit_keras_files_are_refused(keras_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.keras"
    content = bytearray(keras_file.read_bytes())
    with zipfile.ZipFile(keras_file) as archive:
        begin = archive.getinfo(keras_archive.WEIGHTS).header_offset
    content[begin + 100 : begin + 3000] = bytes(2900)
    path.write_bytes(bytes(content))
    assert "the Keras file is damaged or cut off" in refused(path)
    assert "Keras cannot load it" in refused(rewritten(keras_file, path, lambda text: "{}"))
    picture = keras.Input((32, 32, 3))
    keras.Model(picture, keras.layers.Flatten()(picture)).save(path)
    assert "takes" in (said := refused(path)) and "pictures" in said
    said = refused(keras_file, embedding_output="nothing")
    assert "has no layer called nothing" in said and "small" in said


# ---- ONNX ---------------------------------------------------------------------------------------


def onnx_file(path: Path, *, n_samples: int = RATE_HZ, size: int = SIZE, batch: Any = "n", outputs: int = 1) -> Path:
    """Means of squares over bands of time, times a matrix; three classes, or several outputs."""
    import onnx
    from onnx import helper

    rng = np.random.default_rng(0)
    numbers = {
        "filter": rng.normal(0, 0.3, (16, 1, 32)).astype(np.float32), "small": np.float32([1e-3]),
        "kernel": rng.normal(0, 0.3, (16, size)).astype(np.float32), "column": np.array([1], np.int64),
        "classes": rng.normal(0, 0.3, (size, 3)).astype(np.float32), "bias": np.zeros(3, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["inputs", "column"], ["waveform"]),
        helper.make_node("Conv", ["waveform", "filter"], ["bands"], strides=[16]),
        helper.make_node("Mul", ["bands", "bands"], ["power"]),
        helper.make_node("Add", ["power", "small"], ["above"]),
        helper.make_node("Log", ["above"], ["logs"]),
        helper.make_node("ReduceMean", ["logs"], ["means"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["means", "kernel"], ["embedding" if outputs > 1 else "net"]),
        helper.make_node("Gemm", ["embedding" if outputs > 1 else "net", "classes", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["label"]),
    ]
    made = {"label": [batch, 3]} | ({"embedding": [batch, size], "logs": [batch, 16, None]} if outputs > 1 else {})
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("inputs", 1, [batch, n_samples])],
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in made.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@needs_onnx
@pytest.mark.parametrize("batch", ["n", 1])
def test_an_onnx_file_gives_what_onnx_runtime_gives(tmp_path: Path, batch: Any) -> None:
    import onnxruntime

    path = onnx_file(tmp_path / "no ending", batch=batch, outputs=3)
    backbone = registry.backbone_of(config(path))
    assert backbone.embedding == "output embedding" and backbone.embedding_size == SIZE and not backbone.trainable
    network = backbone.network(embedding_activation="", precision="float32", seed=None)
    waveforms = np.random.default_rng(1).normal(0, 0.1, (3, RATE_HZ)).astype(np.float32)
    found = network(waveforms.reshape(3, *backbone.front_end.window_shape)).numpy()
    session = onnxruntime.InferenceSession(path.read_bytes())
    wanted = [session.run(["embedding"], {"inputs": one[None]})[0][0] for one in waveforms]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    of_classes = registry.backbone_of(config(onnx_file(tmp_path / "classes.onnx")))
    assert "last fully connected layer takes" in of_classes.embedding and of_classes.embedding_size == SIZE
    assert registry.backbone_of(config(path, embedding_output="means")).embedding_size == 16


@needs_onnx
def test_perch_as_onnx_is_known_by_what_it_takes_and_gives(tmp_path: Path) -> None:
    onnx_file(tmp_path / "some.onnx", n_samples=160_000, size=1536, outputs=3)
    found, said = registry.settled(Config(input=tmp_path))
    backbone = registry.backbone_of(found)
    assert found.model.backbone == "perch" and "some.onnx lies in the input folder" in said[0]
    assert (backbone.title, backbone.sample_rate_hz, backbone.window_s) == ("Perch 2", 32_000, 5.0)
    assert verify_checkpoint(found.model_copy(update={"output": tmp_path / "out"}), remember=False) is not None
    onnx_file(tmp_path / "other.onnx", n_samples=160_000, size=1536, outputs=3)
    with pytest.raises(BirdtuneError, match=r"holds Perch 2 2 times: other\.onnx, some\.onnx\. Name one with"):
        registry.settled(Config(input=tmp_path))


@needs_onnx
def test_a_head_is_trained_on_the_embeddings_of_an_onnx_file(
    data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output, made = onnx_file(tmp_path / "made.onnx"), str(tmp_path / "output"), str(tmp_path / "made.npz")
    model = [f"--model.checkpoint={path}", f"--model.sample-rate-hz={RATE_HZ}"]
    trained = ["--train.epochs=3", "--evaluate.bootstrap=50"]
    assert cli.main(["embed", f"--data={data}", f"--output={output}", f"--out={made}", *model]) == 0
    assert cli.main(["run", f"--data={made}", f"--output={output}", *trained]) == 0
    facts = read_json(Path(output) / "model/birdtune/1/model.json")
    assert facts["graph_sha256"] and "backbone_file" not in facts
    assert cli.main(["run", f"--data={made}", f"--output={output}", *trained, *model]) == 0  # put on its backbone
    assert read_json(Path(output) / "model/birdtune/2/model.json")["backbone_file"]["embedding_size"] == SIZE
    capsys.readouterr()
    assert cli.main(["predict", str(data), f"--output={output}", f"--out={tmp_path / 'made.csv'}"]) == 0
    assert "made.csv: " in capsys.readouterr().out


@needs_onnx
def test_a_model_on_an_onnx_file_is_trained_served_on_embeddings_and_predicts_sound(
    data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = onnx_file(tmp_path / "made.onnx"), tmp_path / "output"
    assert cli.main(arguments(data, output, path, "--model.freeze", "none")) == 42
    assert "--model.freeze none: an ONNX model is not trained" in capsys.readouterr().err
    assert cli.main(["check", *arguments(data, output, path)[1:]]) == 0
    said = capsys.readouterr().out
    assert "embedding: what its last fully connected layer takes" in said and "the SavedModel takes embeddings" in said
    assert cli.main(arguments(data, output, path)) == 0
    assert "TensorFlow Serving takes embeddings of this model" in capsys.readouterr().out
    folder = output / "model/birdtune/1"
    path.unlink()  # the model has a copy
    facts = read_json(folder / "model.json")
    assert facts["backbone"] == "custom" and facts["front_end"]["rate_hz"] == RATE_HZ
    served = tf.saved_model.load(str(folder))
    assert set(served.signatures) == {"serving_default", "embeddings"}

    sounds = sorted(data.rglob("*.wav"))[:4]
    assert cli.main(["predict", *map(str, sounds), f"--output={output}", f"--out={tmp_path / 'found.csv'}"]) == 0
    rows = read_csv(tmp_path / "found.csv")
    assert cli.main(["embed", *map(str, sounds), f"--output={output}", f"--out={tmp_path / 'found.npz'}"]) == 0
    with np.load(tmp_path / "found.npz") as found:
        of_first = found["embeddings"][found["recording"] == found["recording"][0]]
    windows = served.signatures["embeddings"](embeddings=tf.constant(of_first))["scores"].numpy()
    calibration = Calibration.of(facts["calibration"])
    wanted = calibration.clips(windows.mean(axis=0)[None])[0]
    np.testing.assert_allclose([float(rows[0][f"score:{name}"]) for name in CLASSES], wanted, atol=2e-6)
    out = tmp_path / "raven"
    assert cli.main(["predict", str(data), f"--output={output}", f"--out={out}", "--format=raven"]) == 0
    assert (out / "summary.csv").is_file()

    beside = folder / backbone_file.FILE
    beside.write_bytes(onnx_file(tmp_path / "other.onnx", size=SIZE + 1).read_bytes())
    capsys.readouterr()
    assert cli.main(["predict", str(data), f"--output={output}", f"--out={tmp_path / 'no.csv'}"]) == 42
    assert "is not the backbone that the head was trained on" in capsys.readouterr().err


@needs_onnx
def test_onnx_files_that_do_more_than_compute_are_refused(tmp_path: Path) -> None:
    import onnx

    path = onnx_file(tmp_path / "made.onnx")
    model = onnx.load_model_from_string(path.read_bytes())
    onnx.save_model(model, str(tmp_path / "apart.onnx"), save_as_external_data=True, location="w", size_threshold=0)
    assert "takes weights from other files" in refused(tmp_path / "apart.onnx")
    model = onnx.load_model_from_string(path.read_bytes())
    model.graph.node[2].domain = "mine"
    path.write_bytes(model.SerializeToString())
    assert "operations that are not ONNX's: mine.Mul" in refused(path)
    path.write_bytes(onnx_file(path).read_bytes()[:-40])
    assert "is neither" in refused(path, backbone="custom")


def test_without_the_extra_an_onnx_file_is_known_and_the_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ModelProto of an empty graph: ir_version, producer, graph, opset_import.
    (tmp_path / "model").write_bytes(b"\x08\x08\x12\x01a\x3a\x02\x12\x00\x42\x02\x10\x11")
    monkeypatch.setattr(onnx_backbone, "_PACKAGES", ("onnx", "a_package_that_is_not_there"))
    assert files.is_model(tmp_path / "model")
    said = refused(tmp_path / "model")
    assert "is an ONNX model, which needs" in said and "./entrypoint.sh extras onnx" in said
