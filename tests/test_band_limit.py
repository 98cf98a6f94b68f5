"""--audio.band-limit: what is above is not heard, by the frames, the exported graph and whoever reads the model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers_serving import sound
from makers import Here, Samples, band_centres_hz, tone
from test_export import exported_to, made_classifier, made_patches, served
from test_job import settings

from birdtune.audio import noise
from birdtune.audio.logmel import VGGISH, YAMNET, LogMel, log_mel
from birdtune.audio.waveform import waveform
from birdtune.data import frames
from birdtune.errors import CheckpointError, SettingsError
from birdtune.models import registry
from birdtune.runtime import configure
from birdtune.runtime.files import read_json, write_json
from birdtune.serving import verify
from birdtune.settings import AudioSettings
from birdtune.training import base_model
from birdtune.training.first_weights import build_classifier

LIMITED = dataclasses.replace(VGGISH, limit_hz=3600.0)


def mono(*args: Any, **how: Any) -> Samples:
    return np.asarray(tone(*args, **how)[:, 0])


def test_a_tone_above_the_limit_is_removed_and_one_below_is_as_it_was() -> None:
    silent = np.float32(np.log(VGGISH.log_offset))
    above = 0.4 * np.sin(2 * np.pi * 5000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert log_mel(above, VGGISH).max() > 2
    assert np.all(log_mel(above, LIMITED) < silent + 0.1)
    below = mono(frequency_hz=1000)
    whole, limited = log_mel(below, VGGISH), log_mel(below, LIMITED)
    inside = band_centres_hz(VGGISH) < 3000
    assert limited[:, inside] == pytest.approx(whole[:, inside], abs=1e-4)  # which frames are in float64 may differ
    assert np.all(limited[:, band_centres_hz(VGGISH) > 3800] == silent)


def test_a_recording_that_ends_there_gives_the_same_frames_as_one_that_does_not() -> None:
    soxr = pytest.importorskip("soxr")
    sound = np.random.default_rng(3).normal(0, 0.1, 32_000).astype(np.float32)
    through_8_khz = soxr.resample(soxr.resample(sound, 16_000, 8_000), 8_000, 16_000)[: sound.size]
    apart, near = (np.abs(log_mel(sound, spec) - log_mel(through_8_khz, spec)).max() for spec in (VGGISH, LIMITED))
    assert apart > 3
    assert near < 0.2


@pytest.mark.parametrize("spec", (VGGISH, YAMNET), ids=lambda spec: spec.name)
def test_noise_that_is_mixed_in_has_the_limit_too(spec: LogMel) -> None:
    limited = dataclasses.replace(spec, limit_hz=3600.0)
    for colour in noise.COLOURS:
        table = noise.noise_frames(limited, colour)
        assert np.isfinite(table).all()
        assert np.all(np.abs(table[:, band_centres_hz(spec) > 3800]) < 1e-6)
    assert np.isfinite(noise.power_weights(limited)).all()
    assert np.isfinite(noise.interference(limited)).all()


def test_frames_with_a_limit_have_a_folder_of_their_own_and_those_without_stay_where_they_were(tmp_path: Path) -> None:
    stores = [frames.FrameStore(tmp_path, spec, AudioSettings()) for spec in (VGGISH, LIMITED)]
    assert stores[0].folder != stores[1].folder
def test_a_front_end_is_read_back_from_its_row_and_nothing_else_is_believed() -> None:
    for spec in (LIMITED, VGGISH, waveform("birds", rate_hz=48_000, window_s=3.0, hop_s=1.5)):
        row = {**spec.row(), "digest": spec.digest}
        assert registry.read_front_end(row) == spec
        assert registry.read_front_end({**row, "window_rows": spec.window_rows + 1}) is None
    for other in (None, 3500.0, 0, -1.0, float("nan"), float("inf")):
        assert registry.read_front_end({**LIMITED.row(), "digest": LIMITED.digest, "limit_hz": other}) is None
    for wrong in ({}, {"kind": "mp3", "digest": "x"}, {**VGGISH.row(), "digest": VGGISH.digest, "n_mels": "many"}):
        with pytest.raises((LookupError, TypeError, ValueError)):
            registry.read_front_end(wrong)


@pytest.mark.parametrize(
    ("value", "right"), [("3600", True), ("500", True), ("8000", True), ("499", False), ("9000", False)]
)
def test_the_setting_is_in_hertz_within_what_backbones_hear(value: str, right: bool) -> None:
    if not right:
        with pytest.raises(SettingsError, match="band-limit"):
            configure.load({"audio.band-limit": value}, {})
        return
    config = configure.load({"audio.band-limit": value, "model.backbone": "yamnet"}, {})
    assert registry.front_end(config) == dataclasses.replace(YAMNET, limit_hz=float(value))
    assert build_classifier(config, ("a", "b"), "float32", None).front_end == registry.front_end(config)


def test_the_exported_graph_computes_what_training_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "Isolated", Here)
    classifier = made_classifier()
    classifier = dataclasses.replace(classifier, backbone=classifier.backbone.limited(3600.0))
    folder = tmp_path / "4"
    exported_to(folder, classifier)  # compares the graph with the training side, and fails where they differ
    assert verify.open_model(folder).front_end == LIMITED
    loaded = tf.saved_model.load(str(folder))
    low, high = mono(2.0, frequency_hz=900), mono(2.0, frequency_hz=900) + 0.3 * np.sin(
        2 * np.pi * 6000 * np.arange(32_000) / 16_000
    ).astype(np.float32)
    assert np.allclose(*sound(loaded, low, high)["window_scores"], atol=1e-3)
    assert not np.allclose(
        served(classifier, made_patches(low)), served(classifier, made_patches(high)), atol=1e-3
    )  # as it would be without the limit
    network = {"model__head": "mlp", "model__hidden_units": 7}
    with pytest.raises(SettingsError, match=r"give --audio\.band-limit 3600"):
        base_model.find(settings(tmp_path / "data", tmp_path / "out", init_from=str(folder), **network))
    facts = read_json(folder / "model.json")
    facts["front_end"]["limit_hz"] = 4000.0
    write_json(folder / "model.json", facts)
    with pytest.raises(CheckpointError, match="features that this birdtune does not make"):
        verify.open_model(folder)
