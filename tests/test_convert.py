"""A served model as a TensorFlow Lite, an ONNX or a Keras file: the same scores, or nothing."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from makers import Here, write_sound
from test_tflite_backbone import Made, converted

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import ExportError, InputError
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.models import classifier as classifiers
from birdtune.models import keras_archive, registry
from birdtune.models.backbone import ALL_BUT_HEAD
from birdtune.models.embedded import EmbeddingRows, EmbeddingsBackbone
from birdtune.models.file_backbone import FileBackbone
from birdtune.pipeline.convert import _published, not_held
from birdtune.runtime.files import read_json
from birdtune.serving import convert, export, keras_file, verify, window_graph

pytestmark = pytest.mark.filterwarnings("ignore")  # of the converters, about themselves

CLASSES = ("Apus apus_Common Swift", "Bubo bubo_Eurasian Eagle-Owl", "Noise")
HAS_ONNX = importlib.util.find_spec("tf2onnx") is not None


class Batched(tf.Module):
    """As BirdNET's: a transform's real parts, then convolutions, of as many windows as are given."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.kernels = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((3, 3, 1, 6), (3, 3, 6, 8))]
        self.dense = rng.normal(0, 0.5, (8, 3)).astype(np.float32)
        self.function = tf.function(self.compute, [tf.TensorSpec([None, 24_000], tf.float32)], autograph=False)

    def compute(self, waveform: Any) -> Any:
        frames = tf.reshape(waveform[:, :23_552], [-1, 23, 1024])
        power = tf.expand_dims(tf.math.real(tf.signal.rfft(frames)) ** 2 + 1e-4, -1) ** 0.3
        net = tf.nn.relu(tf.nn.conv2d(power, self.kernels[0], 2, "SAME"))
        net = tf.nn.relu(tf.nn.conv2d(net, self.kernels[1], 2, "SAME"))
        return tf.sigmoid(tf.matmul(tf.reduce_mean(net, axis=[1, 2]), self.dense))


class OneByOne(Made):
    """Its loudest sample is that of all windows that are given."""

    def compute(self, waveform: Any) -> Any:
        return super().compute(tf.tanh(waveform / (tf.reduce_max(tf.abs(waveform)) + 1e-6)))


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("long") is None:
        for module in (convert, verify):
            monkeypatch.setattr(module, "Isolated", Here)


def without_extra(kind: str) -> None:
    """Leave out what needs packages that are not installed."""
    if kind == "onnx" and not HAS_ONNX:
        pytest.skip("the extra onnx is not installed")


def made_sound(n: int, samples: int) -> Any:
    """Windows of tones over noise, one of them faint and one a tone alone. [n, samples]"""
    rng, time = np.random.default_rng(5), np.arange(samples)
    tones = [0.5 * np.sin(rng.uniform(0.02, 1.5) * time) for _ in range(n)]
    noise = rng.normal(0, 1, (n, samples)) * np.geomspace(0.1, 1e-4, n)[:, None]
    noise[-1] = 0
    return (np.stack(tones) + noise).astype(np.float32)


def exported(folder: Path, backbone: Any, scores: str, head: str) -> Path:
    """A served model of fresh weights that tells windows apart."""
    classifier = classifiers.build(
        backbone, head=head, scores=scores, hidden_units="7,6" if head == "mlp" else 7,
        embedding_activation=backbone.activations[0], freeze=ALL_BUT_HEAD, classes=CLASSES,
        precision="float32", seed=3, prototypes=2,
    )  # fmt: skip
    if isinstance(backbone, FileBackbone):
        backbone.load(classifier.network, backbone.arrays())
    waveform = made_sound(1, 2 * backbone.front_end.window_samples)[0] if backbone.front_end.has_sound else None
    if waveform is not None:
        windows = backbone.front_end.windows_of(waveform).astype(np.float32)
    else:
        windows = np.random.default_rng(0).normal(0, 1, (8, 1, backbone.embedding_size)).astype(np.float32)
    logits = classifier.head.get_layer("logits")
    logits.kernel.assign(logits.kernel * (4 / np.ptp(np.asarray(classifier.logits(windows)[0]))))
    calibration = Calibration(scores, Scale(1.4, 0.0 if scores == "softmax" else 0.3), Scale(2.0), 20)
    export.export_model(
        classifier, folder, facts={"name": "birds", "version": 1}, example_waveform=waveform, class_ids={},
        calibration=calibration, expected=export.training_side(classifier, windows, calibration),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of log-mel, and of graphs with a transform of their own, one of which takes one window at a time."""
    room = tmp_path_factory.mktemp("models")
    backbones: dict[str, Any] = {"log-mel": registry.BACKBONES["vggish-small"]}
    for name, made in (("waveform", Batched()), ("one by one", OneByOne())):
        path = converted(room / f"{name}.tflite", made.function, made)
        model = {"backbone": "custom", "checkpoint": str(path), "sample_rate_hz": 24_000}
        backbones[name] = registry.backbone_of(Config(model=model))
    rows = EmbeddingRows(name="embeddings", rate_hz=16_000, window_rows=1, hop_rows=1, size=12, hop_samples=8_000,
                         made_by="")  # fmt: skip
    backbones["embeddings"] = EmbeddingsBackbone(name="embeddings", title="Embeddings", front_end=rows)
    how = {"log-mel": ("softmax", "mlp"), "waveform": ("sigmoid", "linear"), "one by one": ("softmax", "attention"),
           "embeddings": ("sigmoid", "prototype")}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "Isolated", Here)
        return {name: exported(room / name / "1", backbones[name], *how[name]) for name in backbones}


# ---- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind"),
    [(model, kind) for model in ("log-mel", "waveform") for kind in convert.FORMATS]
    + [("one by one", "tflite"), ("embeddings", "onnx"), ("embeddings", "keras")],
)
def test_a_file_gives_the_scores_of_the_served_model(
    models: dict[str, Path], model: str, kind: str, tmp_path: Path
) -> None:
    without_extra(kind)
    facts = json.loads((models[model] / "model.json").read_text("utf-8"))
    front_end = registry.read_front_end(facts["front_end"])
    assert front_end is not None
    inputs = made_sound(6, front_end.window_samples if front_end.has_sound else 12)
    folder = tmp_path / kind / "1"
    row = convert.convert(models[model], folder, kind, inputs)
    more = {"birds_Labels.txt"} if kind == "tflite" else set()  # where BirdNET-Analyzer looks
    files = {"h5": ["birds.weights.h5", "birds.json"]}.get(kind, [f"birds.{kind}"])
    assert {path.name for path in folder.iterdir()} == {*files, "labels.txt", "conversion.json", *more}
    assert [row["file"], *([row["description"]] if files[1:] else [])] == files
    assert all((folder / name).read_text("utf-8").split("\n")[2] == "Noise_Noise" for name in more)
    assert json.loads((folder / "conversion.json").read_text("utf-8")) == row
    assert row["verification"]["windows"] == 6 and row["verification"]["difference"] < 2e-5
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == list(CLASSES)

    served = tf.saved_model.load(str(models[model]))
    windows = tf.constant(convert._windows(front_end, inputs), tf.float32)
    expected = served.signatures["serving_default"](inputs=windows)["outputs"].numpy()
    assert np.ptp(expected, axis=0).max() > 0.05  # so that a constant would not do
    given = np.asarray(served.windows(windows)["embeddings"]) if model == "embeddings" else inputs
    assert row["input"]["name"] == ("embedding" if model == "embeddings" else "waveform")
    assert row["input"]["shape"] == ["n", given.shape[1]] and row["input"]["rate_hz"] == front_end.rate_hz
    found = np.asarray(convert.FORMATS[kind].open(folder / files[0])(given[::-1]))
    np.testing.assert_allclose(found, expected[::-1], atol=2e-5)


def test_a_tensorflow_lite_file_has_built_in_operations_names_and_the_labels(
    models: dict[str, Path], tmp_path: Path
) -> None:
    convert.convert(models["waveform"], tmp_path / "1", "tflite", made_sound(2, 24_000))
    path = tmp_path / "1" / "birds.tflite"
    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    assert runner(waveform=made_sound(1, 24_000))["scores"].shape == (1, 3)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.read("labels.txt") == (tmp_path / "1" / "labels.txt").read_bytes()


def test_the_labels_for_birdnet_analyzer_are_those_that_were_published(tmp_path: Path) -> None:
    path = converted(tmp_path / "made.tflite", Batched().function, Batched())
    labels = "Apus apus_Common Swift\nBubo bubo_Eurasian Eagle-Owl\nDog_Dog\n"
    (tmp_path / "made_Labels.txt").write_text(labels, "utf-8")
    config = Config(model={"backbone": "custom", "checkpoint": str(path), "sample_rate_hz": 24_000})
    classes = ["common-swift", "Bubo_bubo", "dog", "Noise", "Parus major_Kohlmeise"]
    published = _published(config, classes)
    assert published == {"common-swift": "Apus apus_Common Swift", "Bubo_bubo": "Bubo bubo_Eurasian Eagle-Owl",
                         "dog": "Dog_Dog"}  # fmt: skip
    of_analyzer = [*published.values(), "Noise_Noise", "Parus major_Kohlmeise"]
    assert convert.for_analyzer(classes, published) == of_analyzer
    twice = _published(config, ["common-swift", "Apus apus"])  # Analyzer finds a column by its label
    assert convert.for_analyzer(list(twice), twice) == ["common-swift_common-swift", "Apus apus_Apus apus"]
    (tmp_path / "made_Labels.txt").unlink()
    assert _published(config, classes) == {}
    assert _published(Config(), classes) == {}  # of VGGish, which comes without classes


def test_a_keras_file_names_nothing_but_keras_and_is_itself_a_backbone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    convert.convert(models["waveform"], tmp_path / "1", "keras", made_sound(2, 24_000))
    path = tmp_path / "1" / "birds.keras"
    with zipfile.ZipFile(path) as archive:
        modules = set(re.findall(r'"module": "(.*?)"', archive.read("config.json").decode()))
    assert "keras.layers" in modules and all(module.split(".")[0] == "keras" for module in modules), modules
    keras_archive.require_layers_only(path)


PLAIN_KERAS = """
import sys, keras, numpy as np
folder = sys.argv[1]
whole = keras.models.load_model(f"{folder}/keras/birds.keras")
made = keras.models.model_from_json(open(f"{folder}/h5/birds.json").read())
made.load_weights(f"{folder}/h5/birds.weights.h5")
waveform = np.load(f"{folder}/waveform.npy")
np.save(f"{folder}/scores.npy", np.stack([model.predict(waveform, verbose=0) for model in (whole, made)]))
assert not any(name.startswith("birdtune") for name in sys.modules)
"""


def test_plain_keras_loads_the_files_where_birdtune_is_not_installed(models: dict[str, Path], tmp_path: Path) -> None:
    waveform = made_sound(3, registry.BACKBONES["vggish-small"].front_end.window_samples)
    for kind in ("keras", "h5"):
        convert.convert(models["log-mel"], tmp_path / kind, kind, waveform)
    np.save(tmp_path / "waveform.npy", waveform)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", PLAIN_KERAS, str(tmp_path)], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    found = np.load(tmp_path / "scores.npy")
    own = convert.FORMATS["keras"].open(tmp_path / "keras" / "birds.keras")(waveform)
    np.testing.assert_allclose(found, np.stack([own, own]), atol=2e-5)


def every_kind(waveform: Any) -> Any:
    """Operations of each kind, with the options that they have. [N, 600] → [N, …]"""
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    net = tf.reshape(waveform, [-1, 20, 30, 1])
    net = tf.nn.relu6(tf.nn.conv2d(net, kernel(3, 3, 1, 4), 2, "SAME") + kernel(4))  # [N, 10, 15, 4]
    net = tf.nn.depthwise_conv2d(net, kernel(3, 2, 4, 2), [1, 1, 1, 1], "VALID")  # [N, 8, 14, 8]
    net = tf.nn.leaky_relu(tf.nn.conv2d(net, kernel(2, 3, 1, 8), [1, 1, 2, 1], "SAME"))  # a group for each channel
    net = tf.nn.max_pool2d(net, 2, 2, "SAME") + tf.nn.avg_pool2d(net, [2, 2], 2, "SAME")  # [N, 4, 4, 8]
    net = tf.pad(tf.pad(net, [[0, 0], [1, 0], [0, 1], [0, 0]]), [[0, 0], [0, 1], [1, 0], [0, 0]], "REFLECT")
    first, second = tf.split(tf.transpose(net, [0, 2, 1, 3]), 2, axis=3)
    net = tf.reverse(tf.concat([first * tf.sigmoid(second), tf.tanh(second)], axis=3), [1])[:, :-2, 1::2]
    net = tf.gather(net, [2, 0, 1], axis=3) ** 2 / (tf.abs(net[..., :3]) + 1.5) - tf.exp(-net[..., 3:6])
    spectrum = tf.signal.rfft(tf.reshape(net, [-1, 4, 9]), [16])
    ends = [tf.abs(spectrum), tf.math.real(spectrum), tf.math.imag(spectrum)[:, :, 1:]]
    flat = [tf.reshape(tf.nn.softmax(one * 0.1), [-1, 4 * one.shape[-1]]) for one in ends]
    flat += [tf.reduce_mean(net, [1, 2]), tf.reduce_max(net, [2, 3]), tf.reduce_min(net, 1)[:, 0]]
    flat += [tf.math.l2_normalize(flat[3], 1), tf.where(flat[3] > 0.1, flat[3], -1.0), tf.tile(flat[4], [1, 2])]
    together = tf.concat(flat, 1)
    return tf.reduce_logsumexp(tf.stack(tf.unstack(together[:, :6], axis=1)[::-1], 1), 1, True) + tf.matmul(
        together, kernel(together.shape[1], 5)
    )


def test_operations_of_each_kind_are_the_same_in_keras(tmp_path: Path) -> None:
    graph_def, waveform = graph_of(every_kind), made_sound(3, 600)
    (path := tmp_path / "all.keras").write_bytes(keras_file.saved(keras_file.model_of(graph_def)))
    np.testing.assert_allclose(convert._open_keras(path)(waveform), computed(graph_def, waveform), atol=2e-5)


def test_a_loop_is_refused_in_keras_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--format keras \(ValueError: operations without an equivalent: .*WHILE"):
        convert.convert(models["one by one"], tmp_path / "1", "keras", made_sound(2, 24_000))
    assert list(tmp_path.iterdir()) == []


# ---- complex numbers ------------------------------------------------------------------------------


def graph_of(function: Any) -> Any:
    concrete = tf.function(function, [tf.TensorSpec([None, 600], tf.float32, name="waveform")], autograph=False)
    graph_def = concrete.get_concrete_function().graph.as_graph_def()
    last = concrete.get_concrete_function().graph.outputs[0].op.inputs[0]
    graph_def.node.append(window_graph._node("Identity", "scores", [last.name], T=last.dtype))
    return graph_def


def computed(graph_def: Any, waveform: Any) -> Any:
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return session.run("scores:0", {"waveform:0": waveform})


def parts(waveform: Any) -> Any:
    """All that is done with complex numbers."""
    spectrum = tf.signal.rfft(tf.cast(tf.signal.frame(waveform, 128, 64), tf.float64), [128])[:, :, None]
    turned = tf.transpose(tf.squeeze(tf.cast(spectrum, tf.complex64), 2), [0, 2, 1])
    seen = [tf.math.real(turned), tf.math.imag(turned) * 2, tf.abs(turned), tf.abs(spectrum[:, 1:, 0, :])]
    return tf.concat([tf.reshape(tf.cast(one, tf.float32), [-1]) for one in seen], 0)


def test_complex_numbers_become_pairs_and_64_bits_become_32() -> None:
    graph_def, waveform = graph_of(parts), made_sound(2, 600)
    expected = computed(graph_def, waveform)
    pairs = window_graph.in_reals(graph_def)
    np.testing.assert_allclose(computed(pairs, waveform), expected, atol=1e-5)
    complex_types = {tf.complex64.as_datatype_enum, tf.complex128.as_datatype_enum}
    with_complex = {node.op for node in pairs.node for value in node.attr.values() if value.type in complex_types}
    assert with_complex == {"RFFT", "Real", "Imag"}
    narrow = window_graph.in_float32(graph_def)
    np.testing.assert_allclose(computed(narrow, waveform), expected, atol=1e-4)
    wide = {tf.float64.as_datatype_enum, tf.complex128.as_datatype_enum}
    assert not [node for node in narrow.node for value in node.attr.values() if value.type in wide]


def test_a_product_of_complex_numbers_is_refused_by_name() -> None:
    def squared(waveform: Any) -> Any:
        spectrum = tf.signal.rfft(waveform)
        return tf.abs(spectrum * spectrum)

    with pytest.raises(ValueError, match="Mul of complex numbers"):
        window_graph.in_reals(graph_of(squared))


# ---- what goes wrong ------------------------------------------------------------------------------


def changed(monkeypatch: pytest.MonkeyPatch, **parts_of: Any) -> None:
    format_ = dataclasses.replace(convert.FORMATS["keras"], **parts_of)
    monkeypatch.setattr(convert, "FORMATS", {"keras": format_})


def broken(path: Path) -> Any:
    raise RuntimeError("no such operation")


def spoilt(spoil: Any) -> Any:
    """Open a Keras file, and change its scores."""
    return lambda path: lambda inputs: spoil(np.asarray(convert._open_keras(path)(inputs)))


@pytest.mark.parametrize(
    ("opens", "said"),
    [
        (spoilt(lambda scores: scores + 0.002), r"differ by 0\.002 .*allowed is 0\.001"),
        (spoilt(lambda scores: scores * np.nan), "differ by inf"),
        (spoilt(lambda scores: scores[:, :2]), "differ by inf"),
        (broken, "cannot be run in a fresh process .*no such operation"),
    ],
)
def test_a_file_that_disagrees_or_cannot_be_run_leaves_nothing(
    models: dict[str, Path], opens: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, open=opens)
    with pytest.raises(ExportError, match=said) as caught:
        convert.convert(models["waveform"], tmp_path / "1", "keras", made_sound(2, 24_000))
    assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_what_a_format_does_not_have_is_bad_input_and_leaves_nothing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(source: Path, facts: Any) -> Any:
        raise ValueError("Mul of complex numbers")

    changed(monkeypatch, write=write)
    with pytest.raises(InputError, match=r"--format keras \(ValueError: Mul of complex.*backbone custom") as caught:
        convert.convert(models["waveform"], tmp_path / "1", "keras", made_sound(2, 24_000))
    assert caught.value.exit_code == 42 and list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named_with_their_command_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", "--format", "onnx", "--output", str(tmp_path), "--input", str(tmp_path)]) == 42
    said = "".join(capsys.readouterr())
    assert "needs tf2onnx, onnx, onnxruntime" in said and "./entrypoint.sh extras onnx" in said
    assert not list(tmp_path.glob("run.json"))


def test_what_a_file_does_not_hold_of_its_model_is_said(models: dict[str, Path]) -> None:
    facts = read_json(models["waveform"] / "model.json")
    assert not list(not_held("tflite", facts))
    kept = {**facts, "classes": ["a", "b"], "published": {"n_kept": 6520}}
    for kind, title in (("tflite", "TensorFlow Lite"), ("onnx", "ONNX")):
        [said] = not_held(kind, kept)
        assert said.startswith(f"The {title} file scores the model's own 2 classes alone.")
        assert "the 6,520 published classes that are kept" in said
    [said] = not_held("keras", {**facts, "backbone_file": {"file": "assets.extra/backbone.onnx"}})
    assert "The Keras file holds the head alone" in said and "assets.extra/backbone.onnx" in said


def test_the_command_line_offers_every_format() -> None:
    assert set(cli._FORMATS) == {"saved-model", "slim", *convert.FORMATS}


# ---- the command ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", convert.FORMATS)
def test_export_writes_the_file_beside_the_model_in_processes_of_their_own(kind: str, tmp_path: Path) -> None:
    without_extra(kind)
    for name in CLASSES:
        for clip in range(8):
            write_sound(tmp_path / "data" / name / f"{clip}.wav", seed=clip + 10 * CLASSES.index(name))
    command = [
        "export", "--format", kind, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"),
        "--model.backbone", "vggish-small", "--model.checkpoint", "none", "--train.epochs", "1",
    ]  # fmt: skip
    assert cli.main(command) == 0
    folder = tmp_path / "out" / kind / "1"
    assert json.loads((folder / "conversion.json").read_text("utf-8"))["verification"]["difference"] < 1e-4
    if kind == "keras":  # no birdtune on the path
        code = f"import keras; print(keras.models.load_model({str(folder / 'birdtune.keras')!r}).input_shape)"
        said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
        assert "(None, 15600)" in said
