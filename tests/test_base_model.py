"""A run that begins from a served model: whose columns stay, what new classes begin with, what became of the old."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from test_job import run as run_job
from test_job import settings as settings_of_a_job

from birdtune.config import Config
from birdtune.errors import CheckpointError, InputError, Interrupted, SettingsError
from birdtune.evaluation import ood
from birdtune.models import classifier as classifiers
from birdtune.models import saved_model
from birdtune.models.known import OWN
from birdtune.pipeline import check
from birdtune.pipeline import run as job
from birdtune.runtime import configure, workers
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import base_model, served_model
from birdtune.training.first_weights import build_classifier, load_first_weights

pytestmark = pytest.mark.usefixtures("in_one_process")

OLD = {"Bubo_bubo": 1800, "Corvus_corax": 3600, "Dryocopus_martius": 5200}
NEW = {"Apus_apus": 900}  # sorted by name, it would be the first column
SOURCES = 7


def write_data(folder: Path, pitches: dict[str, int], sources: range = range(SOURCES)) -> Path:
    """Classes that differ in pitch; two slices of each source."""
    for name, pitch_hz in pitches.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([pitch_hz, sources.start])
        for source in sources:
            for part in range(2):
                t = np.arange(32_000) / 16_000
                tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * source) * t) + 0.02 * rng.standard_normal(t.size)
                soundfile.write(folder / name / f"{name[:4]}{source:03d}_{part}.wav", tone, 16_000)
    return folder


def settings(data: Path, output: Path, **changes: Any) -> Config:
    return settings_of_a_job(data, output, **{"train__epochs": 2, "model__dropout": 0.0, **changes})


def run(chosen: Config, interrupts: Interrupts | None = None, until: str = "report") -> None:
    assert run_job(chosen, interrupts, until) == 0


class StopOnce(Interrupts):
    """A signal that comes when some files are there."""

    def __init__(self, folder: Path, pattern: str) -> None:
        super().__init__()
        self._files = (folder, pattern)

    def check(self) -> None:
        if any(self._files[0].glob(self._files[1])):
            raise Interrupted(15)


def record(output: Path, version: int) -> dict[str, Any]:
    found = read_json(output / f"logs/{version}/run.json")
    assert isinstance(found, dict)
    return found


def beside(output: Path, version: int = 2) -> dict[str, Any]:
    found = read_json(output / f"reports/{version}/metrics.json")["model_comparison"]
    assert isinstance(found, dict)
    return found


def weights_of(output: Path, version: int) -> dict[str, np.ndarray[Any, Any]]:
    folder = output / f"model/birdtune/{version}"
    facts = read_json(folder / "model.json")
    return saved_model.read(folder, tuple(facts["weights"]), facts["weights_sha256"])


@pytest.fixture(scope="module")
def old_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("old") / "data", OLD)
    (folder.parent / "bird_id_map.json").write_text('{"Bubo_bubo": 41, "Corvus_corax": "007"}')
    return folder


@pytest.fixture(scope="module")
def new_data(old_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same and a new class, without the label map."""
    folder = Path(shutil.copytree(old_data, tmp_path_factory.mktemp("new") / "data"))
    return write_data(folder, NEW)


@pytest.fixture(scope="module")
def first(old_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output with version 1."""
    output = tmp_path_factory.mktemp("output")
    run(settings(old_data, output))
    return output


@pytest.fixture(scope="module")
def second(first: Path, new_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with version 2, which began from it."""
    output = Path(shutil.copytree(first, tmp_path_factory.mktemp("second") / "output"))
    run(settings(new_data, output, init_from=1))
    return output


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    """Version 1, to go on with."""
    return Path(shutil.copytree(first, tmp_path / "output"))


def test_of_recordings_with_several_classes_no_old_class_is_known(copy: Path, old_data: Path) -> None:
    base = served_model.of_number(settings(old_data, copy), "--init-from", 1)
    before = base.learnt()
    path = copy / "logs/1/split.csv"
    lines = path.read_text("utf-8").splitlines()
    name, label, rest = lines[1].split(",", 2)
    path.write_text("\n".join([lines[0], f'{name},"{label}, Apus_apus",{rest}', *lines[2:]]), "utf-8")
    assert label in before.values() and len(base.learnt()) == len(before) - 1


# ---- columns ------------------------------------------------------------------------------------


def test_old_classes_keep_column_and_id_and_new_ones_stand_behind_them(second: Path) -> None:
    before, after = (read_csv(second / f"model/birdtune/{version}/labels.csv") for version in (1, 2))
    known = [(row["column"], row["class"], row["external_id"]) for row in after]
    assert known[:3] == [(row["column"], row["class"], row["external_id"]) for row in before]
    assert known[:2] == [("0", "Bubo_bubo", "41"), ("1", "Corvus_corax", "007")]
    assert known[3:] == [("3", "Apus_apus", "")]
    names = pickle.loads((second / "model/birdtune/2/train_id_list.pickle").read_bytes())
    assert names == [*OLD, "Apus_apus"]


def test_record_and_model_say_from_which_version_it_came(second: Path) -> None:
    expected = {"version": 1, "folder": None, "weights_sha256": record(second, 1)["weights_sha256"]}
    assert record(second, 2)["init_from"] == expected
    assert read_json(second / "model/birdtune/2/model.json")["init_from"] == expected
    assert record(second, 1)["init_from"] is None
    # Whatever its own settings say, nobody's weights are in it but those of version 1.
    origins = [read_json(second / f"model/birdtune/{version}/model.json")["backbone_origin"] for version in (1, 2)]
    assert origins == [OWN.row()] * 2
    report = (second / "reports/2/report.html").read_text("utf-8")
    assert "no recordings but those of this model and its base models" in report
    log = (second / "logs/2/run.log").read_text()
    assert "begins from version 1" in log and "1 new class behind them: Apus_apus (3)" in log


def test_new_recordings_alone_are_learnt_without_a_new_class(old_data: Path, copy: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(old_data, tmp_path / "more" / "data"))
    write_data(more, {"Bubo_bubo": 1800}, range(SOURCES, SOURCES + 2))
    run(settings(more, copy, init_from=1, train__epochs=1), until="train")
    assert record(copy, 2)["classes"] == list(OLD)


# ---- weights ------------------------------------------------------------------------------------


def test_it_begins_with_the_served_weights_and_new_columns_in_their_middle(first: Path, new_data: Path) -> None:
    chosen = settings(new_data, first, init_from=1)
    (found,) = base_model.find(chosen)
    classes = (*found.classes, "Apus_apus")
    grown = [build_classifier(chosen, classes, "float32", seed=seed) for seed in (1, 1, 2)]
    for each in grown:
        load_first_weights(each, chosen, found)
    same, again, other = (classifiers.weights(each) for each in grown)
    old = weights_of(first, 1)
    for name, array in same.items():
        np.testing.assert_array_equal(array[..., :3] if name.startswith("head/logits") else array, old[name])
        np.testing.assert_array_equal(array, again[name])
    kernel = "head/logits/kernel"
    assert not np.array_equal(same[kernel], other[kernel])  # the new column is drawn from the seed
    features = np.random.default_rng(0).normal(-3, 1, (16, 96, 64)).astype(np.float32)
    scores = np.asarray(grown[0].scores(features)[0])
    assert scores[:, 3].max() < 0.3  # of 0.25 and a little of its own: it drowns nobody


@pytest.mark.parametrize("head", ["mlp", "attention", "prototype"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_every_head_is_served_and_grown(head: str, scores: str, tmp_path: Path) -> None:
    size = {"model__prototypes": 2} if head == "prototype" else {"model__hidden_units": 5}
    chosen = settings(tmp_path / "data", tmp_path, model__head=head, model__output=scores, **size)
    old = build_classifier(chosen, tuple(OLD), "float32")
    module = tf.Module()
    module.weights = [variable.value for variable in old.variables]  # as results.export keeps them
    folder = tmp_path / "[1] möwe*"
    tf.saved_model.save(module, str(folder))
    sha256 = classifiers.weights_sha256(classifiers.weights(old))
    read = saved_model.read(folder, tuple(classifiers.weights(old)), sha256)
    fresh = build_classifier(chosen, (*OLD, "Apus_apus"), "float32", seed=3)
    from birdtune.models.growth import grown

    classifiers.load_weights(fresh, grown(read, classifiers.weights(fresh)))
    features = np.random.default_rng(0).normal(-3, 1, (4, 96, 64)).astype(np.float32)
    before, embeddings = old.logits(features)
    after, _ = fresh.logits(features)
    np.testing.assert_allclose(np.asarray(after)[:, :3], np.asarray(before), atol=1e-6)
    np.testing.assert_allclose(fresh.attend(embeddings), old.attend(embeddings), atol=1e-6)


def test_weights_that_are_not_the_exported_ones_are_refused(copy: Path, new_data: Path) -> None:
    path = copy / "model/birdtune/1/variables/variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"birdtune/1.*(SHA-256|not as birdtune exports)"):
        run(settings(new_data, copy, init_from=1))


def test_a_models_variables_are_read_in_a_process_of_their_own(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_model, "Isolated", workers.Isolated)
    facts = read_json(first / "model/birdtune/1/model.json")
    names = tuple(facts["weights"])
    saved_model.verify(first / "model/birdtune/1", names, facts["weights_sha256"])
    with pytest.raises(CheckpointError, match="SHA-256"):
        saved_model.verify(first / "model/birdtune/1", names, "0" * 64)


def test_what_frozen_layers_made_of_other_weights_is_not_used(copy: Path, old_data: Path, new_data: Path) -> None:
    frozen = {"model__freeze": "all-but-head", "train__epochs": 1}
    run(settings(old_data, copy, **frozen), until="train")
    of_fresh = {path.name for path in copy.glob("cache/*/frozen-*")}
    run(settings(new_data, copy, init_from=1, **frozen), until="train")
    of_served = {path.name for path in copy.glob("cache/*/frozen-*")}
    assert of_fresh and of_served and not of_fresh & of_served


# ---- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, "latest"])
def test_the_same_command_again_has_nothing_to_do(
    version: object, second: Path, new_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.run(settings(new_data, second, init_from=version), Journal(), Interrupts())
    assert "nothing to do" in capsys.readouterr().out
    assert not (second / "logs/3").exists()


def test_latest_is_the_newest_where_something_is_new(second: Path, new_data: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(second, tmp_path / "output"))
    run(settings(new_data, output, init_from="latest", train__epochs=1), until="train")
    assert record(output, 3)["init_from"]["version"] == 2


def test_killed_and_started_again_it_comes_to_the_same_weights_without_the_old_checkpoints(
    copy: Path, new_data: Path, second: Path
) -> None:
    shutil.rmtree(copy / "checkpoints")
    chosen = settings(new_data, copy, init_from="latest", train__checkpoint_minutes=1e-6)
    with pytest.raises(Interrupted):
        run(chosen, StopOnce(copy, "checkpoints/2/epoch-*"), until="train")
    assert record(copy, 2)["status"] == "interrupted"
    with pytest.raises(InputError, match=r"version 2 itself is under way \(its stage train.*\(--init-from 1\)"):
        run(settings(new_data, copy, init_from=2))
    run(chosen, until="train")
    assert record(copy, 2)["weights_sha256"] == record(second, 2)["weights_sha256"]
    assert record(copy, 2)["init_from"]["version"] == 1 and not (copy / "logs/3").exists()


def test_a_version_that_is_not_there_is_told_with_those_that_are(first: Path, new_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--init-from 7: .*\(there are: 1\)"):
        run(settings(new_data, first, init_from=7))
    with pytest.raises(InputError, match=r"--init-from latest: there is no exported model .* yet"):
        run(settings(new_data, tmp_path / "fresh", init_from="latest"))
    with pytest.raises(InputError, match=r"there is no model\.json in it\. It holds the versions 1: give one"):
        run(settings(new_data, first, init_from=str(first / "model/birdtune")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__head": "mlp"}, r"model.head is linear there and mlp here.*--model.head linear"),
        ({"model__output": "sigmoid"}, r"model.output is softmax there and sigmoid here.*--model.output softmax"),
        ({"model__backbone": "yamnet"}, r"model.backbone is vggish-small there and yamnet here"),
    ],
)
def test_another_network_is_told_with_both_values(
    changes: dict[str, Any], told: str, first: Path, new_data: Path
) -> None:
    with pytest.raises(SettingsError, match=told):
        run(settings(new_data, first, init_from=1, **changes))


@pytest.mark.parametrize("text", ["", "{}", '{"format": 4, "classes": ["a"]}', "[1]"])
def test_a_damaged_description_is_told(text: str, copy: Path, new_data: Path) -> None:
    (copy / "model/birdtune/1/model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json: is missing, damaged, or another birdtune's"):
        run(settings(new_data, copy, init_from=1))


def test_a_model_in_the_place_of_another_is_told(copy: Path, new_data: Path) -> None:
    path = copy / "model/birdtune/1/model.json"
    path.write_text(json.dumps({**read_json(path), "weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"is not the model that its run made"):
        run(settings(new_data, copy, init_from=1))


def test_a_model_with_a_class_that_is_called_as_no_answer_is_begun_from_if_that_is_background(
    copy: Path, new_data: Path
) -> None:
    for name in ("model.json", "labels.csv"):
        path = copy / "model/birdtune/1" / name
        path.write_text(path.read_text().replace("Bubo_bubo", "Unknown"))
    with pytest.raises(SettingsError, match=r"--init-from: version 1: there is a class Unknown, and `unknown` is what"):
        base_model.find(settings(new_data, copy, init_from=1, labels__negative_classes="background"))
    (found,) = base_model.find(settings(new_data, copy, init_from=1, labels__negative_classes="unknown"))
    assert found.classes[0] == "Unknown"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1", "1"), ('"1"', "1"), ("latest", "latest"), ("served/3", "INPUT/served/3"), ("/models/3", "/models/3")],
)
def test_in_job_yaml_a_number_is_no_path(given: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"init-from: {given}\n")
    found = configure.load({"input": tmp_path}, {}).init_from
    assert found == expected.replace("INPUT", str(tmp_path))


def test_check_says_what_it_would_begin_from_and_what_does_not_fit(
    copy: Path, new_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.check(settings(new_data, copy, init_from=1), Journal(), Interrupts()) == 0
    told = capsys.readouterr().out
    assert "init-from: version 1 is whole and fits; its 3 classes keep their columns" in told
    assert told.index("Dryocopus_martius ") < told.index("Apus_apus ")
    assert check.check(settings(new_data, copy, init_from=9), Journal(), Interrupts()) == 42
    assert "wrong: --init-from 9" in capsys.readouterr().out


# ---- classes without recordings -----------------------------------------------------------------


def test_a_class_whose_folder_is_gone_keeps_its_column_as_it_was(
    copy: Path, new_data: Path, tmp_path: Path
) -> None:
    left = Path(shutil.copytree(new_data, tmp_path / "left" / "data"))
    shutil.rmtree(left / "Corvus_corax")
    run(settings(left, copy, init_from=1, model__freeze="all-but-head", train__label_smoothing=0.1,
                 train__weight_decay=0.1))  # fmt: skip
    before, after = weights_of(copy, 1), weights_of(copy, 2)
    for name in ("head/logits/kernel", "head/logits/bias"):
        np.testing.assert_array_equal(after[name][..., 1], before[name][..., 1])
        assert not np.array_equal(after[name][..., 0], before[name][..., 0])
    rows = read_csv(copy / "model/birdtune/2/labels.csv")
    assert [row["class"] for row in rows] == [*OLD, "Apus_apus"] and rows[1]["external_id"] == "007"
    assert "Classes of version 1 without recordings now: Corvus_corax." in (copy / "logs/2/run.log").read_text()
    found = beside(copy)
    assert found["untrained"] == ["Corvus_corax"]
    assert "Corvus_corax" not in [row["class"] for row in found["comparison"]["per_class"]]
    assert "Kept without training recordings" in (copy / "reports/2/report.html").read_text()


@pytest.fixture(scope="module")
def with_ood(old_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of a frozen backbone, with OOD statistics of few sources."""
    output = tmp_path_factory.mktemp("with_ood") / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ood, "FEWEST_SOURCES", 2)
        run(settings(old_data, output, ood__target_recall=0.5, model__freeze="all-but-head"))
    return output


@pytest.mark.parametrize("freeze", ["all-but-head", "none"])
def test_sounds_of_a_class_whose_folder_is_gone_are_answered_where_the_backbone_is_kept(
    freeze: str, with_ood: Path, new_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ood, "FEWEST_SOURCES", 2)
    left = Path(shutil.copytree(new_data, tmp_path / "data"))
    shutil.rmtree(left / "Corvus_corax")
    output = Path(shutil.copytree(with_ood, tmp_path / "output"))
    run(settings(left, output, init_from=1, ood__target_recall=0.5, model__freeze=freeze))
    before, after = (saved_model.read_ood_model(output / f"model/birdtune/{version}") for version in (1, 2))
    assert before is not None and after is not None
    written = ood.OodModel.load(output / "reports/1/ood.npz")
    np.testing.assert_array_equal(before.centres, written.centres)
    np.testing.assert_array_equal(before.counts, written.counts)
    found, report = beside(output), (output / "reports/2/report.html").read_text()
    codes = [row["code"] for row in record(output, 2)["warnings"]]
    assert found["comparison"]["decided"]["n_recordings"] == found["comparison"]["n_recordings"]
    for version, part in ((1, "before"), (2, "after")):
        rows = [row for row in read_csv(output / f"reports/{version}/predictions.csv") if row["split"] == "test"]
        given = [row["decision"] != "unknown" for row in rows if row["class"] in set(OLD) - {"Corvus_corax"}]
        assert found["comparison"]["decided"][part] == pytest.approx(np.mean(given))  # as each was judged itself
    if freeze == "none":
        assert after.counts[1] == 0 and found["unreachable"] == ["Corvus_corax"] and not found["backbone_kept"]
        assert "old-classes-unreachable" in codes and "was trained further" in report
    else:
        assert after.counts[1] == before.counts[1] > 0 and found["unreachable"] == [] and found["backbone_kept"]
        assert "old-classes-unreachable" not in codes and "did not change; they are not tested" in report


# ---- what became of the old ---------------------------------------------------------------------


def test_the_old_classes_are_judged_before_and_after_on_test_recordings_of_theirs(second: Path) -> None:
    found = beside(second)
    judged = found["comparison"]
    tested = [row for row in read_csv(second / "logs/1/split.csv") if row["split"] == "test"]
    assert judged["n_recordings"] == len(tested) == 6 and found["left_out"] == 0
    rows = [row for row in read_csv(second / "reports/1/predictions.csv") if row["split"] == "test"]
    right = sum(row["correct"] == "yes" for row in rows) / len(rows)
    assert judged["accuracy"]["before"] == pytest.approx(right)  # as version 1 was judged itself
    of_new = read_json(second / "reports/2/metrics.json")["test"]["per_class"]
    for row in judged["per_class"]:
        assert row["recall"]["after"] == next(r["recall"] for r in of_new if r["class"] == row["class"])
    assert [row["class"] for row in found["new"]] == ["Apus_apus"] and found["new"][0]["column"] == 3


def test_log_and_report_say_it_and_only_where_there_was_one(second: Path) -> None:
    log = (second / "logs/2/run.log").read_text()
    assert "On 6 test recordings of the old classes (3 source recordings) that neither model was trained on, " in log
    with_section, without = ((second / f"reports/{version}/report.html").read_text() for version in (2, 1))
    assert 'id="before"' in with_section and "So few sources show large changes only" in with_section
    assert 'id="before"' not in without


def test_what_the_old_model_learnt_from_does_not_judge_it(copy: Path, new_data: Path) -> None:
    (copy / "split.csv").unlink()
    run(settings(new_data, copy, init_from=1, split__seed=8), until="evaluate")
    now = {row["recording"] for row in read_csv(copy / "split.csv") if row["split"] == "test"}
    heard = {row["recording"] for row in read_csv(copy / "logs/1/split.csv") if row["split"] != "test"}
    found = beside(copy)
    assert found["left_out"] == len(now & heard) > 0
    assert "test-seen-before" in [row["code"] for row in record(copy, 2)["warnings"]]
    clean = {name for name in now - heard if not name.startswith("Apus")}
    assert (found["comparison"] or {"n_recordings": 0})["n_recordings"] == len(clean)
    (copy / "logs/1/split.csv").unlink()
    assert base_model.find(settings(new_data, copy, init_from=1))[0].learnt_from() is None


def test_what_the_version_before_had_learnt_from_counts_as_well(second: Path, new_data: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(second, tmp_path / "output"))
    path = output / "logs/2/split.csv"
    lines = path.read_text().splitlines(keepends=True)
    taught = next(line for line in lines if line.startswith("Bubo_bubo/") and ",train," in line)
    path.write_text("".join(line for line in lines if "Bubo_bubo" not in line))
    heard = base_model.find(settings(new_data, output, init_from=2))[0].learnt_from()
    assert heard is not None and taught.split(",")[0] in heard.names and "Apus_apus/Apus000_0.wav" in heard.names


def test_a_model_from_elsewhere_is_begun_from_and_judged_if_its_logs_came_along(
    first: Path, new_data: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(first / "model/birdtune/1", tmp_path / "served" / "x" / "y" / "5"))
    output = tmp_path / "output"
    run(settings(new_data, output, init_from=str(alone), train__epochs=1), until="evaluate")
    found = beside(output, 1)
    assert record(output, 1)["init_from"]["folder"] == str(alone)
    assert found["comparison"] is None and "it is not known which of the 6 test recordings" in found["reason"]
    assert "test-seen-before" in [row["code"] for row in record(output, 1)["warnings"]]
    whole = settings(new_data, tmp_path / "other", init_from=str(first / "model/birdtune/1"))
    assert base_model.find(whole)[0].learnt_from() is not None


