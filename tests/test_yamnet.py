"""birdtune.models.yamnet: the published network, from both of its files; and the same as TensorFlow Lite computes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers_input import CLASSES, write_good
from helpers_serving import sound
from helpers_yamnet import PUBLISHED, Array, Drawn, write_hdf5
from helpers_yamnet import original as originals
from makers import Here

from birdtune.audio import decode
from birdtune.audio.logmel import YAMNET, hann_window, log_mel
from birdtune.config import Config
from birdtune.errors import CheckpointError, InputError, SettingsError
from birdtune.models import classifier as classifiers
from birdtune.models import registry, tflite, yamnet
from birdtune.models.registry import BACKBONES, read_weights
from birdtune.pipeline import embed as embedding
from birdtune.pipeline import predict as prediction
from birdtune.pipeline import run as job
from birdtune.pipeline import slim
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.workers import Crashed
from birdtune.serving import verify

GOOGLES = Path(__file__).parents[2] / "shared" / "data" / "yamnet"
SOUNDS = Path(__file__).parents[2] / "shared" / "data" / "biodcase"
with_googles = pytest.mark.skipif(not GOOGLES.exists(), reason="YAMNet's published weights are not here")


def noise(n: int = 3) -> Array:
    return np.random.default_rng(0).normal(-3.4, 2.1, (n, 96, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def original() -> tuple[keras.Model, dict[str, Array]]:
    return originals()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 is read in this process, not in one that takes a second to start."""
    monkeypatch.setattr(yamnet, "Isolated", Here)


def embedded(arrays: dict[str, Array], features: Array) -> Array:
    backbone = BACKBONES["yamnet"].network(embedding_activation="relu", precision="float32", seed=None)
    BACKBONES["yamnet"].load(backbone, arrays)
    return np.asarray(backbone(features))


# ---- the table ----------------------------------------------------------------------------------


def test_the_layers_are_the_published_ones() -> None:
    steps = yamnet.BACKBONE.steps()
    assert [step.row.name for step in steps[:4]] == ["layer1", "layer2_depthwise", "layer2", "layer3_depthwise"]
    by_block = [step for step in steps if "depthwise" not in step.row.name]
    strides = [step.row.stride for step in steps if step.row.kind != "pointwise"]
    assert [step.row.width for step in by_block] == [width for _, _, width in PUBLISHED]
    assert strides == [stride for _, stride, _ in PUBLISHED]
    assert [step.places for step in steps[-2:]] == [3 * 2, 3 * 2]
    # 3.7 million with the published classifier and 69 million multiply-adds, as Google's README says.
    assert yamnet.BACKBONE.weight_count() + 1025 * 521 == 3_729_481
    assert yamnet.BACKBONE.window_flops() == pytest.approx(2 * 69e6, rel=0.01)


def test_windows_become_embeddings_of_1024_numbers_in_every_precision() -> None:
    for precision in ("float32", "mixed_bfloat16"):
        backbone = BACKBONES["yamnet"].network(embedding_activation="relu", precision=precision, seed=1)
        embeddings = backbone(noise(2))
        assert embeddings.shape == (2, 1024)
        assert keras.backend.standardize_dtype(embeddings.dtype) == "float32"
        # Fresh weights keep the signal alive, and windows apart, through 27 layers.
        assert 1e-3 < np.asarray(embeddings).std() < 50
        assert np.ptp(np.asarray(embeddings), axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("point", "n_free"), [("none", 27), ("layer1", 26), ("layer13", 2), ("layer14_depthwise", 1), ("all-but-head", 0)]
)
def test_it_has_freeze_points_of_its_own(point: str, n_free: int) -> None:
    backbone = BACKBONES["yamnet"].network(embedding_activation="relu", precision="float32", seed=None)
    BACKBONES["yamnet"].freeze(backbone, point)
    assert len(backbone.trainable_variables) == 2 * n_free
    with pytest.raises(SettingsError, match="layer14"):
        BACKBONES["yamnet"].freeze(backbone, "conv4_1")


def test_what_it_was_never_trained_with_is_refused() -> None:
    with pytest.raises(SettingsError, match="embedding-activation"):
        BACKBONES["yamnet"].network(embedding_activation="none", precision="float32", seed=None)


# ---- yamnet.h5 ----------------------------------------------------------------------------------


def test_the_h5_gives_what_the_network_with_batch_normalisation_gives(
    original: tuple[keras.Model, dict[str, Array]], tmp_path: Path
) -> None:
    model, arrays = original
    embeddings, scores = (np.asarray(output) for output in model(noise()))
    assert embeddings.std() > 0.01, "a dead network proves nothing"
    found = yamnet.read_weights(write_hdf5(tmp_path / "yamnet.h5", arrays))
    np.testing.assert_allclose(embedded(found, noise()), embeddings, rtol=1e-4, atol=1e-5 * embeddings.max())
    plain = classifiers.published(yamnet.BACKBONE, found, yamnet.read_classes(tmp_path / "yamnet.h5"))
    np.testing.assert_allclose(plain.scores(noise())[0], scores, atol=1e-5)
    assert plain.classes[520] == "class 520"


def damaged(arrays: dict[str, Array], change: str) -> dict[str, Array]:
    mean, kernel = "layer7/depthwise_conv/bn/moving_mean", "layer3/pointwise_conv/kernel"
    found = {name: array.copy() for name, array in arrays.items()}
    if change == "missing":
        del found[mean]
    elif change == "gamma":
        found["layer2/depthwise_conv/bn/gamma"] = np.ones(32, np.float32)
    elif change == "shape":
        found[kernel] = found[kernel][:, :, :-1]
    elif change == "whole numbers":
        found[kernel] = found[kernel].astype(np.int32)
    elif change == "nan":
        found[kernel][0, 0, 0, 0] = np.nan
    elif change == "variance":
        found["layer9/pointwise_conv/bn/moving_variance"][3] = -1.0
    return found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("missing", "missing: layer7/depthwise_conv/bn/moving_mean"),
        ("gamma", "not expected, but there: layer2/depthwise_conv/bn/gamma"),
        ("shape", r"layer3/pointwise_conv/kernel:0 holds float32 of shape \[1, 1, 63, 128\]"),
        ("whole numbers", "layer3/pointwise_conv/kernel:0 holds int32"),
        ("nan", "NaN or infinity: layer3/pointwise_conv/kernel"),
        ("variance", "NaN or infinity: layer9/pointwise_conv/kernel, layer9/pointwise_conv/bias"),
    ],
)
def test_an_h5_of_another_network_is_refused(
    original: tuple[keras.Model, dict[str, Array]], tmp_path: Path, here: None, change: str, why: str
) -> None:
    path = write_hdf5(tmp_path / "yamnet.h5", damaged(original[1], change))
    with pytest.raises(CheckpointError, match=why) as caught:
        yamnet.read_weights(path)
    assert str(caught.value).startswith(str(path))


def test_an_h5_that_takes_its_numbers_from_elsewhere_is_refused(
    original: tuple[keras.Model, dict[str, Array]], tmp_path: Path, here: None
) -> None:
    arrays = dict(original[1])
    kernel = arrays.pop("layer1/conv/kernel")
    (tmp_path / "secret").write_bytes(kernel.tobytes())
    path = write_hdf5(tmp_path / "yamnet.h5", arrays)
    with h5py.File(path, "a") as file:
        outside = [(str(tmp_path / "secret"), 0, kernel.nbytes)]
        file.create_dataset("layer1/conv/layer1/conv/kernel:0", kernel.shape, "f4", external=outside)
    with pytest.raises(CheckpointError, match="from other files"):
        yamnet.read_weights(path)


def test_no_damage_of_an_h5_is_fatal_or_goes_unnoticed(
    original: tuple[keras.Model, dict[str, Array]], tmp_path: Path, here: None
) -> None:
    path = write_hdf5(tmp_path / "yamnet.h5", original[1])
    content = path.read_bytes()
    for size in (0, 8, 100, 3_000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=str(path)):
            yamnet.read_weights(path)


def test_an_h5_that_kills_its_reader_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def __init__(self, function: object) -> None:
            pass

        def __enter__(self) -> "Dead":
            return self

        def __exit__(self, *fault: object) -> None:
            return None

        def items(self, path: Path) -> Iterator[Any]:
            raise Crashed

    monkeypatch.setattr(yamnet, "Isolated", Dead)
    (tmp_path / "yamnet.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match="died reading it"):
        yamnet.read_weights(tmp_path / "yamnet.h5")


# ---- yamnet.tflite ------------------------------------------------------------------------------


def interpreter(path: Path, *, plainly: bool = False) -> Any:
    """TensorFlow's interpreter, all tensors kept; `plainly` without XNNPACK, which computes in a way of its own."""
    kinds = tf.lite.experimental.OpResolverType
    how = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plainly else kinds.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        made = tf.lite.Interpreter(str(path), experimental_op_resolver_type=how, experimental_preserve_all_tensors=True)
    made.allocate_tensors()
    return made


@pytest.fixture(scope="module")
def folded(
    original: tuple[keras.Model, dict[str, Array]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Array]:
    return yamnet.read_weights(write_hdf5(tmp_path_factory.mktemp("folded") / "yamnet.h5", original[1]))


@pytest.fixture(scope="module")
def drawn(folded: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Drawn]:
    drawn = Drawn(folded)
    return drawn.write(tmp_path_factory.mktemp("drawn") / "yamnet.tflite"), drawn


def test_the_tflite_gives_what_the_interpreter_gives(drawn: tuple[Path, Drawn]) -> None:
    path, made = drawn
    lite = interpreter(path, plainly=True)
    found = yamnet.read_weights(path)
    plain = classifiers.published(yamnet.BACKBONE, found, yamnet.read_classes(path))
    scores, embeddings = (np.asarray(output) for output in plain.scores(noise()))
    assert embeddings.std() > 0.01
    for patch, own_scores, own_embedding in zip(noise(), scores, embeddings, strict=True):
        lite.set_tensor(0, patch[None, :, :, None])
        lite.invoke()
        theirs = [lite.get_tensor(output)[0] for output in made.outputs]
        np.testing.assert_allclose(own_scores, theirs[0], atol=1e-5)
        np.testing.assert_allclose(own_embedding, theirs[1], rtol=1e-4, atol=1e-5 * theirs[1].max())


def test_whole_numbers_are_read_the_same_whether_the_graph_brings_them_back_or_not(
    drawn: tuple[Path, Drawn], folded: dict[str, Array], tmp_path: Path
) -> None:
    found = yamnet.read_weights(drawn[0])
    direct = yamnet.read_weights(Drawn(folded, dequantizes=False).write(tmp_path / "yamnet.tflite"))
    assert found.keys() == direct.keys() == folded.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, direct[name])
        np.testing.assert_allclose(array, folded[name], atol=0.51 / 127 * np.abs(folded[name]).max())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layer3/depthwise_conv": {"strideW": 1, "strideH": 1}},
         r"where layer3/depthwise_conv should be .*depthwise, \[3, 3, 64, 1\], relu, \[1, 1\], same"),
        ({"layer2/pointwise_conv": {"fusedActivationFunction": 0}}, "where layer2/pointwise_conv should be .*none"),
        ({"layer1/conv": {"padding": 1}}, "where layer1/conv should be .*valid"),
    ],
)  # fmt: skip
def test_a_tflite_that_computes_something_else_is_refused(
    folded: dict[str, Array], tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    path = Drawn(folded, **changes).write(tmp_path / "yamnet.tflite")
    with pytest.raises(CheckpointError, match=why):
        yamnet.read_weights(path)


def test_layers_that_do_not_follow_on_each_other_are_refused(folded: dict[str, Array], tmp_path: Path) -> None:
    class Bypassed(Drawn):
        def convolution(self, step: Any, now: int) -> int:
            # Layers 9 to 11 look alike: with their order alone, a bypass of one would not be seen.
            self.before = getattr(self, "before", now) if step.row.name == "layer10_depthwise" else now
            made = super().convolution(step, now)
            return self.before if step.row.name == "layer10" else made

    path = Bypassed(folded).write(tmp_path / "yamnet.tflite")
    with pytest.raises(CheckpointError, match=r"where layer11/depthwise_conv should be .*does not follow"):
        yamnet.read_weights(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"TFL3", b"<!DOCTYPE html>", b"\0" * 5000):
        path = tmp_path / "yamnet.tflite"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"neither HDF5 .* nor TensorFlow Lite"):
            yamnet.read_weights(path)
    with pytest.raises(CheckpointError, match="neither"):
        yamnet.read_weights(tmp_path)


def test_weights_of_yamnet_choose_it(drawn: tuple[Path, Drawn]) -> None:
    found, said = registry.settled(Config(model={"checkpoint": str(drawn[0])}))
    assert found.model.backbone == "yamnet" and f"{drawn[0]} has weights of YAMNet" in said[0]
    kept = registry.settled(Config(model={"checkpoint": str(drawn[0]), "backbone": "vggish"}))[0]
    assert kept.model.backbone == "vggish"


def test_weights_of_one_backbone_given_to_another_are_distinguished(drawn: tuple[Path, Drawn]) -> None:
    with pytest.raises(CheckpointError, match=r"looks like weights of YAMNet, .* --model.backbone yamnet"):
        read_weights(BACKBONES["vggish"], drawn[0])
    with pytest.raises(CheckpointError, match=r"looks like weights of VGGish, .* --model.backbone vggish"):
        read_weights(BACKBONES["yamnet"], drawn[0].parent)


# ---- names of the classes -----------------------------------------------------------------------


def test_the_classes_have_their_names_where_the_class_map_lies_beside_the_weights(tmp_path: Path) -> None:
    table, path = tmp_path / "yamnet_class_map.csv", tmp_path / "yamnet.h5"
    rows = [f'{column},/m/{column},"Sound, no. {column}"' for column in range(521)]
    table.write_text("\n".join(["index,mid,display_name", *rows]))
    assert yamnet.read_classes(path)[520] == "Sound, no. 520"
    for wrong in (rows[:-1], [*rows[1:], rows[0]], [*rows[:-1], "520,/m/520,"]):
        table.write_text("\n".join(["index,mid,display_name", *wrong]))
        with pytest.raises(InputError, match="is not YAMNet's class map"):
            yamnet.read_classes(path)


# ---- the published weights ----------------------------------------------------------------------


def rounded(x: Array, axis: int | tuple[int, ...] | None, *, evenly: bool) -> Array:
    """Numbers as the interpreter rounds them to 8 bits before it multiplies them; one scale for all but `axis`."""
    low = np.minimum(0, x.min(axis=axis, keepdims=True))
    high = np.maximum(0, x.max(axis=axis, keepdims=True))
    if evenly:
        scale = np.maximum(np.maximum(-low, high) / 127, 1e-30)
        return (np.clip(np.round(x / scale), -127, 127) * scale).astype(np.float32)
    scale = np.maximum((high - low) / 255, 1e-30)
    zero = np.round(-128 - low / scale)
    return ((np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def googles() -> classifiers.Classifier:
    path = GOOGLES / "yamnet.tflite"
    return classifiers.published(yamnet.BACKBONE, yamnet.read_weights(path), yamnet.read_classes(path))


@pytest.fixture(scope="module")
def real() -> list[Array]:
    """Real sound: the first 0.975 s of birds, and noise. [15600] each"""
    return [decode.read(path, rate_hz=16_000)[: YAMNET.window_samples] for path in sorted(SOUNDS.glob("*/*.wav"))]


@with_googles
def test_on_real_sound_the_published_network_is_that_of_the_interpreter(
    googles: classifiers.Classifier, real: list[Array]
) -> None:
    lite = interpreter(GOOGLES / "yamnet.tflite")
    for waveform in real:
        lite.set_tensor(0, waveform[None])
        lite.invoke()
        theirs, frames, embedding = lite.get_tensor(123)[0], lite.get_tensor(89), lite.get_tensor(121)[0]
        scores, embeddings = (np.asarray(output)[0] for output in googles.scores(frames[None]))
        # The interpreter rounds activations to 8 bits on the way, this network does not.
        assert np.abs(scores - theirs).max() < 0.05
        assert embeddings @ embedding > 0.999 * np.linalg.norm(embeddings) * np.linalg.norm(embedding)


@with_googles
def test_what_differs_from_the_interpreter_is_its_rounding_alone(real: list[Array]) -> None:
    lite = interpreter(GOOGLES / "yamnet.tflite", plainly=True)
    layers = tflite.read_layers(GOOGLES / "yamnet.tflite")
    differences = []
    for waveform in real:
        lite.set_tensor(0, waveform[None])
        lite.invoke()
        net = lite.get_tensor(89)[None, :, :, None]
        for layer in layers[3:-1]:
            if layer.kind == "depthwise":
                net = tf.nn.depthwise_conv2d(net, layer.kernel, (1, *layer.strides, 1), "SAME")
            else:
                net = rounded(net, None, evenly=True) if layer.is_quantized else net
                net = tf.nn.conv2d(net, layer.kernel, layer.strides, "SAME")
            net = tf.nn.relu(net + layer.bias).numpy()
        embedding = rounded(net.mean(axis=(1, 2)), 1, evenly=True)
        logits = (embedding @ layers[-1].kernel + layers[-1].bias)[0]
        differences.append(np.abs(1 / (1 + np.exp(-logits)) - lite.get_tensor(123)[0]).max())
    # A number on the edge between two steps falls to the other side now and then.
    assert np.median(differences) < 1e-4, differences
    assert max(differences) < 0.2, differences


@with_googles
def test_the_front_end_is_that_of_the_published_network(real: list[Array]) -> None:
    lite = interpreter(GOOGLES / "yamnet.tflite")
    cosine, sine, mel = tflite.read_layers(GOOGLES / "yamnet.tflite")[:3]
    assert mel.bias == pytest.approx(np.full(64, 0.001))
    typical = []
    for waveform in real:
        lite.set_tensor(0, waveform[None])
        lite.invoke()
        windows = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160] * hann_window(YAMNET)
        windows = rounded(np.pad(windows, ((0, 0), (56, 56))).astype(np.float32), 1, evenly=False)
        spectrum = np.hypot(windows @ cosine.kernel, windows @ sine.kernel)
        frames = np.log(rounded(spectrum, 1, evenly=False) @ mel.kernel + mel.bias)
        # With its Fourier transform in whole numbers, these frames; exactly, those of this front end.
        assert np.abs(frames - lite.get_tensor(89)).mean() < 1e-4
        typical.append(np.median(np.abs(frames - log_mel(waveform, YAMNET)[:96])))
    assert np.median(typical) < 0.1, typical


@with_googles
def test_it_predicts_what_was_recorded(googles: classifiers.Classifier) -> None:
    for folder, name in {"Rooster": "Chicken, rooster", "Dog_bark": "Dog", "Rain": "Rain"}.items():
        frames = log_mel(decode.read(min((GOOGLES.parent / "esc10" / folder).glob("*.ogg")), rate_hz=16_000), YAMNET)
        features = np.stack([frames[start : start + 96] for start in range(0, len(frames) - 95, 48)])
        best = np.argsort(-np.asarray(googles.scores(features)[0]).mean(axis=0))[:5]
        assert name in [googles.classes[column] for column in best], folder


# ---- in the house -------------------------------------------------------------------------------


def test_the_job_runs_on_it(
    original: tuple[keras.Model, dict[str, Array]], tmp_path: Path, in_one_process: None
) -> None:
    """The commands on weights of the right shapes: prepare to export, the model in use, and what is refused."""
    write_good(tmp_path / "input" / "data", recordings=7)
    write_hdf5(tmp_path / "input" / "yamnet.h5", original[1])
    flags = {
        "input": tmp_path / "input", "output": tmp_path / "out", "model.backbone": "yamnet",
        "model.freeze": "all-but-head", "train.epochs": 2, "train.learning-rate": 0.01, "train.jit": False,
        "evaluate.bootstrap": 20, "prepare.workers": 1,
    }  # fmt: skip
    config, journal, interrupts = configure.load(flags, {}), Journal(quiet=True), Interrupts()
    assert job.run(config, journal, interrupts, until="export") == 0
    journal.close()
    record = read_json(tmp_path / "out" / "run.json")
    assert record["precision"] == "float32"  # `auto`: on a CPU it is no faster in bfloat16
    assert [path.name.split("-")[0] for path in (tmp_path / "out" / "cache").glob("*-soxr*")] == ["yamnet"]

    # 1.5 s give a window at 0, at 0.48 s and at the end.
    sounds = [tmp_path / "input" / "data" / name / "rec0.wav" for name in CLASSES]
    folder = tmp_path / "out" / "model" / "birdtune" / "1"
    assert verify.open_model(folder).facts["front_end"]["digest"] == YAMNET.digest
    embedding.embed(config, None, sounds[:1], tmp_path / "model.npz", journal, interrupts)
    of_backbone = tmp_path / "input" / "yamnet.h5"
    embedding.embed(config, of_backbone, sounds[:1], tmp_path / "backbone.npz", journal, interrupts)
    waveform = decode.read(sounds[0], rate_hz=16_000)
    served = sound(tf.saved_model.load(str(folder)), waveform, signature="embed")
    with np.load(tmp_path / "model.npz") as ours, np.load(tmp_path / "backbone.npz") as backbone:
        assert ours["start_s"] == pytest.approx([0, 0.48, 0.53])
        assert ours["embeddings"].shape == (3, 1024)
        # Frozen, the backbone is what it was.
        np.testing.assert_allclose(ours["embeddings"], backbone["embeddings"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours["embeddings"], served["embeddings"][0], rtol=1e-3, atol=1e-4)
    prediction.predict(config, None, sounds, tmp_path / "p.csv", None, journal, interrupts)
    assert [row["windows"] for row in read_csv(tmp_path / "p.csv")] == ["3", "3", "3"]

    # More windows than are scored at a time.
    long = np.tile(waveform, 27)
    frames = np.concatenate(list(YAMNET.rows_of([long])))
    features = np.stack([frames[start : start + 96] for start in YAMNET.starts(len(frames))])
    assert len(features) > 64
    scores = verify.open_model(folder).scores(features)[0]
    served = sound(tf.saved_model.load(str(folder)), long)
    np.testing.assert_allclose(served["window_scores"][0], scores, atol=1e-5)

    plain = tmp_path / "input" / "yamnet.h5"
    prediction.predict(config, plain, sounds[:1], tmp_path / "plain.csv", None, journal, interrupts)
    (row,) = read_csv(tmp_path / "plain.csv")
    assert row["class"].startswith("class ") and "score:class 520" in row
    prediction.predict(config, plain, sounds[:1], tmp_path / "w.csv", None, journal, interrupts, window_s=0.96)
    window, rest = read_csv(tmp_path / "w.csv")  # what is left of 1.5 s is shorter than a window
    assert (window["end_s"], window["windows"], window["decision"]) == ("0.96", "1", "")
    assert (rest["start_s"], rest["end_s"], rest["windows"]) == ("0.53", "1.5", "1")
    assert window["class"].startswith("class ")
    with pytest.raises(SettingsError, match=r"--format slim: .* vggish, vggish-small, and model.backbone is yamnet"):
        slim.export_slim_model(config, journal)
