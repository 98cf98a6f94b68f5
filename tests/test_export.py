"""serving: what an export writes, what its signatures put out, and what is refused."""

import csv
import dataclasses
import json
import math
import pickle
import pickletools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from helpers_serving import sound
from makers import Here, killed
from tensorflow_serving.apis import prediction_log_pb2

from birdtune.audio.logmel import VGGISH, log_mel
from birdtune.errors import CheckpointError, ExportError, Interrupted, RetryableError
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.evaluation.decision import BACKGROUND, OWN, SHARED, Thresholds
from birdtune.evaluation.ood import OodMeasures, OodModel, OodScale, OodStatistics, energy
from birdtune.models import classifier as classifiers
from birdtune.models import front_end_graph
from birdtune.models.registry import BACKBONES
from birdtune.serving import export, graph, verify
from birdtune.serving.predict import predict_files

CLASSES = ("Noise_noise", "Parus major", "Turdus_merula", "Ä'\"=x")
RATE_HZ = VGGISH.rate_hz
THRESHOLDS = Thresholds((float("inf"), 0.7, 0.5, 0.5), (BACKGROUND, OWN, SHARED, SHARED), "a precision of 0.9", "few")
OF_DETECTIONS = dataclasses.replace(THRESHOLDS, values=(float("inf"), 0.3, 0.4, 0.4), goal="the highest F1 of events")


def made_classifier(scores: str = "softmax", precision: str = "float32", hidden_units: int = 7) -> Any:
    return classifiers.build(
        backbone=BACKBONES["vggish-small"],
        head="mlp" if hidden_units else "linear", scores=scores, hidden_units=hidden_units,
        embedding_activation="relu", freeze="none", classes=CLASSES, precision=precision, seed=3,
    )  # fmt: skip


def made_prototypes(scores: str) -> Any:
    """A classifier by prototypes whose classes differ in scale."""
    made = classifiers.build(
        backbone=BACKBONES["vggish-small"],
        head="prototype", scores=scores, hidden_units=0, prototypes=3, embedding_activation="relu",
        freeze="none", classes=CLASSES, precision="float32", seed=3,
    )  # fmt: skip
    made.head.get_layer("logits").log_scale.assign([1.0, 2.0, 3.0, 4.0])
    return made


def made_attention() -> Any:
    """A classifier that learnt to tell windows apart by how much they count."""
    made = classifiers.build(
        backbone=BACKBONES["vggish-small"],
        head="attention", scores="softmax", hidden_units=5, embedding_activation="relu",
        freeze="none", classes=CLASSES, precision="float32", seed=3,
    )  # fmt: skip
    made.attention.get_layer("attention").kernel.assign([[5.0], [-5.0], [5.0], [-5.0], [5.0]])
    return made


def calibration_of(classifier: Any) -> Calibration:
    """One that changes every score."""
    offset = 0.0 if classifier.kind == "softmax" else 0.3
    return Calibration(classifier.kind, Scale(1.4, offset), Scale(2.5, -offset), 20)


def served(classifier: Any, features: Any) -> Any:
    """Scores of windows as they are served."""
    return calibration_of(classifier).windows(np.asarray(classifier.logits(features)[0]))


def served_clip(classifier: Any, features: Any) -> Any:
    return calibration_of(classifier).clips(served(classifier, features).mean(axis=0, dtype=np.float64)[None])[0]


def made_waveform(seconds: float, seed: int = 0) -> Any:
    """A sweep over noise: every window of it looks different. [samples] float32"""
    t = np.arange(0, seconds, 1 / RATE_HZ)
    noise = np.random.default_rng(seed).normal(size=t.size) * 0.02
    return (0.3 * np.sin(2 * np.pi * (400 + 200 * t) * t) + noise).astype(np.float32)


def made_patches(waveform: Any) -> Any:
    """The windows that the training side cuts from a waveform. [P, 96, 64]"""
    return np.stack([patch for _, patch in VGGISH.cut(VGGISH.rows_of([waveform]))])


def exported_to(folder: Path, classifier: Any, **changes: Any) -> dict[str, Any]:
    waveform = made_waveform(3.2)
    arguments: dict[str, Any] = {
        "facts": {"version": 4, "job": "test"},
        "example_waveform": waveform,
        "expected": export.training_side(classifier, made_patches(waveform), calibration_of(classifier)),
        "calibration": calibration_of(classifier),
        "thresholds": THRESHOLDS,
        "detection_thresholds": OF_DETECTIONS,
        "class_ids": {"Parus major": 17, "Turdus_merula": "tm", "Noise_noise": None},
    }
    return export.export_model(classifier, folder, **(arguments | changes))


@pytest.fixture(scope="module")
def classifier() -> Any:
    return made_classifier()


@pytest.fixture(scope="module")
def written(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One export, verified by a real fresh process."""
    folder = tmp_path_factory.mktemp("export") / "model" / "birds" / "4"
    return folder, exported_to(folder, classifier)


@pytest.fixture(scope="module")
def folder(written: tuple[Path, dict[str, Any]]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return tf.saved_model.load(str(folder))


@pytest.fixture
def verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are loaded and run in this process: the same is compared, ten seconds sooner."""
    monkeypatch.setattr(verify, "Isolated", Here)


# ---- what is written ----------------------------------------------------------------------------


def test_the_version_folder_holds_the_model_and_what_belongs_to_it(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "saved_model.pb", "fingerprint.pb",
        "variables/variables.index", "variables/variables.data-00000-of-00001",
        "labels.csv", "train_id_list.pickle", "model.json", "assets.extra/tf_serving_warmup_requests",
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["4"]  # nothing unfinished is left


def test_model_json_says_what_the_model_is_and_how_closely_it_was_verified(
    written: tuple[Path, dict[str, Any]], classifier: Any
) -> None:
    folder, returned = written
    facts = json.loads((folder / "model.json").read_text("utf-8"))
    assert facts == returned
    assert facts["version"] == 4
    assert facts["job"] == "test"
    assert facts["classes"] == list(CLASSES)
    names = ("backbone", "head", "scores", "clip_pooling", "embedding_activation")
    assert [facts[name] for name in names] == ["vggish-small", "mlp", "softmax", "mean", "relu"]
    assert facts["front_end"]["log_offset"] == 0.01
    assert facts["front_end"]["digest"] == VGGISH.digest
    assert facts["weights_sha256"] == classifiers.weights_sha256(classifiers.weights(classifier))
    assert facts["verification"]["tolerance"] == 1e-4
    differences = facts["verification"]["differences"]
    assert differences.keys() == {
        "outputs", "embeddings", "sound.scores", "sound.ood_score", "sound.windows", "sound.window_start_s",
        "sound.window_scores", "embed.embeddings", "embed.windows", "embed.window_start_s",
    }  # fmt: skip
    assert max(differences.values()) < 1e-5


def test_weights_are_stored_once(folder: Path, classifier: Any) -> None:
    data = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
    parameters = sum(int(np.prod(variable.shape)) for variable in classifier.variables)
    assert 4 * parameters <= data < 4 * parameters * 1.01
    assert (folder / "saved_model.pb").stat().st_size < 800_000


def test_labels_give_column_class_external_id_and_thresholds(folder: Path) -> None:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["column", "class", "external_id", "threshold", "detection_threshold"]
    assert rows[1:] == [
        ["0", "Noise_noise", "", "", ""],  # background is no answer
        ["1", "Parus major", "17", "0.7", "0.3"],
        ["2", "Turdus_merula", "tm", "0.5", "0.4"],
        ["3", CLASSES[3], "", "0.5", "0.4"],
    ]
    model = verify.open_model(folder)
    assert (model.thresholds, model.detection_thresholds) == (THRESHOLDS, OF_DETECTIONS)


def test_train_id_list_is_a_list_of_text_in_opcodes_of_protocol_2(folder: Path) -> None:
    content = (folder / "train_id_list.pickle").read_bytes()
    opcodes = list(pickletools.genops(content))
    assert max(opcode.proto for opcode, _, _ in opcodes) == 2
    assert opcodes[0][1] == 2
    assert {opcode.name for opcode, _, _ in opcodes} == {
        "PROTO", "EMPTY_LIST", "BINPUT", "MARK", "BINUNICODE", "APPENDS", "STOP",
    }  # fmt: skip
    assert pickle.loads(content) == list(CLASSES)


def test_train_id_list_makes_plain_text_of_numpy_text() -> None:
    content = export.train_id_list(list(np.array(["a", "b"])))
    assert not [opcode for opcode, _, _ in pickletools.genops(content) if opcode.name in ("GLOBAL", "REDUCE")]


def test_warm_up_requests_are_one_for_each_signature_and_run(folder: Path, loaded: Any) -> None:
    records = list(tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests")))
    requests = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request for record in records
    ]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "sound", "embed"]
    assert {request.model_spec.name for request in requests} == {"birds"}
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        answer = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert all(np.isfinite(value.numpy()).all() for value in answer.values())


# ---- what it answers ----------------------------------------------------------------------------


def test_the_signatures_have_the_names_types_and_shapes_that_readers_rely_on(loaded: Any) -> None:
    def shapes(specs: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {name: (spec.dtype.name, *spec.shape.as_list()) for name, spec in specs.items()}

    found = {
        name: (shapes(signature.structured_input_signature[1]), shapes(signature.structured_outputs))
        for name, signature in loaded.signatures.items()
    }
    recordings = {"waveforms": ("float32", None, None), "lengths": ("int32", None)}
    places = {"windows": ("int32", None), "window_start_s": ("float32", None, None)}
    assert found == {
        "serving_default": ({"inputs": ("float32", None, 96, 64)}, {"outputs": ("float32", None, 4)}),
        "sound": (recordings, places | {
            "scores": ("float32", None, 4), "ood_score": ("float32", None), "window_scores": ("float32", None, None, 4),
        }),
        "embed": (recordings, places | {"embeddings": ("float32", None, None, 128)}),
    }  # fmt: skip


@pytest.mark.parametrize("n_windows", [1, 5])
def test_serving_default_gives_the_classifiers_scores_calibrated(loaded: Any, classifier: Any, n_windows: int) -> None:
    features = made_patches(made_waveform(6.0, seed=1))[:n_windows]
    outputs = loaded.signatures["serving_default"](inputs=tf.constant(features))["outputs"].numpy()
    assert outputs.shape == (n_windows, 4)
    np.testing.assert_allclose(outputs, served(classifier, features), atol=1e-6)
    assert np.abs(outputs - np.asarray(classifier.scores(features)[0])).max() > 1e-4  # they are calibrated


def test_log_mel_in_the_graph_is_that_of_training() -> None:
    t = np.arange(0, 3, 1 / RATE_HZ)
    loud_beside_quiet = 0.9 * np.sin(2 * np.pi * 440 * t) + 1e-4 * np.sin(2 * np.pi * 6000 * t)
    for waveform in (np.sin(2 * np.pi * 1000 * t), loud_beside_quiet, np.zeros(t.size), made_waveform(3.0)):
        samples = waveform.astype(np.float32)
        in_graph = front_end_graph.rows(VGGISH, tf.constant(samples)).numpy()
        # The graph transforms all frames in float64.
        np.testing.assert_allclose(in_graph, log_mel(samples), atol=2e-5)


# Together there are more windows than are scored at a time: a recording begins in one piece and ends in the next.
def test_a_batch_of_waveforms_is_scored_as_each_is_by_log_mel_classifier_and_calibrated_mean(
    loaded: Any, classifier: Any
) -> None:
    waveforms = [made_waveform(seconds, seed=2) for seconds in (0.975, 3.7, 61.5, 70.0, 0.4)]
    found, embedded = sound(loaded, *waveforms), sound(loaded, *waveforms, signature="embed")
    assert found["windows"].tolist() == embedded["windows"].tolist() == [1, 4, 65, 73, 1]
    for k, waveform in enumerate(waveforms):
        windows, n = made_patches(waveform), found["windows"][k]
        starts_s = [first / 100 for first, _ in VGGISH.cut(VGGISH.rows_of([waveform]))]
        embeddings = np.asarray(classifier.embed(windows))
        np.testing.assert_allclose(found["window_scores"][k, :n], served(classifier, windows), atol=1e-5)
        np.testing.assert_allclose(found["scores"][k], served_clip(classifier, windows), atol=1e-5)
        np.testing.assert_allclose(embedded["embeddings"][k, :n], embeddings, atol=1e-5 * embeddings.max())
        np.testing.assert_allclose(found["window_start_s"][k, :n], starts_s, atol=1e-5)
        for table in (found["window_scores"], found["window_start_s"], embedded["embeddings"]):
            assert not table[k, n:].any()
    assert found["ood_score"].tolist() == [graph.NO_OOD_SCORE] * 5  # this model has no OOD statistics


@pytest.mark.parametrize("n_samples", [0, 1, 399, 8_000, 15_599])
def test_a_recording_shorter_than_a_window_is_filled_up_with_zeros(loaded: Any, n_samples: int) -> None:
    waveform = made_waveform(1.0)[:n_samples]
    filled = np.pad(waveform, (0, 15_600 - n_samples))
    scores = sound(loaded, waveform, filled, made_waveform(2.0))["window_scores"][:, 0]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-7)


@pytest.mark.parametrize(("n_samples", "n_windows"), [(15_601, 2), (30_959, 2), (30_960, 2), (30_961, 3)])
def test_the_last_window_ends_with_the_recording(loaded: Any, n_samples: int, n_windows: int) -> None:
    waveform = made_waveform(2.0)[:n_samples]
    other = np.append(waveform[:-50], waveform[-50:] + 1).astype(np.float32)
    embeddings = sound(loaded, waveform, other, signature="embed")["embeddings"]
    assert embeddings.shape[1] == n_windows
    assert np.abs(embeddings[0] - embeddings[1]).max(axis=1)[-1] > 1e-3


def test_samples_that_are_no_numbers_count_as_silence_and_lengths_beyond_the_batch_as_its_end(loaded: Any) -> None:
    waveform = made_waveform(2.0)
    broken, silenced = waveform.copy(), waveform.copy()
    broken[[5, 20_000, 20_001]] = np.nan, np.inf, -np.inf
    silenced[[5, 20_000, 20_001]] = 0
    found = sound(loaded, broken, silenced)["scores"]
    np.testing.assert_array_equal(found[0], found[1])
    longer = loaded.signatures["sound"](waveforms=tf.constant(silenced[None]), lengths=tf.constant([99_999_999]))
    np.testing.assert_allclose(longer["scores"].numpy()[0], found[1], atol=1e-6)
    nothing = loaded.signatures["sound"](waveforms=tf.constant(silenced[None]), lengths=tf.constant([-7]))
    assert nothing["windows"].numpy().tolist() == [1]


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize(("scores", "hidden_units"), [("sigmoid", 0), ("softmax", 5)])
def test_a_classifier_of_mixed_precision_is_exported_in_float32(
    tmp_path: Path, scores: str, hidden_units: int
) -> None:
    mixed = made_classifier(scores, "mixed_bfloat16", hidden_units)
    facts = exported_to(tmp_path / "1", mixed)
    assert (facts["head"], facts["scores"]) == ("mlp" if hidden_units else "linear", scores)
    assert max(facts["verification"]["differences"].values()) < 1e-5
    features = made_patches(made_waveform(3.2))
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    outputs = loaded.signatures["serving_default"](inputs=tf.constant(features))["outputs"].numpy()
    in_float32 = served(classifiers.in_float32(mixed), features)
    np.testing.assert_allclose(outputs, in_float32, atol=1e-6)
    assert np.abs(outputs - served(mixed, features)).max() > 1e-4  # bfloat16 is that far off


@pytest.mark.usefixtures("verified_here")
def test_a_recording_is_scored_by_attention_by_the_exported_graph_too(tmp_path: Path) -> None:
    trained = made_attention()
    facts = exported_to(tmp_path / "1", trained)
    assert (facts["head"], facts["clip_pooling"]) == ("attention", "attention")
    model, waveform = verify.open_model(tmp_path / "1"), made_waveform(70.0)  # more than a piece of windows
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    found, short = sound(loaded, waveform, waveform[:48_000]), sound(loaded, waveform[:48_000])
    scores = found["window_scores"][0]
    attention = np.asarray(model.attend(sound(loaded, waveform, signature="embed")["embeddings"][0]))
    embeddings = np.asarray(trained.embed(made_patches(waveform)))
    np.testing.assert_allclose(attention, np.asarray(trained.attend(embeddings)), atol=1e-4)
    share = np.exp(attention) / np.exp(attention).sum()
    means = np.stack([share @ scores, scores.mean(axis=0)])
    by_attention, alike = calibration_of(trained).clips(means)
    np.testing.assert_allclose(found["scores"][0], by_attention, atol=1e-5)
    assert np.abs(found["scores"][0] - alike).max() > 1e-3
    np.testing.assert_allclose(found["scores"][1], short["scores"][0], atol=1e-6)  # others in the batch do not count


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_head_of_prototypes_is_served_for_windows_and_for_recordings(tmp_path: Path, scores: str) -> None:
    trained = made_prototypes(scores)
    facts = exported_to(tmp_path / "1", trained)
    assert [facts[name] for name in ("head", "prototypes", "hidden_units")] == ["prototype", 3, 0]
    waveform = made_waveform(3.2)
    windows = served(trained, made_patches(waveform))
    assert np.ptp(windows, axis=0).max() > 1e-3
    found = sound(tf.saved_model.load(str(tmp_path / "1")), waveform)
    np.testing.assert_allclose(found["window_scores"][0], windows, atol=1e-5)
    np.testing.assert_allclose(
        found["scores"][0], calibration_of(trained).clips(windows.mean(axis=0)[None])[0], atol=1e-5
    )


def told(classifier: Any) -> tuple[OodModel, OodScale]:
    """Made recordings of three of four classes as what it was trained on."""
    width = classifier.backbone.embedding_size
    statistics = OodStatistics(4)
    statistics.add(np.eye(4)[np.arange(60) % 3], np.random.default_rng(0).gamma(2.0, 1.0, (60, width)))
    found = statistics.model()
    assert found is not None
    return found, OodScale(energy_weight=2.5, median=-60.0, limit=-40.0, target_recall=0.9, sources=40)


@pytest.mark.usefixtures("verified_here")
def test_how_strange_a_sound_is_is_served_verified_and_predicted(
    tmp_path: Path, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, limits = told(classifier)
    facts = exported_to(tmp_path / "4", classifier, ood=(known, limits))
    assert facts["ood"] == limits.row()
    assert facts["verification"]["differences"]["sound.ood_score"] <= 1e-5
    loaded = tf.saved_model.load(str(tmp_path / "4"))
    half = np.concatenate([made_waveform(1.92), np.zeros(RATE_HZ, np.float32)])  # its end is silent
    found = sound(loaded, half, half[: RATE_HZ // 2])["ood_score"]
    features = made_patches(half)
    weight = VGGISH.held(features)
    assert weight.min() < 0.9 < weight.max()
    embeddings = np.asarray(classifier.embed(features))
    mean = np.average(embeddings, axis=0, weights=weight)[None].astype(np.float32)
    loud = energy(np.asarray(classifier.head(mean)))
    expected = limits.ood_score(OodMeasures(known.distances(mean), loud))[0]
    assert found.shape == (2,) and expected > 0.1 and found[0] == pytest.approx(expected, rel=1e-4)
    soundfile.write(tmp_path / "a.wav", half, RATE_HZ, subtype="FLOAT")
    model = verify.open_model(tmp_path / "4")
    assert model.ood_score is not None
    predict_files([tmp_path / "a.wav"], model, tmp_path / "p.csv", ood_score=model.ood_score, batch_size=2)
    with (tmp_path / "p.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["ood_score"]) == pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr(front_end_graph, "held", lambda spec, features: tf.ones(tf.shape(features)[:1]))
    with pytest.raises(ExportError, match=r"sound.ood_score by"):
        exported_to(tmp_path / "5", classifier, ood=(known, limits), example_waveform=half)


def test_the_training_side_leaves_the_setting_of_tf32_as_it_was(classifier: Any) -> None:
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    export.training_side(classifier, made_patches(made_waveform(1.0)), calibration_of(classifier))
    assert tf.config.experimental.tensor_float_32_execution_enabled()


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.usefixtures("verified_here")
def test_an_export_that_disagrees_is_refused_and_the_older_one_stays(
    tmp_path: Path, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = export._save

    def save_tampered(exported: Any, *others: Any) -> None:
        bias = exported.classifier.head.get_layer("logits").bias
        right = bias.numpy()
        bias.assign(right + np.array([0.1, 0, 0, 0], np.float32))
        save(exported, *others)
        bias.assign(right)

    monkeypatch.setattr(export, "_save", save_tampered)
    older = tmp_path / "birds" / "1"
    older.mkdir(parents=True)
    (older / "saved_model.pb").write_bytes(b"older")
    with pytest.raises(ExportError, match=r"differs .* by 0\.0\d+, allowed is 0\.0001 \(outputs"):
        exported_to(older, classifier)
    assert [path.name for path in older.parent.rglob("*")] == ["1", "saved_model.pb"]
    assert (older / "saved_model.pb").read_bytes() == b"older"


@pytest.mark.usefixtures("verified_here")
def test_embeddings_that_disagree_are_refused_even_where_scores_agree(
    tmp_path: Path, classifier: Any
) -> None:
    side = export.training_side(classifier, made_patches(made_waveform(1.0)), calibration_of(classifier))
    other = export.TrainingSide(side.windows, side.scores, side.embeddings + 0.01 * side.embeddings.max())
    with pytest.raises(ExportError, match=r"\(embeddings by 0\.0"):
        exported_to(tmp_path / "1", classifier, expected=other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer", [None, np.zeros((2, 3), np.float32), np.full((2, 4), np.nan, np.float32), np.zeros((2, 4))]
)
def test_an_answer_that_is_missing_misshapen_or_no_number_differs_without_bounds(answer: Any) -> None:
    wanted = {"outputs": np.zeros((2, 4), np.float32)}
    answers = {} if answer is None else {"outputs": answer}
    assert export._differences(wanted, answers) == {"outputs": np.inf}


def test_embeddings_are_compared_relative_to_the_largest_of_them() -> None:
    wanted = {"embed.embeddings": np.array([[200.0, 0.0]], np.float32), "outputs": np.array([[0.5]], np.float32)}
    answers = {
        "embed.embeddings": np.array([[200.0, 0.01]], np.float32),
        "outputs": np.array([[0.25]], np.float32),
    }
    assert export._differences(wanted, answers) == {"embed.embeddings": pytest.approx(5e-5), "outputs": 0.25}


# ---- storage that refuses -----------------------------------------------------------------------


def test_a_model_that_has_no_room_is_not_begun(
    tmp_path: Path, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("birdtune.runtime.storage.free_bytes", lambda path: 1_000_000)
    monkeypatch.setattr(tf.saved_model, "save", lambda *arguments, **how: pytest.fail("begun"))
    with pytest.raises(RetryableError, match=r"model/1: .* for the exported model \([\d.]+ MB needed, 1\.0 MB free\)"):
        exported_to(tmp_path / "model" / "1", classifier)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_leaves_the_earlier_model(
    tmp_path: Path, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    # The error that TensorFlow itself makes of a full disk.
    monkeypatch.setattr(export, "WARMUP_FILE", Path("full"))
    monkeypatch.setattr(export, "_save", lambda *given: (given[-1] / "full").symlink_to("/dev/full"))
    words = r"model/1: the disk is full while writing the exported model \([\d.]+ MB needed"
    with pytest.raises(RetryableError, match=words):
        exported_to(tmp_path / "model" / "1", classifier)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]


# ---- the fresh process --------------------------------------------------------------------------


@pytest.mark.usefixtures("verified_here")
def test_a_model_that_cannot_be_run_in_a_fresh_process_is_refused(tmp_path: Path) -> None:
    words = r"saved_model\.pb: is missing or damaged"
    with verify.fresh_process() as answers, pytest.raises(CheckpointError, match=words):
        answers(tmp_path, {}, {})


def test_a_fresh_process_that_is_killed_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_apart", killed)
    monkeypatch.setattr(verify, "_without_gpu", None)
    with verify.fresh_process() as answers, pytest.raises(RetryableError, match="want of memory"):
        answers(tmp_path, {}, {})


@pytest.mark.usefixtures("verified_here")
def test_a_stop_that_was_swallowed_leaves_no_model_in_place(tmp_path: Path, classifier: Any) -> None:
    def stop_at_last() -> None:
        if (tmp_path / ".unfinished-1" / "model.json").exists():
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        exported_to(tmp_path / "1", classifier, check=stop_at_last)
    assert list(tmp_path.iterdir()) == []


# ---- opened again -------------------------------------------------------------------------------


def test_an_opened_model_scores_and_embeds_as_the_classifier(folder: Path, classifier: Any) -> None:
    features = made_patches(made_waveform(4.0))
    model = verify.open_model(folder)
    assert model.classes == CLASSES
    assert (model.calibration, model.thresholds) == (calibration_of(classifier), THRESHOLDS)
    wanted_scores, wanted_embeddings = served(classifier, features), classifier.embed(features)
    scores, embeddings = model.scores(features)
    np.testing.assert_allclose(scores, np.asarray(wanted_scores), atol=1e-6)
    np.testing.assert_allclose(embeddings, np.asarray(wanted_embeddings), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(model.embed(features), embeddings)
    assert model.calibration_clip_s is None  # as of a model that was exported before it was noted
    for told, calibration_clip_s in ((3.5, 3.5), (0, None), ("5", None), (math.inf, None)):
        assert dataclasses.replace(model, facts={"calibration_clip_s": told}).calibration_clip_s == calibration_clip_s


def test_predictions_of_an_opened_model_are_those_of_its_sound_signature(
    folder: Path, loaded: Any, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", made_waveform(5.0), RATE_HZ, subtype="FLOAT")
    model = verify.open_model(folder)
    predict_files(
        [tmp_path / "a.wav"], model, tmp_path / "p.csv", calibration=model.calibration, thresholds=model.thresholds
    )
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    clip_scores = sound(loaded, made_waveform(5.0))["scores"][0]
    assert [float(row[f"score:{name}"]) for name in CLASSES] == pytest.approx(clip_scores.tolist(), abs=2e-6)
    assert row["class"] == CLASSES[1 + int(clip_scores[1:].argmax())]  # the first is background


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model that this birdtune exported"):
        verify.open_model(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": 99}, "of another format"),
        ({"format": verify.FORMAT}, "KeyError"),
        ({"format": verify.FORMAT, "classes": ["a"], "front_end": {"digest": VGGISH.digest}}, "cannot be loaded"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=message):
        verify.open_model(tmp_path)


def test_a_model_that_wants_other_frames_is_refused(folder: Path, tmp_path: Path) -> None:
    facts = json.loads((folder / "model.json").read_text("utf-8"))
    facts["front_end"]["digest"] = "0" * 12
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.json").unlink()
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="features that this birdtune does not make"):
        verify.open_model(tmp_path)
