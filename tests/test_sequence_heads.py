"""Heads over time and attention of each class: layers, batches, training, export, prediction, detection."""

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf
from makers import Here, StopAt, make_store, one_class_each
from test_augment import ALL, Sounds, augmenter
from test_export import calibration_of, exported_to, made_patches, made_waveform
from test_job import record, run, settings, write_data
from test_job import run as run_job

from birdtune.audio.logmel import VGGISH
from birdtune.config import Config
from birdtune.data.batches import Part, Windows
from birdtune.data.clips import ClipBatches
from birdtune.data.copies import FromCopies
from birdtune.errors import InputError, Interrupted, SettingsError
from birdtune.evaluation.detections import Rule
from birdtune.evaluation.published_scores import of_matched
from birdtune.evaluation.scores import Scores, clip_scores, pool_mean, shares
from birdtune.models import classifier as classifiers
from birdtune.models import heads, losses
from birdtune.models.classifier import Classifier
from birdtune.models.growth import grown
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import convert
from birdtune.pipeline import predict as prediction
from birdtune.pipeline.detection_model import _hop_rows
from birdtune.runtime.files import read_csv
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.serving import inference, verify
from birdtune.serving.detect import detect_recordings
from birdtune.serving.inference import Cutter
from birdtune.serving.predict import predict_files
from birdtune.settings import SEQUENCE_HEADS, AudioSettings, ModelSettings
from birdtune.training.first_weights import build_classifier
from birdtune.training.scoring import Together

pytestmark = pytest.mark.usefixtures("in_one_process")

CLASSES = ("Noise_noise", "Parus major", "Turdus_merula", "Ä'\"=x")
NEW = ("sed-attention", *SEQUENCE_HEADS)


def fresh(head: str, scores: str = "sigmoid", classes: tuple[str, ...] = CLASSES, seed: int = 3) -> Classifier:
    """A classifier as training begins with it."""
    return classifiers.build(
        BACKBONES["vggish-small"], head=head, scores=scores, hidden_units=5 if head == "sed-attention" else 0,
        embedding_activation="relu", freeze="none", classes=classes, precision="float32", seed=seed,
        context=3 if head in SEQUENCE_HEADS else 0,
    )  # fmt: skip


def made(head: str, classes: tuple[str, ...] = CLASSES, seed: int = 3) -> Classifier:
    """A classifier whose scores differ from window to window, as if it had learnt."""
    found = fresh(head, classes=classes, seed=seed)
    found.head.get_layer("logits").kernel.assign(10 * found.head.get_layer("logits").kernel)
    if found.attention is not None:
        kernel = found.attention.get_layer("attention").kernel
        kernel.assign(np.random.default_rng(1).normal(0, 5, kernel.shape))
    return found


def embeddings(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).gamma(1.0, 5.0, (n, 128)).astype(np.float32)


# ---- layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", SEQUENCE_HEADS)
def test_a_window_is_scored_by_the_others_of_its_context_and_by_nothing_else(head: str) -> None:
    model, given, recording = made(head), embeddings(9), np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])
    found = np.asarray(model.sequence_logits(given, recording))
    # Contexts of three windows: [0 1 2] [3 4] [5] [6 7 8].
    for part in (slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 9)):
        alone = np.asarray(model.sequence_logits(given[part], recording[part]))
        np.testing.assert_allclose(found[part], alone, atol=1e-5)
        inside = np.ones((1, len(alone)), np.bool_)
        np.testing.assert_allclose(np.asarray(model.of_places(given[part], inside)), alone, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model.of_places(given))[[0 if head != "self-attention" else 5, 5]],
                               found[[0 if head != "self-attention" else 5, 5]], atol=1e-5)  # fmt: skip
    assert np.abs(np.asarray(model.of_places(given)) - found)[[1, 2, 4, 7, 8]].min() > 1e-4
    turned = np.asarray(model.sequence_logits(given[[1, 0, 2]], recording[:3]))
    assert np.abs(turned[2] - found[2]).max() > 1e-4, "order counts"


@pytest.mark.parametrize("head", SEQUENCE_HEADS)
def test_what_fills_up_an_example_changes_nothing(head: str) -> None:
    model, given = made(head), embeddings(4)
    inside = np.array([[True, True], [True, False]])
    found = np.asarray(model.of_places(given, inside))
    given[3] = 1e3
    np.testing.assert_array_equal(np.asarray(model.of_places(given, inside))[:3], found[:3])


@pytest.mark.parametrize("head", SEQUENCE_HEADS)
def test_a_head_over_time_learns_what_only_the_order_tells(head: str) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 3, (2, 128))
    label = np.arange(48) % 2
    rows = np.stack([np.stack([one, other] if way else [other, one]) for way in label])  # [48, 2, 128]
    rows = (rows + rng.normal(0, 0.3, rows.shape)).astype(np.float32).reshape(-1, 128)
    inside, truth = np.ones((48, 2), np.bool_), np.eye(2, dtype=np.float32)[label]
    model = fresh(head, "softmax", CLASSES[:2])
    optimizer = keras.optimizers.Adam(3e-3)

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            logits = heads.clip_logits(model.of_places(rows, inside), model.attend(rows), inside, "softmax")
            loss = tf.reduce_mean(losses.example_losses(logits, truth, "softmax", label_smoothing=0.0))
        optimizer.apply(tape.gradient(loss, model.head.trainable_variables), model.head.trainable_variables)
        return logits

    for _ in range(60):
        logits = step()
    assert (logits.numpy().argmax(axis=1) == label).mean() > 0.95


def test_attention_of_each_class_weighs_its_own_scores() -> None:
    rng = np.random.default_rng(2)
    logits, attention = rng.normal(0, 2, (2, 6, 3)).astype(np.float32)
    inside = np.array([[True, True, True], [True, True, False]])
    found = heads.scores(heads.clip_logits(logits, attention, inside, "sigmoid"), "sigmoid").numpy()
    of_windows = heads.scores(logits, "sigmoid").numpy()
    for row, part in enumerate((slice(0, 3), slice(3, 5))):
        share = np.exp(attention[part]) / np.exp(attention[part]).sum(axis=0)
        np.testing.assert_allclose(found[row], (share * of_windows[part]).sum(axis=0), atol=1e-6)
    recording = np.array([0, 0, 0, 1, 1])
    scores = Scores(
        ("a", "b", "c"), ("x", "y"), ("x", "y"), np.eye(3, dtype=np.float32)[:2], of_windows[:5], recording,
        np.zeros(5, np.float32), window_weight=shares(attention[:5], recording),
    )  # fmt: skip
    np.testing.assert_allclose(pool_mean(scores), found, atol=1e-6)
    # Of published classes that the model keeps, it says nothing.
    published = of_matched(scores, of_windows[:5, :2], ["A", "B"], [[0], [1, 2]])
    np.testing.assert_allclose(pool_mean(published)[1], of_windows[3:5, :2].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("head", NEW)
def test_scores_are_the_same_however_the_windows_come_in_batches(head: str) -> None:
    model, given = made(head), embeddings(23)
    recording = np.repeat([0, 1, 2, 3], [7, 1, 11, 4])
    expected = np.asarray(model.in_sequence(given, recording))
    for size in (1, 2, 5, 64):
        together = Together(model, recording)
        for start in range(0, 23, size):
            rows = np.arange(start, start + size)
            together.note(given[rows % 23])  # the last batch is filled up
        np.testing.assert_allclose(together.scores(expected), expected, atol=1e-5)
    found = together.shares()
    assert (found is None) == (head != "sed-attention")
    if found is not None:
        np.testing.assert_allclose(np.add.reduceat(found, [0, 7, 8, 19]), np.ones((4, len(CLASSES))), atol=1e-5)


@pytest.mark.parametrize("head", NEW)
def test_a_new_class_leaves_the_scores_of_the_others(head: str) -> None:
    old, new = made(head), made(head, classes=(*CLASSES, "new"), seed=5)
    classifiers.load_weights(new, grown(classifiers.weights(old), classifiers.weights(new)))
    given, recording = embeddings(5), np.zeros(5, np.int64)
    before, after = (np.asarray(each.sequence_logits(given, recording)) for each in (old, new))
    np.testing.assert_allclose(after[:, :4], before, atol=1e-4)
    if head == "sed-attention":
        np.testing.assert_allclose(np.asarray(new.attend(given))[:, :4], np.asarray(old.attend(given)), atol=1e-4)


# ---- batches ----------------------------------------------------------------------------------------


def test_an_example_of_a_head_over_time_is_consecutive_windows(tmp_path: Path) -> None:
    lengths = {"a": 96, "b": 250, "c": 950}
    windows = Windows(make_store(tmp_path, lengths), list(lengths), hop_rows=96)
    batches = ClipBatches(windows, one_class_each(windows, [0, 1, 2]), batch_size=12, seed=1, context=4)
    begun = set()
    for epoch in range(12):
        batch = batches.batch(epoch, 0)
        assert batch.inside is not None and batch.inside.shape == (3, 4)
        for row, inside in zip(batch.windows.reshape(3, 4), batch.inside, strict=True):
            assert (np.diff(row[inside]) == 1).all()
            if windows.recording[row[0]] == 2:
                begun.add(int(row[0]))
    assert len(begun) > 3 and max(begun) == 4 + 10 - 4


class Three(Sounds):
    """The same windows as four recordings of three."""

    @property
    def recording(self) -> Any:
        return np.arange(12) // 3

    def targets(self, kind: str = "softmax") -> Any:
        return one_class_each(self, [0, 1, 2, 3], kind)


def clips(kind: str, copies: bool = False, part: Part | None = None) -> tuple[ClipBatches, Any]:
    sounds: Any = Three()
    augment: Any = augmenter(ALL, sounds, kind)
    if copies:
        table = np.stack([sounds.frames + number for number in range(3)])

        class Table:
            def features(self, windows: Any, shift: Any = None) -> Any:
                return table[windows // 12, windows % 12]

        augment = FromCopies(augment, sounds, Table(), 2)  # type: ignore[arg-type]
    how: dict[str, Any] = {} if part is None else {"part": part}
    return ClipBatches(sounds, sounds.targets(kind), batch_size=6, seed=7, augment=augment, context=3, **how), sounds


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_recordings_are_augmented_and_a_batch_follows_from_its_place(kind: str, copies: bool) -> None:
    batches, sounds = clips(kind, copies)
    seen = []
    for epoch, step in ((1, 0), (1, 1), (2, 0)):
        one, again = batches.batch(epoch, step), clips(kind, copies)[0].batch(epoch, step)
        for name in ("features", "targets", "known", "windows", "weights", "inside"):
            np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        # A process that makes a part of it makes the very rows.
        for number in range(2):
            part = clips(kind, copies, Part(number, 2))[0].batch(epoch, step)
            np.testing.assert_array_equal(part.features, one.features[3 * number : 3 * number + 3])
            np.testing.assert_array_equal(part.targets, one.targets[number : number + 1])
        assert not np.array_equal(one.features, sounds.frames[one.windows])
        seen.append(one.targets)
    both, (first, second) = batches.batch(1, 0, 2), (batches.batch(1, step) for step in range(2))
    np.testing.assert_array_equal(both.features, np.concatenate([first.features, second.features]))
    targets = np.concatenate(seen)
    if kind == "softmax":
        np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)
    assert ((targets > 0).sum(axis=1) > 1).any(), "mixed windows bring their classes along"


# ---- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": {"head": "sed-attention", "output": "softmax"}}, "--model.output sigmoid, or"),
        ({"model": {"head": "gru"}, "train": {"hop_s": 0.3}}, "train.hop-s is 0.3.*backbone's own hop"),
        ({"model": {"head": "lstm"}, "detect": {"hop_s": 0.3}}, "detect.hop-s is 0.3"),
        ({"model": {"context_windows": 5}}, "the linear head sees each window by itself"),
        ({"model": {"head": "gru"}, "train": {"label_refinement": True}}, "learn from whole recordings"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(given)


def test_ten_windows_are_a_context_unless_set() -> None:
    assert [ModelSettings(head=head).context for head in ("linear", *NEW)] == [0, 0, 10, 10, 10]  # type: ignore[arg-type]
    assert ModelSettings(head="gru", context_windows=4).context == 4


# ---- served -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["sed-attention", "gru", "self-attention"])
def test_the_exported_model_scores_recordings_as_the_trained_one(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "Isolated", Here)
    monkeypatch.setattr(inference, "Isolated", Here)
    trained = made(head)
    facts = exported_to(tmp_path / "1", trained)
    assert facts["head"] == head and facts["context_windows"] == trained.pooling.context
    assert ("sequence.scores" in facts["verification"]["differences"]) == (head in SEQUENCE_HEADS)
    model, waveform = verify.open_model(tmp_path / "1"), made_waveform(7.0)
    assert model.pooling == trained.pooling
    given = np.asarray(trained.embed(made_patches(waveform)))
    zeros, calibration = np.zeros(len(given), np.int64), calibration_of(trained)
    scores = calibration.windows(np.asarray(trained.sequence_logits(given, zeros)))
    share = shares(np.asarray(trained.attend(given)), zeros)
    share = share if share.ndim == 2 else share[:, None]
    wanted = calibration.clips((share * scores).sum(axis=0)[None])[0]
    assert np.abs(wanted - calibration.clips(scores.mean(axis=0)[None])[0]).max() > 1e-3 or head in SEQUENCE_HEADS

    loaded = tf.saved_model.load(str(tmp_path / "1"))
    both = tf.constant(np.stack([waveform, waveform])), tf.constant([waveform.size, 48_000])
    found = loaded.signatures["sound"](waveforms=both[0], lengths=both[1])
    np.testing.assert_allclose(found["scores"].numpy()[0], wanted, atol=1e-4)
    np.testing.assert_allclose(found["window_scores"].numpy()[0], scores, atol=1e-4)

    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in files:
        soundfile.write(path, waveform, 16_000, subtype="FLOAT")
    for size in (2, 64):  # however windows come in batches
        predict_files(files, model, tmp_path / "p.csv", calibration=calibration,
                      windows_out=tmp_path / "w.csv", batch_size=size)  # fmt: skip
        for row in read_csv(tmp_path / "p.csv"):
            np.testing.assert_allclose([float(row[f"score:{name}"]) for name in CLASSES], wanted, atol=1e-4)
        best = [float(row["score"]) for row in read_csv(tmp_path / "w.csv")]
        np.testing.assert_allclose(best, np.tile(scores.max(axis=1), 2), atol=1e-4)

    on = float(np.median(scores)) + 1e-3
    rule = Rule(np.full(4, on), np.full(4, on - 0.1), smooth_windows=1)
    calls = []
    for part_windows in (None, model.pooling.whole_contexts(4) or 4, 128):
        cutter = Cutter(AudioSettings(), VGGISH.hop_rows, 1e9, VGGISH, part_windows=part_windows)
        (detected,) = detect_recordings(files[:1], model, rule, cutter, batch_size=3)
        calls.append(detected.calls)
    assert calls[0] and calls[0] == calls[1] == calls[2]
    assert {call.class_name for call in calls[0]} == {CLASSES[k] for k in np.flatnonzero((scores > on).any(axis=0))}


def test_what_takes_windows_one_by_one_or_closer_refuses_a_head_over_time(tmp_path: Path) -> None:
    model = made("gru")
    assert _hop_rows(Config(), model) == VGGISH.hop_rows
    config = Config()
    with pytest.raises(SettingsError, match=r"--detect\.hop-s 0\.3"):
        _hop_rows(config.model_copy(update={"detect": config.detect.model_copy(update={"hop_s": 0.3})}), model)


# ---- whole jobs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data")


def job_settings(data: Path, output: Path, head: str, **changes: Any) -> Config:
    # Recordings have three windows: a context, and one of another.
    context = {"model__context_windows": 2} if head in SEQUENCE_HEADS else {}
    usual = {"model__freeze": "all-but-head", "train__learning_rate": 3e-3, "train__epochs": 12}
    return settings(data, output, model__head=head, **{**usual, **context, **changes})


@pytest.mark.parametrize("head", ["lstm", "sed-attention"])
def test_a_job_trains_evaluates_exports_and_predicts(head: str, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    chosen = job_settings(data, output, head, evaluate__rare_class_ablation=False, evaluate__label_issues=False)
    assert run(chosen) == 0
    scores = Scores.load(output / "reports/1/scores-test.npz")
    assert (clip_scores(scores).argmax(axis=1) == scores.labels).mean() > 0.6  # tones of three pitches
    files = [data / name for name in scores.recordings]
    out = tmp_path / "p.csv"
    assert prediction.predict(chosen, None, files, out, None, Journal(quiet=True), Interrupts()) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = np.array([[float(row[f"score:{name}"]) for name in scores.classes] for row in rows])
    np.testing.assert_allclose(told, clip_scores(scores), atol=2e-3)  # of features in 16 bits there, here in 32
    if head == "lstm":
        with pytest.raises(InputError, match="--format tflite: takes a window at a time"):
            convert.convert_model(chosen, "tflite", Journal(quiet=True), Interrupts())


@pytest.mark.parametrize("head", ["self-attention", "attention"])
@pytest.mark.parametrize("copies", [0, 1])
def test_an_augmented_run_that_was_stopped_ends_with_the_same_weights(
    head: str, copies: int, data: Path, tmp_path: Path
) -> None:
    more = {"augment__mixup": 0.5, "augment__cutmix": 0.5, "augment__copies": copies, "train__epochs": 3}
    more |= {"model__hidden_units": 4} if head == "attention" else {}
    digests = set()
    for name, stops in (("whole", None), ("stopped", StopAt(20))):
        chosen = job_settings(data, tmp_path / name, head, **more)
        if stops is not None:
            with pytest.raises(Interrupted):
                run_job(chosen, stops, until="train")
        assert run_job(chosen, until="train") == 0
        digests.add(record(tmp_path / name)["weights_sha256"])
    assert len(digests) == 1


def test_a_backbone_is_trained_below_a_head_over_time(data: Path, tmp_path: Path) -> None:
    chosen = settings(data, tmp_path, model__head="lstm", model__context_windows=2, train__epochs=1)
    assert run_job(chosen, until="train") == 0
    model = classifiers.weights(classifiers.in_float32(build_classifier(chosen, ("a", "b", "c"), "float32")))
    assert any(name.startswith("head/lstm") for name in model)


