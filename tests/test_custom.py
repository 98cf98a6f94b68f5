"""A SavedModel as a backbone: a made network that takes 3 s of waveform at 48 kHz, through every command."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from makers import write_tones

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import BirdtuneError, CheckpointError
from birdtune.models import registry
from birdtune.models.weights import verify_checkpoint
from birdtune.runtime.files import read_json

RATE_HZ, N_SAMPLES, SIZE = 48_000, 144_000, 12
CLASSES = {"Apus": 1500.0, "Bubo": 4000.0, "Corvus": 12_000.0}  # the last is above what 16 kHz can hold


class Bands(tf.Module):
    """Logarithms of the energy in 32 bands, times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.random.default_rng(0).normal(0, 0.3, (32, SIZE)).astype(np.float32))

    def __call__(self, waveform: tf.Tensor) -> tf.Tensor:
        power = tf.square(tf.abs(tf.signal.rfft(tf.signal.frame(waveform, 1024, 1024))))[:, :, :512]
        bands = tf.reduce_mean(tf.reshape(power, [-1, tf.shape(power)[1], 32, 16]), axis=[1, 3])
        return tf.nn.relu(tf.matmul(tf.math.log(bands + 1e-4) + 6.0, self.kernel))


def saved(
    folder: Path, make: Any = None, n_samples: int | None = N_SAMPLES, rank: int = 2, batch: int | None = None,
    kind: Any = tf.float32,
) -> Path:  # fmt: skip
    """A SavedModel whose signature `embeddings` gives what `make` makes of (network, waveform)."""
    module = Bands()
    shape = [batch, n_samples, 1][:rank]

    def embeddings(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        waveform = tf.cast(waveform, tf.float32)
        found = module(waveform) if make is None else make(module, waveform)
        return found if isinstance(found, dict) else {"embedding": found}

    given = tf.TensorSpec(shape, kind, name="waveform")
    module.embeddings = tf.function(embeddings, input_signature=[given], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"embeddings": module.embeddings})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "bands")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("data"), CLASSES, 3.5, RATE_HZ)


def config(model: Path, **settings: Any) -> Config:
    """Settings by section and name, as `model__window_s`."""
    sections: dict[str, dict[str, Any]] = {"model": {"checkpoint": str(model), "sample_rate_hz": RATE_HZ}}
    for name, value in settings.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    return registry.settled(Config(**sections))[0]


def test_perch_is_known_by_what_it_takes_and_gives(tmp_path: Path) -> None:
    """A made model of the signature that was published with Perch 2."""
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(0, 1, (100, 1536)).astype(np.float32))

    def serve(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        embedding = tf.matmul(inputs[:, :100], module.kernel)
        return {
            "embedding": embedding, "spatial_embedding": tf.tile(embedding[:, None, None, :], [1, 16, 4, 1]),
            "label": embedding[:, :700], "spectrogram": tf.reshape(inputs[:, :64000], [-1, 500, 128]),
        }  # fmt: skip

    given = tf.TensorSpec([None, 160_000], tf.float32, name="inputs")
    module.serve = tf.function(serve, input_signature=[given], autograph=False)
    tf.saved_model.save(module, str(tmp_path / "perch_v2"), signatures={"serving_default": module.serve})
    found, said = registry.settled(Config(input=tmp_path))
    backbone = registry.backbone_of(found)
    assert found.model.backbone == "perch" and "perch_v2 lies in the input folder" in said[0]
    assert (backbone.sample_rate_hz, backbone.window_s, backbone.embedding_size) == (32_000, 5.0, 1536)
    assert verify_checkpoint(found.model_copy(update={"output": tmp_path / "out"}), remember=False) is not None


# ---- every command ------------------------------------------------------------------------------


def test_it_goes_through_every_command(
    model: Path, data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "output")
    settings = [
        f"--data={data}", f"--output={output}", f"--input={tmp_path}", f"--model.checkpoint={model}",
        f"--model.sample-rate-hz={RATE_HZ}", "--train.epochs=6", "--train.learning-rate=0.02", "--train.batch-size=4",
        "--train.jit=false", "--prepare.workers=1", "--evaluate.bootstrap=50", "--augment.gain-db=3",
        "--augment.pink-noise=0.3", "--augment.mixup=0.2", "--augment.time-roll-s=0.5", "--augment.time-mask-s=0.3",
    ]  # fmt: skip
    assert cli.main(["run", *settings]) == 0
    said = capsys.readouterr().out
    assert "is a model that takes a waveform: --model.backbone custom" in said and "--model.freeze all-but-head" in said
    # 24 recordings of 2 windows are embedded once for all that needs it, and 4 augmented copies of the 36 of training.
    assert sum(int(n) for n in re.findall(r"computed once, for (\d+) windows", said)) == 48 + 4 * 36
    metrics = read_json(Path(output) / "reports/1/metrics.json")
    assert metrics["test"]["clip"]["accuracy"] == 1.0
    served = Path(output) / "model/birdtune/1"
    assert read_json(served / "model.json")["front_end"]["rate_hz"] == RATE_HZ
    assert read_json(served / "model.json")["backbone_origin"]["licence"] is None
    page = (Path(output) / "reports/1/report.html").read_text("utf-8")
    assert 'aria-label="Spectrogram' in page and "data:audio/" in page
    assert "unknown: ask whoever made it" in page

    clips = sorted(str(path) for path in data.glob("*/* 0.wav"))
    table = tmp_path / "p.csv"
    assert cli.main(["predict", f"--output={output}", f"--out={table}", "--window=3", *clips]) == 0
    with table.open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [name for name in CLASSES for _ in range(2)]

    made = [tmp_path / "served.npz", tmp_path / "backbone.npz"]
    assert cli.main(["embed", f"--output={output}", f"--out={made[0]}", *clips]) == 0
    of_backbone = [f"--model={model}", f"--model.sample-rate-hz={RATE_HZ}"]
    assert cli.main(["embed", f"--output={output}", f"--out={made[1]}", *of_backbone, *clips]) == 0
    ours, theirs = (np.load(path)["embeddings"] for path in made)
    assert ours.shape == (6, SIZE)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    other = saved(tmp_path / "other", make=lambda net, x: 2.0 * net(x))
    of_other = ["--init-from=latest", f"--model.checkpoint={other}"]
    assert cli.main(["run", *settings[:3], *settings[4:5], *of_other]) == 42
    assert "was trained on another SavedModel" in capsys.readouterr().err

    assert cli.main(["compare", *settings[:11], "--train.epochs=2"]) == 0
    assert read_json(Path(output) / "compare.json")["best"]


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model__sample_rate_hz": None}, r"does not say for which sample rate .* --model\.sample-rate-hz 48000"),
        ({"model__window_s": 2.0}, r"--model\.window-s 2: .* takes 144,000 samples, which are 3 s at 48,000 Hz"),
        ({"model__sample_rate_hz": 1000}, r"would be 144 s long"),
        ({"model__freeze": "none"}, r"--model\.freeze none: a SavedModel is not trained"),
        ({"audio__band_limit": 4000.0}, r"--audio\.band-limit: works on mel bands"),
        ({"augment__band_mask": 3, "augment__pitch_shift": 1}, r"pitch-shift and --augment\.band-mask: works on mel"),
        ({"train__hop_s": 4.0}, r"--train\.hop-s 4: a window of .* has 3 s"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BirdtuneError, match=words) as caught:
        wanted = config(model, **settings)
        registry.backbone_of(wanted).frozen_layers(wanted.model.freeze)
    assert caught.value.exit_code in (2, 42)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rank": 3}, r"no signature from a waveform to embeddings .*waveform \[N, 144000, 1\]"),
        ({"make": lambda net, x: {"one": net(x), "two": net(x)}},
         r"no signature .*one \[N, 12\], two \[N, 12\].*, e\.g\. --model\.embedding-output one\.$"),
        ({"batch": 1}, r"was made for 1 at a time: .* \[None, 144000\]"),
        ({"kind": tf.int16}, r"with a float32 waveform between -1 and 1"),
        ({"make": lambda net, x: net(x) - tf.reduce_mean(net(x))}, r"depends on the windows that it is computed with"),
        ({"make": lambda net, x: tf.io.read_file("/etc/hostname")}, r"was not loaded.*ReadFile"),
        ({"make": lambda net, x: net(x) / 0.0}, r"embeddings of a made sound are NaN or infinite"),
        ({"make": lambda net, x: 0.0 * net(x) + 1.0}, r"do not depend on the sound"),
        ({"make": lambda net, x: net(x + tf.random.normal(tf.shape(x), seed=1))}, r"differ between two calls"),
    ],
)
def test_models_that_cannot_be_used_are_refused(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    if how.get("rank") == 3:
        how = {**how, "make": lambda net, x: net(x[:, :, 0])}
    with pytest.raises(CheckpointError, match=words):
        verify_checkpoint(config(saved(tmp_path / "model", **how)), remember=False)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_model_that_cannot_be_used_ends_the_command_before_recordings_are_read(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("recordings were read")

    monkeypatch.setattr(f"birdtune.data.dataset.{'inspect' if command == 'check' else 'prepare'}", read)
    folder = saved(tmp_path / "model", make=lambda net, x: net(x) / 0.0)
    given = ["--data", str(data), "--output", str(tmp_path / "output"), "--model.checkpoint", str(folder)]
    assert cli.main([command, *given, "--model.sample-rate-hz", str(RATE_HZ)]) == 42
    said = "".join(capsys.readouterr()).strip().splitlines()
    refusals = [line for line in said if "NaN or infinite" in line]
    assert refusals == [said[-1]] and said[-1].startswith("birdtune: error: ")


def test_check_proposes_noise_for_class_folders_on_a_backbone_of_waveforms(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["check", f"--data={data}", f"--output={tmp_path / 'output'}"]
    on_sound = [f"--model.checkpoint={model}", f"--model.sample-rate-hz={RATE_HZ}"]
    proposal = "proposal: if what is to be recognised will be noisier"
    for flags, is_proposed in (
        (on_sound, True), ([*on_sound, "--augment.gain-db=3"], False), (["--model.checkpoint=none"], False)
    ):  # fmt: skip
        assert cli.main([*given, *flags]) == 0
        assert (proposal in capsys.readouterr().out) == is_proposed


def test_a_window_of_any_length_wants_a_setting_and_a_damaged_graph_is_told(model: Path, tmp_path: Path) -> None:
    of_any = saved(tmp_path / "any", n_samples=None)
    with pytest.raises(BirdtuneError, match=r"any length\. .* --model\.window-s 3"):
        registry.backbone_of(config(of_any))
    backbone = registry.backbone_of(config(of_any, model__window_s=1.5))
    assert (backbone.window_s, backbone.embedding_size, backbone.trainable) == (1.5, SIZE, False)
    (of_any / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        registry.backbone_of(config(of_any, model__window_s=1.5))
