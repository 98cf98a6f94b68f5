"""A TensorFlow Lite file as a backbone: a made network built like BirdNET's, at 24 kHz with windows of a second."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from makers import write_tones

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import BirdtuneError, CheckpointError, SettingsError
from birdtune.models import files, registry, tflite, tflite_backbone
from birdtune.models.tflite_operations import compute
from birdtune.models.weights import verify_checkpoint
from birdtune.runtime.files import file_sha256, read_csv, read_json
from birdtune.runtime.tensorflow_import import tensorflow_words

RATE_HZ, SIZE = 24_000, 16
CLASSES = {"Apus": 1500.0, "Bubo": 4000.0, "Corvus": 9000.0}


class Made(tf.Module):
    """Scaled by its own range, a spectrum of real parts to a power, then convolutions with a residual block."""

    def __init__(self, n_samples: int = RATE_HZ, outputs: int = 1) -> None:
        super().__init__()
        rng, self._outputs = np.random.default_rng(0), outputs
        self.mel = rng.uniform(0, 0.1, (513, 24)).astype(np.float32)
        shapes = [(3, 3, 1, 8), (1, 1, 8, 24), (3, 3, 24, 1), (1, 1, 24, 8), (1, 1, 8, SIZE)]
        self.kernels = [tf.Variable((rng.normal(0, 0.4, shape)).astype(np.float32)) for shape in shapes]
        self.dense = tf.Variable(rng.normal(0, 0.5, (SIZE, 3)).astype(np.float32))
        given = tf.TensorSpec([1, n_samples], tf.float32)
        self.function = tf.function(self.compute, input_signature=[given], autograph=False)

    def compute(self, waveform: tf.Tensor) -> Any:
        low = tf.reduce_min(waveform, axis=1, keepdims=True)
        waveform = (waveform - low) / (tf.reduce_max(waveform - low, axis=1, keepdims=True) + 1e-6) * 2 - 1
        frames = tf.signal.frame(waveform, 1024, 500) * tf.signal.hann_window(1024)
        spectrum = tf.math.real(tf.signal.rfft(frames))
        net = tf.transpose(tf.tensordot(spectrum, self.mel, 1) ** 2 + 1e-4, [0, 2, 1])[..., None] ** 0.3
        first, wide, depth, narrow, last = self.kernels
        net = before = tf.nn.relu(tf.nn.conv2d(net, first, 2, "SAME"))
        net = tf.nn.conv2d(net, wide, 1, "SAME")
        net = tf.nn.relu(tf.nn.depthwise_conv2d(net * tf.sigmoid(net), depth, [1, 1, 1, 1], "SAME"))
        gate = tf.sigmoid(tf.reduce_mean(net, axis=[1, 2], keepdims=True))
        net = before + tf.nn.conv2d(net * gate, narrow, 1, "SAME")
        embedding = tf.reduce_mean(tf.nn.conv2d(net, last, 1, "SAME"), axis=[1, 2])
        return {
            1: tf.sigmoid(tf.matmul(embedding, self.dense)),
            2: (embedding, tf.reduce_sum(embedding * 2.0, axis=1, keepdims=True) * tf.ones([1, 5])),
        }[self._outputs]


def converted(path: Path, function: Any, module: Any = None) -> Path:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converter.convert())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Made()
    path = converted(tmp_path_factory.mktemp("model") / "made.tflite", made.function, made)
    path.with_name("made labels.txt").write_text("Apus apus_Swift\nBubo bubo_Owl\nCorvus corax_Raven\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("data"), CLASSES, 1.5, RATE_HZ)


@pytest.fixture(autouse=True)
def _files_are_read_anew() -> None:
    """What is kept of a file goes by what is known of published models, which tests change."""
    files._opened.cache_clear()


def config(path: Path, **settings: Any) -> Config:
    return registry.settled(Config(model={"checkpoint": str(path), "sample_rate_hz": RATE_HZ, **settings}))[0]


def arguments(data: Path, output: Path, model: Path, *more: str) -> list[str]:
    return [
        "run", "--data", str(data), "--output", str(output), "--model.checkpoint", str(model),
        "--model.sample-rate-hz", str(RATE_HZ), "--train.epochs", "3", "--train.precision", "float32",
        "--train.jit", "false", "--evaluate.bootstrap", "20", *more,
    ]  # fmt: skip


# ---- the graph ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # TensorFlow points out other packages for its interpreter
def test_a_batch_gives_what_the_interpreter_gives_window_by_window(model: Path) -> None:
    found = gives_what_the_interpreter_gives(model)
    assert np.ptp(found, axis=0).max() > 0.01


def gives_what_the_interpreter_gives(path: Path) -> Any:
    """Embeddings of a batch of three, compared."""
    backbone = registry.backbone_of(config(path))
    assert isinstance(backbone, tflite_backbone.TFLiteBackbone)
    network = backbone.network(embedding_activation="", precision="float32", seed=None)
    backbone.load(network, backbone.arrays())
    waveforms = np.random.default_rng(1).normal(0, 0.1, (3, RATE_HZ)).astype(np.float32)
    found = tf.function(network)(waveforms.reshape(3, *backbone.front_end.window_shape)).numpy()
    interpreter = tf.lite.Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    for waveform, embedding in zip(waveforms, found, strict=True):
        interpreter.set_tensor(given["index"], waveform.reshape(given["shape"]))
        interpreter.invoke()
        theirs = interpreter.get_tensor(backbone.found.embeddings)[0]
        np.testing.assert_allclose(embedding, theirs, atol=1e-4 * np.abs(theirs).max())
    return found


def of_one_window(path: Path, shape: tuple[int, ...], end: Callable[[Any], Any] = lambda net: net) -> Path:
    """A small network converted for one window: its shapes are constants that begin with 1."""
    rng = np.random.default_rng(0)
    kernel, dense = rng.normal(0, 1, (64, 1, 4)).astype(np.float32), rng.normal(0, 0.1, (1496, 6)).astype(np.float32)

    def compute(waveform: Any) -> Any:
        net = tf.nn.relu(tf.nn.conv1d(tf.reshape(waveform, [1, RATE_HZ, 1]), kernel, 64, "VALID"))
        return end(tf.matmul(tf.reshape(net[:, :374], [1, 1496]), dense))

    function = tf.function(compute, input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    return converted(path, function)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "end"),
    [
        ((1, RATE_HZ), lambda net: net), ((1, RATE_HZ), lambda net: tf.cumsum(net, 1)),
        ((RATE_HZ,), lambda net: tf.reshape(tf.tanh(net), [6])),
    ],
)  # fmt: skip
def test_a_model_converted_for_one_window_computes_a_batch(
    shape: tuple[int, ...], end: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = of_one_window(tmp_path / "one.tflite", shape, end)
    gives_what_the_interpreter_gives(path)
    verify_checkpoint(config(path), remember=False)  # raises what is wrong with it


def test_a_spectrum_is_exact_where_it_is_near_zero() -> None:
    waveform = np.random.default_rng(0).normal(0, 1, (1, 1, 2048)).astype(np.float32)
    (found,) = compute("RFFT2D", [tf.constant(waveform), np.array([1, 2048])], {})
    wanted = np.fft.rfft(waveform.astype(np.float64))
    np.testing.assert_allclose(found.numpy().real, wanted.real, rtol=2e-7)
    np.testing.assert_allclose(found.numpy().imag, wanted.imag, rtol=2e-7, atol=1e-12)


def test_a_block_ends_where_the_residual_block_does(model: Path) -> None:
    backbone = registry.backbone_of(config(model))
    assert backbone.freeze_points == ("none", "all-but-head", "block1", "block2", "block3")
    assert [len(names) for names in _by_block(backbone).values()] == [2, 6, 2]
    assert backbone.frozen_layers("block2") == 2


def _by_block(backbone: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in backbone.variables():
        found.setdefault(name.split("/")[0], []).append(name)
    return found


def test_an_output_is_the_embedding_where_there_is_no_classifier(tmp_path: Path) -> None:
    made = Made(outputs=2)
    path = converted(tmp_path / "two.tflite", made.function, made)
    outputs = {len_: name for name, len_ in _outputs(path)}
    with pytest.raises(CheckpointError, match=r"does not show which .*--model\.embedding-output"):
        registry.backbone_of(config(path))
    assert registry.backbone_of(config(path, embedding_output=outputs[SIZE])).embedding_size == SIZE
    with pytest.raises(CheckpointError, match="has no output called nothing"):
        registry.backbone_of(config(path, embedding_output="nothing"))


def _outputs(path: Path) -> list[tuple[str, int]]:
    graph = tflite.read(path)
    return [(graph.tensors[number].name, graph.tensors[number].shape[-1]) for number in graph.outputs]


# ---- every command ------------------------------------------------------------------------------


def test_frozen_by_itself_it_is_trained_evaluated_exported_and_used(
    model: Path, data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert cli.main(["export", *arguments(data, output, model)[1:]]) == 0
    said = "".join(capsys.readouterr())
    assert "made.tflite is a model that takes a waveform: --model.backbone custom" in said
    assert "--model.freeze all-but-head: a head is trained on the backbone as it is" in said
    facts = read_json(output / "model/birdtune/1/model.json")
    assert facts["backbone"] == "custom" and facts["front_end"]["rate_hz"] == RATE_HZ
    loaded = tf.saved_model.load(str(output / "model/birdtune/1"))
    waveform = tf.zeros([1, RATE_HZ])
    scores = loaded.signatures["sound"](waveforms=waveform, lengths=tf.constant([RATE_HZ]))["scores"]
    assert scores.shape == (1, 3)
    read = registry.backbone_of(config(model)).arrays()  # frozen: the weights of the file are served
    network = {name.removeprefix("backbone/"): name for name in facts["weights"] if name.startswith("backbone/")}
    assert set(network) == set(read) - set(tflite_backbone.LOGITS)


def test_the_blocks_behind_a_freeze_point_are_trained(
    model: Path, data: Path, tmp_path: Path, in_one_process: None
) -> None:
    from birdtune.models import saved_model

    output = tmp_path / "output"
    given = arguments(data, output, model, "--model.freeze", "block1")[1:]
    assert cli.main(["export", *given]) == 0
    folder = output / "model/birdtune/1"
    facts = read_json(folder / "model.json")
    trained = saved_model.read(folder, tuple(facts["weights"]), facts["weights_sha256"])
    first = registry.backbone_of(config(model)).arrays()
    moved = {name for name in first if name not in tflite_backbone.LOGITS
             and not np.array_equal(first[name], trained[f"backbone/{name}"])}  # fmt: skip
    assert moved and {name.split("/")[0] for name in moved} == {"block2", "block3"}
    # A later run begins from it, blocks and head.
    assert cli.main(["train", *given, "--init-from", "1"]) == 0


def test_its_own_classifier_predicts_its_own_classes(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = files.Known("birdnet", "Made", RATE_HZ, RATE_HZ, SIZE, ("*.tflite",), "")
    monkeypatch.setattr(files, "KNOWN", {"birdnet": known})
    out = tmp_path / "scores.csv"
    assert cli.main(["predict", "--model", str(model), "--out", str(out), str(data / "Apus")]) == 0
    rows = read_csv(out)
    names = ["Apus apus_Swift", "Bubo bubo_Owl", "Corvus corax_Raven"]
    assert [name.removeprefix("score:") for name in rows[0] if name.startswith("score:")] == names
    assert len(rows) == 8 and {row["class"] for row in rows} <= set(names)


def test_a_model_without_names_of_classes_numbers_them_and_says_so(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = files.Known("birdnet", "Made", RATE_HZ, RATE_HZ, SIZE, ("*.tflite",), "")
    monkeypatch.setattr(files, "KNOWN", {"birdnet": known})
    (tmp_path / "made.tflite").write_bytes(model.read_bytes())
    given = ["predict", "--model", str(tmp_path / "made.tflite"), "--out", str(tmp_path / "scores.csv")]
    assert cli.main([*given, str(data / "Apus")]) == 0
    assert "names of the 3 classes of" in (said := "".join(capsys.readouterr())) and "numbered from 0" in said
    assert "score:class 2" in read_csv(tmp_path / "scores.csv")[0]


def test_check_says_whether_a_known_model_is_the_published_file(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["check", *arguments(data, tmp_path / "output", model, "--model.backbone", "birdnet")[1:]]
    for digest, words in ((file_sha256(model), "file: as published"), ("0" * 64, "file: not the file of Made")):
        known = files.Known("birdnet", "Made", RATE_HZ, RATE_HZ, SIZE, ("*.tflite",), "", sha256=digest)
        monkeypatch.setattr(files, "KNOWN", {"birdnet": known})
        files._opened.cache_clear()
        assert cli.main(given) == 0
        assert words in (said := capsys.readouterr().out)
        assert re.search(r"embed   about .*, once: \d+ windows of all recordings, [\d,]+ a second \(measured\)", said)


def test_the_only_weights_in_the_input_are_taken(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = files.Known("birdnet", "Made", RATE_HZ, RATE_HZ, SIZE, ("*.tflite",), "Get it.")
    monkeypatch.setattr(files, "KNOWN", {"birdnet": known})
    (tmp_path / "some name.tflite").symlink_to(model)
    found, said = registry.settled(Config(input=tmp_path))
    assert found.model.backbone == "birdnet" and "some name.tflite lies in the input folder" in said[0]
    assert found.train.hop_s == 0.5  # half of its window
    (tmp_path / "yamnet.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(SettingsError, match=r"weights of several backbones .*yamnet.*birdnet.*--model\.backbone"):
        registry.settled(Config(input=tmp_path))


# ---- bad input ----------------------------------------------------------------------------------


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(BirdtuneError) as caught:
        verify_checkpoint(config(path, **settings), remember=False)
    assert caught.value.exit_code == 42
    return str(caught.value)


def test_what_is_no_network_of_waveforms_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tf.function(
        lambda image: tf.reduce_mean(image, axis=[1, 2]),
        input_signature=[tf.TensorSpec([1, 32, 32, 3], tf.float32)], autograph=False,
    )  # fmt: skip
    assert "takes" in (said := refused(converted(tmp_path / "picture.tflite", picture))) and "pictures" in said
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(model.read_bytes()[:5000])
    assert "damaged or cut off" in refused(damaged)
    damaged.write_bytes(b"")
    assert "is neither a TensorFlow Lite, a Keras" in refused(damaged, backbone="custom")
    with pytest.raises(SettingsError, match=r"would be 0\.06 s long"):
        registry.backbone_of(config(model, sample_rate_hz=400_000))
    assert re.search(r"is not BirdNET 2\.4: .*custom", refused(model, backbone="birdnet", sample_rate_hz=None))
    with pytest.raises(SettingsError, match="takes 24,000 samples, which are 1 s"):
        registry.backbone_of(config(model, window_s=3.0))
    made = replace(files.BIRDNET, embedding_size=SIZE, n_samples=RATE_HZ, n_classes=3)
    monkeypatch.setattr(files, "KNOWN", {"birdnet": made})
    assert "Give --model.backbone birdnet" in refused(model, backbone="custom")
    assert "takes 48,000 Hz. Leave the setting out" in refused(model, backbone="birdnet")


def test_an_operation_that_is_not_known_is_named(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    odd = tf.function(
        lambda waveform: tf.sign(tf.matmul(waveform, kernel)),
        input_signature=[tf.TensorSpec([1, 600], tf.float32)], autograph=False,
    )  # fmt: skip
    assert re.search("does not compute: SIGN", refused(converted(tmp_path / "odd.tflite", odd), sample_rate_hz=1000))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda net: tf.math.log(-1.0 - tf.abs(net)), "are NaN or infinite"),
        # Constants of one window that no shape shows.
        (lambda net: tf.concat([net, np.ones((1, 6), np.float32)], 1), "made for one window .* an open batch"),
        (lambda net: tf.sign(net), "does not compute: SIGN"),
        # Which runs, and mixes the windows.
        (lambda net: tf.matmul(net - tf.reduce_mean(net), np.eye(6, dtype="f")), "depends on the windows .* an open"),
    ],
)  # fmt: skip
def test_of_a_model_for_one_window_the_true_reason_is_said(
    end: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    said = refused(of_one_window(tmp_path / "one.tflite", (1, RATE_HZ), end))
    assert re.search(reason, said) and "{{" not in said and "damaged" not in said


def test_what_tensorflow_says_is_shown_without_its_own_names(tmp_path: Path) -> None:
    with pytest.raises(tf.errors.OpError) as caught:
        tf.reshape(tf.zeros(3), [2])
    assert "{{" in str(caught.value)
    assert tensorflow_words(caught.value) == "Input to reshape is a tensor with 3 values, but the requested shape has 2"


@pytest.mark.parametrize(
    ("inputs", "what_to_do"),
    [
        ({"a": ([1, 600], tf.int16)}, "with a float32 waveform"),
        ({"a": ([1, 600], tf.float32), "b": ([1, 600], tf.float32)}, "of the waveform alone"),
        ({"a": ([1, None], tf.float32)}, "samples is open: convert it with the length"),
        ({"a": ([4, 600], tf.float32)}, r"made for 4 at a time: .* \[None, 600\]"),
        ({"a": ([1, 20, 30], tf.float32)}, "pictures or of spectrograms"),
    ],
)
def test_of_inputs_that_are_no_waveform_it_is_said_what_to_do(
    inputs: dict[str, Any], what_to_do: str, tmp_path: Path
) -> None:
    function = tf.function(
        lambda *given: sum(tf.reduce_mean(tf.cast(one, tf.float32)) for one in given),
        input_signature=[tf.TensorSpec(*one, name=name) for name, one in inputs.items()], autograph=False,
    )  # fmt: skip
    assert re.search(what_to_do, refused(converted(tmp_path / "odd.tflite", function), sample_rate_hz=1000))
