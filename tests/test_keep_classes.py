"""Published classes of a frozen backbone, kept beside those of the data: matched, calibrated, exported, predicted."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import soundfile
import tensorflow as tf
from helpers_serving import sound
from makers import write_tones
from test_tflite_backbone import RATE_HZ, SIZE, Made, arguments, config, converted

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import BirdtuneError
from birdtune.evaluation import published_scores
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.evaluation.decision import OWN, Thresholds
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.models import classifier as classifiers
from birdtune.models import published, registry, yamnet
from birdtune.models.published import Layer, Served
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json
from birdtune.serving.graph import PublishedGraph, ServedGraph
from birdtune.serving.inference import Scored
from birdtune.serving.rows import PublishedChoice, Rows, window_results
from birdtune.serving.verify import PublishedClasses
from birdtune.training.checkpoints import Checkpoints

LABELS = ("Apus apus_Swift", "Bubo bubo_Eagle-Owl", "Corvus corax_Raven", "Pica pica_Raven", "Rain_Rain")
# Of the data: by scientific name, by common name, and one that is not published.
CLASSES = {"Apus_apus": 1500.0, "eagle owl": 4000.0, "Parus major": 9000.0}
KEPT = LABELS[2:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built like BirdNET's, with a classifier that gives each of five classes some of what it hears."""
    made = Made()
    made.dense = tf.Variable(np.random.default_rng(3).normal(0, 0.5, (SIZE, len(LABELS))).astype(np.float32))
    path = converted(tmp_path_factory.mktemp("model") / "made.tflite", made.function, made)
    path.with_name("made labels.txt").write_text("\n".join(LABELS))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("data"), CLASSES, 1.5, RATE_HZ, clips=16)


def kept(path: Path, classes: Sequence[str], keep: str = "all", **settings: Any) -> published.Kept:
    found = published.keep(config(path, keep_classes=keep, **settings), classes)
    assert found is not None
    return found


def refused(path: Path, keep: str = "all", classes: Sequence[str] = (), **settings: Any) -> str:
    with pytest.raises(BirdtuneError) as caught:
        kept(path, classes, keep, **settings)
    assert caught.value.exit_code == 42
    return str(caught.value)


# ---- names --------------------------------------------------------------------------------------


def test_a_name_matches_a_scientific_or_a_common_name_and_nothing_is_guessed(model: Path) -> None:
    names = ["APUS-APUS", "eagle owl", "Corvus corax_Kolkrabe", "raven", "Apus", "Bubo", "rain_1"]
    found = kept(model, names)
    assert found.label_of == {"APUS-APUS": LABELS[0], "eagle owl": LABELS[1], "Corvus corax_Kolkrabe": LABELS[2]}
    assert found.several == {"raven": (LABELS[2], LABELS[3])}
    assert found.unmatched == ("Apus", "Bubo", "rain_1")
    assert found.labels == LABELS[3:] and found.columns == (3, 4)
    said = "\n".join(found.lines())
    assert "has 5; 2 classes served" in said and "3 of 7 classes of the data are published" in said
    assert "raven: fits several" in said and "no published class: Apus, Bubo, rain_1" in said


def test_a_list_is_names_or_a_file_of_them_and_own_classes_are_not_served_twice(model: Path, tmp_path: Path) -> None:
    assert kept(model, ["Apus apus"], "rain, Corvus corax,swift").labels == (LABELS[2], LABELS[4])
    path = tmp_path / "birds.txt"
    path.write_text("\ufeff# of this valley\nPica pica_Raven\n\n #rain\n eagle_owl \n", encoding="utf-8")
    assert kept(model, [], str(path)).labels == (LABELS[1], LABELS[3])
    assert "there is no such file" in refused(model, str(tmp_path / "none.txt"))
    assert "is a class of the data" in refused(model, "swift", ["Apus apus"])


def test_names_that_are_not_published_are_named_with_the_nearest(model: Path) -> None:
    said = refused(model, "Rain,Corvus corex,Swifft")
    assert "2 of 3 names are not among the classes" in said
    assert "Corvus corex (nearest: Corvus corax_Raven), Swifft (nearest: Apus apus_Swift)" in said
    assert "raven: Corvus corax_Raven, Pica pica_Raven. Give whole labels" in refused(model, "raven")
    assert "Bubo scandiacus (nearest: Bubo bubo_Eagle-Owl)" in refused(model, "Bubo scandiacus")  # of its genus
    assert "(nearest" not in refused(model, "robin,Snow Owl,foo")


def test_labels_with_commas_are_matched_whole(tmp_path: Path) -> None:
    (tmp_path / "yamnet.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    labels = ["Child speech, kid speaking", *(f"sound {number}" for number in range(1, yamnet.N_CLASSES))]
    rows = [f'{number},/m/{number},"{label}"' for number, label in enumerate(labels)]
    (tmp_path / yamnet.CLASS_MAP_NAME).write_text("\n".join(["index,mid,display_name", *rows]))
    settings = registry.settled(Config(input=tmp_path, model={"keep_classes": "child speech, kid speaking"}))[0]
    found = published.keep(settings, ["Sound 5"])
    assert found is not None and found.labels == (labels[0],) and found.matched == {"Sound 5": 5}


def test_a_list_in_job_yaml_begins_at_the_input_folder_and_names_are_names(tmp_path: Path) -> None:
    (tmp_path / "birds.txt").write_text("Rain\n")
    for given, expected in (("birds.txt", str(tmp_path / "birds.txt")), ("all", "all"), ("Rain, Wind", "Rain, Wind")):
        (tmp_path / "job.yaml").write_text(f"model:\n  keep_classes: {given}\n")
        assert configure.load({"input": str(tmp_path)}, {}).model.keep_classes == expected


# ---- refused ------------------------------------------------------------------------------------


def test_a_backbone_that_is_trained_or_has_no_classifier_is_refused(model: Path, tmp_path: Path) -> None:
    assert "does not fit a changed backbone" in refused(model, freeze="block1")
    assert "does not fit a changed backbone" in refused(model, freeze="none")
    with pytest.raises(BirdtuneError, match="VGGish comes without a classifier of its own"):
        published.keep(Config(model={"keep_classes": "all"}), ())
    lonely = tmp_path / "lonely.tflite"
    lonely.write_bytes(model.read_bytes())
    assert re_names(refused(lonely))
    weights = {f"backbone/{name}": array + 1 for name, array in registry.backbone_of(config(model)).arrays().items()}
    with pytest.raises(BirdtuneError, match="the backbone of version 3 was trained"):
        published.require_backbone(config(model, keep_classes="all"), weights, "version 3")


def re_names(said: str) -> bool:
    return "names of the 5 classes" in said and "beside" in said


# ---- calibration --------------------------------------------------------------------------------


def made_scores(n_sources: int, logits: Any, labels: Any, n_classes: int = 3) -> Scores:
    n = len(labels)
    return Scores(
        classes=tuple(f"own {column}" for column in range(n_classes)),
        recordings=tuple(map(str, range(n))),
        groups=tuple(str(number % n_sources) for number in range(n)),
        targets=one_hot(labels, n_classes),
        window_scores=np.asarray(logits, np.float32),
        window_recording=np.arange(n),
        window_start_s=np.zeros(n, np.float32),
    )


def test_slope_and_offset_come_from_matched_classes_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    # Probabilities are right at 2 · logit - 1; the third class of the data is not published.
    logits = rng.normal(0, 1, (600, 2)) + 2.0 * (labels[:, None] == np.arange(2))
    scores = made_scores(600, np.zeros((600, 3)), labels)
    found = published_scores.fit(published_scores.of_matched(scores, logits, ["A_a", "B_b"], [[0], [1]]))
    assert not found.reason and found.sources == 600
    served = found.windows(logits)
    is_of = labels[:, None] == np.arange(2)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (served >= low) & (served < high)
        assert served[inside].mean() == pytest.approx(is_of[inside].mean(), abs=0.06)


def test_with_too_few_classes_or_sources_nothing_is_fitted() -> None:
    labels = np.arange(60) % 3
    logits = np.zeros((60, 2), np.float32)
    for n_sources, members, said in ((60, [[0], []], "1 published"), (6, [[0], [1]], "4 source")):
        scores = made_scores(n_sources, np.zeros((60, 3)), labels)
        chosen = [each for each in members if each]
        part = published_scores.of_matched(scores, logits[:, : len(chosen)], ["A", "B"][: len(chosen)], chosen)
        found = published_scores.fit(part)
        assert found.window == found.clip == Scale() and said in found.reason
    assert published_scores.fit(None).reason


def test_two_names_of_one_published_class_are_one_class_to_it() -> None:
    scores = made_scores(4, np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 2])
    merged = published_scores.of_matched(scores, np.zeros((4, 2), np.float32), ["A", "B"], [[0, 1], [2]])
    np.testing.assert_array_equal(merged.targets, [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_both_choose_among_the_matched_classes_alone() -> None:
    labels = [0, 0, 1, 1, 2]
    own = made_scores(5, [[0.9, 0.1, 0], [0.1, 0.2, 0.9], [0, 0.3, 0.9], [0.2, 0.3, 0], [0, 0, 1]], labels)
    logits = np.array([[2, 0], [2, 0], [0, 2], [2, 0], [2, 0]], np.float32)
    test = published_scores.of_matched(own, logits, ["A", "B"], [[0], [1]])
    found = published_scores.compare(test, own, [[0], [1]], Calibration("sigmoid"), n_bootstrap=20, seed=0)
    assert found is not None and found["recordings"] == 4 and found["classes"] == 2
    # The second recording is lost by the head: 0.2 of "own 1" beside 0.1; a third class of its own does not count.
    assert (found["published"]["accuracy"], found["head"]["accuracy"]) == (0.75, 0.75)


# ---- serving ------------------------------------------------------------------------------------


def test_windows_count_as_attention_has_them_in_the_graph_and_in_rows() -> None:
    backbone = registry.BACKBONES["vggish-small"]
    made = classifiers.build(
        backbone, head="attention", scores="softmax", hidden_units=5, embedding_activation="relu",
        freeze="all-but-head", classes=("a", "b"), precision="float32", seed=3,
    )  # fmt: skip
    assert made.attention is not None
    made.attention.get_layer("attention").kernel.assign([[5.0], [-5.0], [5.0], [-5.0], [5.0]])
    rng = np.random.default_rng(0)
    layer = Layer(rng.normal(0, 3, (backbone.embedding_size, 70)).astype(np.float32), rng.normal(0, 1, 70).astype("f4"))
    served = Served(tuple(map(str, range(70))), layer, Calibration("sigmoid", Scale(2.0, -0.5), Scale(1.5, 0.2)))
    waveform = rng.normal(0, 0.2, 80_000).astype(np.float32)
    waveform[:40_000] *= 0.01
    windows = backbone.front_end.windows_of(waveform).astype(np.float32)
    embeddings = np.asarray(made.embed(windows))
    attention = np.asarray(made.attend(embeddings), np.float64)
    assert np.ptp(attention) > 1  # windows differ, so that a plain mean is not the same
    scores = scipy.special.expit(2.0 * (embeddings @ layer.kernel + layer.bias) - 0.5)
    mean = scipy.special.softmax(attention) @ scores
    expected = scipy.special.expit(1.5 * scipy.special.logit(np.clip(mean, 1e-30, 1 - 1e-5)) + 0.2)

    graph = ServedGraph(made, Calibration("softmax"), None, PublishedGraph(served))
    found = graph.sound(tf.constant(waveform[None]), tf.constant([waveform.size]))["published_scores"]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)

    choice = PublishedChoice(PublishedClasses(served.labels, served.windows, served.calibration), True, 0.5)
    results = window_results(made, pools=True, published=choice)(windows)
    scored = Scored("x.wav", 0.0, 5.0, np.arange(len(windows)) * 0.96, results[:, :3], results[:, 3:].sum(axis=0))
    row = Rows(("a", "b"), backbone.front_end, None, None, None, None, choice).recording(scored)
    best = int(expected.argmax())
    assert row["class"] == str(best) and row["score"] == pytest.approx(expected[best], abs=1e-4)


def test_an_own_class_that_passes_comes_before_published_ones() -> None:
    spec = registry.BACKBONES["vggish-small"].front_end
    thresholds = Thresholds((0.5, 0.5), (OWN, OWN), "", "")
    classes = PublishedClasses(("x", "y"), lambda embeddings: embeddings, Calibration("sigmoid"))
    found = {}
    for alone in (False, True):
        rows = Rows(("a", "b"), spec, None, thresholds, None, None, PublishedChoice(classes, alone, 0.6))
        for own, others in ((0.8, 0.9), (0.4, 0.7), (0.4, 0.55)):
            results = np.array([[own, 0.1, 0.0]], np.float32)
            scored = Scored("s.wav", 0.0, 1.0, np.zeros(1), results, np.array([0.2, others, 1.0, 1.0]))
            row = rows.recording(scored)
            found[alone, own, others] = row["decision"], row["class_from"]
            assert set(row) <= set(rows.columns)
            assert row["class" if alone else "published_class"] == "y"
    assert list(found.values()) == [
        ("a", "own"), ("y", "published"), ("unknown", ""),
        ("y", "published"), ("y", "published"), ("unknown", ""),
    ]  # fmt: skip


def test_the_threshold_of_kept_classes_is_one_that_recordings_without_them_seldom_reach() -> None:
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(400):
        highest = rng.beta(2, 2, 60).astype(np.float32)
        found = published_scores.choose_threshold(highest[:50], [str(number) for number in range(50)])
        reached.append((highest[50:] >= found.score).mean())
    assert found.expected == pytest.approx(1 - 49 / 51) and found.sources == 50
    assert np.mean(reached) == pytest.approx(found.expected, abs=0.015)
    few = published_scores.choose_threshold(np.float32([0.7, 0.9, 0.6]), ["a", "a", "b"])
    assert few.score > np.float32(0.9) and few.score == pytest.approx(0.9) and few.expected == pytest.approx(1 / 3)
    shared = [str(number // 10) for number in range(100)]
    found = published_scores.choose_threshold(np.linspace(0, 1, 100, dtype=np.float32), shared, windows=True)
    assert found.expected == pytest.approx(0.05) and found.score == pytest.approx(0.95, abs=0.01)
    assert published_scores.choose_threshold(np.float32([0.1]), ["a"]).score == 0.5
    assert published_scores.choose_threshold(np.zeros(0, np.float32), []).row()["sources"] == 0


@pytest.fixture(scope="module")
def output(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, in_one_process: None) -> Path:
    folder = tmp_path_factory.mktemp("run") / "output"
    assert cli.main(run_arguments(data, folder, model, "all")) == 0
    return folder


def run_arguments(data: Path, folder: Path, model: Path, keep: str) -> list[str]:
    more = ["--split.val-fraction", "0.4", "--split.test-fraction", "0.25", "--evaluate.bootstrap", "50"]
    return arguments(data, folder, model, "--model.keep-classes", keep, "--model.head-weights", "published", *more)


def test_the_export_has_them_labelled_verified_and_calibrated(output: Path, model: Path, data: Path) -> None:
    folder = output / "model/birdtune/1"
    facts = read_json(folder / "model.json")
    assert [row["class"] for row in read_csv(folder / "published_labels.csv")] == list(KEPT)
    assert facts["published"]["matched"] == {"Apus_apus": LABELS[0], "eagle owl": LABELS[1]}
    assert facts["verification"]["differences"]["sound.published_scores"] <= 1e-4
    calibration = Calibration.of(facts["published"]["calibration"])
    assert calibration.sources >= 10 and calibration.window != Scale()
    loaded = tf.saved_model.load(str(folder))
    rng = np.random.default_rng(0)
    waveforms = [rng.normal(0, 0.1, n).astype(np.float32) for n in (60_000, 9000)]
    arrays = registry.backbone_of(config(model)).arrays()
    found, embedded = sound(loaded, *waveforms), sound(loaded, *waveforms, signature="embed")
    for row, n in enumerate(embedded["windows"]):
        logits = embedded["embeddings"][row, :n] @ arrays["logits/kernel"] + arrays["logits/bias"]
        expected = calibration.clips(calibration.windows(logits[:, 2:]).mean(axis=0)[None])[0]
        np.testing.assert_allclose(found["published_scores"][row], expected, atol=1e-5)


def test_the_report_says_what_is_kept_and_compares(output: Path) -> None:
    figures = read_json(output / "reports/1/metrics.json")["published"]
    assert figures["test"]["classes"] == 2 and figures["unmatched"] == ["Parus major"]
    page = (output / "reports/1/report.html").read_text("utf-8")
    assert "Published classes</h2>" in page and "the published classifier is right for" in page
    assert "Published scores are sigmoid(a · logit + b) with a =" in page


def test_what_the_recordings_have_added_to_the_published_classifier_is_said(output: Path) -> None:
    record, figures = read_json(output / "run.json"), read_json(output / "reports/1/metrics.json")
    pairs = {"Apus_apus": LABELS[0], "eagle owl": LABELS[1]}
    assert record["head_start"] == {"backbone": figures["published"]["backbone"], "classes": pairs}
    alone, beside = figures["published_alone"], figures["published"]["test"]
    assert all(alone[name] == beside[name] for name in ("classes", "recordings", "head"))
    page = (output / "reports/1/report.html").read_text("utf-8")
    assert "without your recordings" in page and "asked for the 2 classes that it knows" in page


def test_new_classes_of_a_next_version_begin_with_published_columns_and_kept_ones_that_it_drops_are_pointed_out(
    output: Path, model: Path, data: Path, tmp_path: Path, in_one_process: None
) -> None:
    new = shutil.copytree(data, tmp_path / "data")
    write_tones(new, {"Corvus corax": 2500.0, "Turdus merula": 6000.0}, 1.5, RATE_HZ, clips=4)
    again, still = shutil.copytree(output, tmp_path / "output"), ("--train.learning-rate", "1e-30")
    asked = arguments(new, again, model, "--init-from", "1", "--model.head-weights", "published", *still)
    assert cli.main(["train", *asked[1:]]) == 0
    record, said = read_json(again / "run.json"), (again / "logs/2/run.log").read_text("utf-8")
    assert record["head_start"]["classes"] == {"Corvus corax": LABELS[2]}
    assert record["classes"] == [*sorted(CLASSES), "Corvus corax", "Turdus merula"]
    assert "head: 1 of 2 new classes begins from" in said
    assert "version 1 serves published classes as well, and this version will not. Give --model.keep-classes" in said
    first, arrays = best(again, 1), registry.backbone_of(config(model)).arrays()
    kernel, bias = (best(again, 2)[f"head/logits/{name}"] for name in ("kernel", "bias"))
    np.testing.assert_array_equal(kernel[:, :3], first["head/logits/kernel"])
    np.testing.assert_array_equal(kernel[:, 3], arrays["logits/kernel"][:, 2])
    mean = first["head/logits/bias"].mean()
    np.testing.assert_allclose(bias, [*first["head/logits/bias"], arrays["logits/bias"][2], mean], atol=1e-6)


def best(output: Path, version: int) -> Any:
    return Checkpoints(output / f"checkpoints/{version}", 1).best()


def test_predict_takes_published_classes_where_no_own_class_passes(
    output: Path, data: Path, tmp_path: Path, in_one_process: None
) -> None:
    folder = output / "model/birdtune/1"
    rows = {}
    for classes in ("own", "both", "published"):
        out = tmp_path / f"{classes}.csv"
        given = ["predict", "--model", str(folder), "--out", str(out), "--classes", classes, str(data)]
        assert cli.main([*given, "--published-threshold", "0.01"]) == 0
        rows[classes] = read_csv(out)
    for own, both, alone in zip(rows["own"], rows["both"], rows["published"], strict=True):
        assert alone["class"] == both["published_class"] in KEPT and alone["score"] == both["published_score"]
        assert all(both[name] == own[name] for name in own if name != "decision")
        if own["decision"] == "unknown":
            assert (both["decision"], both["class_from"]) == (both["published_class"], "published")
        else:
            assert (both["decision"], both["class_from"]) == (own["decision"], "own")
        assert not alone.get("peak_s") and "score:Apus_apus" not in alone
    assert "class_from" not in rows["own"][0]
    test = {row["recording"] for row in read_csv(output / "split.csv") if row["split"] == "test"}
    inside = [row for row in rows["both"] if any(row["file"].endswith(name) for name in test)]
    others = read_json(output / "reports/1/metrics.json")["published"]["others"]["recording"]
    assert others["n"] == len(inside) == 12
    threshold = read_json(folder / "model.json")["published"]["threshold"]["recording"]["score"]
    assert others["above"] == sum(float(row["published_score"]) >= threshold for row in inside)
    assert others["median"] == pytest.approx(np.median([float(row["published_score"]) for row in inside]), abs=1e-4)
    assert cli.main(["predict", "--model", str(folder), "--out", str(out), "--classes", "published", str(data)]) == 0
    for row, alone in zip(read_csv(out), rows["published"], strict=True):  # from the threshold of the model on
        if abs(float(alone["score"]) - threshold) > 1e-4:  # the threshold is a score of one of them, here rounded
            assert (row["decision"] == "unknown") == (float(alone["score"]) < threshold)
    name = rows["both"][0]["file"]
    waveform = soundfile.read(data / name, dtype="float32")[0]
    scores = sound(tf.saved_model.load(str(folder)), waveform)["published_scores"][0]
    assert float(rows["both"][0]["published_score"]) == pytest.approx(scores.max(), abs=1e-4)


def test_detections_have_published_classes_where_they_are_asked_for(
    output: Path, data: Path, tmp_path: Path, in_one_process: None
) -> None:
    found = {}
    low, files = ["--detect.on", "0.2"], [str(path) for path in sorted(data.glob("*/*"))[::6]]
    for classes, more in (("own", low), ("both", low), ("published", ["--published-threshold", "0.02"])):
        out = tmp_path / classes
        given = ["predict", "--model", str(output / "model/birdtune/1"), "--out", str(out), "--format", "csv"]
        assert cli.main([*given, "--classes", classes, *more, "--detect.one-table", "true", *files]) == 0
        found[classes] = {(row["recording"], row["start_s"], row["class"]) for row in read_csv(out / "detections.csv")}
    assert found["own"] and found["own"] <= found["both"] and {name for *_, name in found["own"]} <= set(CLASSES)
    assert {name for *_, name in found["both"] - found["own"]} <= set(KEPT)
    assert {name for *_, name in found["published"]} == set(KEPT)


def test_what_parts_detect_and_merge_is_what_one_command_detects(
    output: Path, data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in sorted(data.glob("*/*"))[::6]] + [str(tmp_path / "gone.wav")]
    new = str(sorted(data.glob("*/*"))[1])
    given = ["predict", "--model", str(output / "model/birdtune/1"), "--format", "raven", "--detect.on", "0.2", *files]
    (tmp_path / "gone.wav").write_text("no sound")
    assert cli.main([*given, "--out", str(tmp_path / "one")]) == 0
    parts = [*given, "--out", str(tmp_path / "parts")]
    assert cli.main([*parts, "--shard", "1/2"]) == 0
    assert not list((tmp_path / "parts").rglob("*.selections.txt"))
    assert cli.main([*parts, "--merge"]) == 75
    assert "1 part of 2 not finished with this model and these settings: 2/2" in capsys.readouterr().err
    assert cli.main([*parts, "--shard", "2/2"]) == 0
    capsys.readouterr()
    assert cli.main([*parts, "--merge"]) == 0
    assert f"{len(files) - 1:,} were scored before" in capsys.readouterr().out
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.selections.txt"))
    one, merged = ({each: (tmp_path / way / each).read_bytes() for each in names} for way in ("one", "parts"))
    assert names and one == merged
    assert (tmp_path / "one/summary.csv").read_bytes() == (tmp_path / "parts/summary.csv").read_bytes()
    assert cli.main([*given[:-2], new, "--out", str(tmp_path / "parts"), "--merge"]) == 0  # others than the parts had
    said = "".join(capsys.readouterr())
    assert f"1 recording scored now, as no part has scored it (not there then, or not readable): {new}" in said
    assert f"1 recording that parts have scored is not among those given now, and in no table: {files[-2]}" in said


def test_a_model_without_them_is_made_without_another_training_and_says_so(
    output: Path, model: Path, data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    without = [each for each in run_arguments(data, output, model, "") if each not in ("--model.keep-classes", "")]
    assert cli.main(["export", *without[1:]]) == 0
    said = "".join(capsys.readouterr())
    assert "evaluate:" in said and "train:" not in said  # what is served beside changes nothing that is trained
    folder = output / "model/birdtune/1"
    assert not (folder / "published_labels.csv").exists() and read_json(folder / "model.json")["published"] is None
    given = ["predict", "--model", str(folder), "--out", str(tmp_path / "p.csv"), "--classes", "both", str(data)]
    assert cli.main(given) == 42
    assert "keeps no published classes" in capsys.readouterr().err


def test_check_says_what_matches_and_what_cannot_be(
    model: Path, data: Path, tmp_path: Path, in_one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["check", *run_arguments(data, tmp_path / "output", model, "all")[1:]]
    assert cli.main(given) == 0
    said = "".join(capsys.readouterr())
    assert "2 of 3 classes of the data are published: Apus_apus = Apus apus_Swift, eagle owl = Bubo" in said
    assert cli.main([*given, "--model.freeze", "none"]) == 42
    assert "wrong: --model.keep-classes: with --model.freeze none" in "".join(capsys.readouterr())
