"""train.ensemble: heads that leave out another fold each, served as one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_job import mtimes, record, run, settings, write_data
from test_multilabel import timed

from birdtune.errors import InputError, Interrupted, SettingsError
from birdtune.evaluation.scores import Scores, joined, one_hot, subset
from birdtune.models import classifier as classifiers
from birdtune.models import ensemble as heads_of_one
from birdtune.models.classifier import weights_sha256
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import slim, stages
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import base_model, ensemble, served_model
from birdtune.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("in_one_process")

__all__ = ["timed"]  # a fixture

MEMBERS = 4
ENSEMBLE = {"model__freeze": "all-but-head", "train__learning_rate": 1e-2, "train__ensemble": MEMBERS}
MLP = {"model__head": "mlp", "model__hidden_units": "6,5", "model__output": "sigmoid"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data")


@pytest.fixture(scope="module")
def seen() -> list[Any]:
    """The jobs of all members of `done`."""
    return []


@pytest.fixture(scope="module")
def done(data: Path, seen: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run."""
    output = tmp_path_factory.mktemp("output")

    def again(job: Any, *more: Any) -> Any:
        seen.append(job)
        return trained(job, *more)

    def first(job: Any, **more: Any) -> Any:
        seen.append(job)
        return begun(job, **more)

    trained, begun = ensemble.again, stages.training.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "again", again)
        patch.setattr(stages.training, "train", first)
        assert run(settings(data, output, **ENSEMBLE)) == 0
    return output


@pytest.fixture(scope="module")
def wide(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run with two hidden layers, each class on its own."""
    output = tmp_path_factory.mktemp("wide")
    assert run(settings(data, output, **ENSEMBLE, **MLP)) == 0
    return output


def best(output: Path, *inside: str) -> Any:
    return Checkpoints(output.joinpath("checkpoints/1", *inside), 2).best()


def of_members(output: Path) -> list[Any]:
    return [best(output), *(best(output, f"member-{number}") for number in range(2, MEMBERS + 1))]


def metrics(output: Path) -> Any:
    return read_json(output / "reports/1/metrics.json")


# ---- who learns what ----------------------------------------------------------------------------


def test_no_member_learns_from_test_and_each_recording_is_left_out_by_one(done: Path, seen: list[Any]) -> None:
    sides = {row["recording"]: row["split"] for row in read_csv(done / "split.csv")}
    assert [job.member for job in seen] == list(range(1, MEMBERS + 1))
    left_out: list[str] = []
    for job in seen:
        learnt, own = ({recording.name for recording in job.dataset.part(name)} for name in ("train", "val"))
        assert learnt | own == {name for name, side in sides.items() if side != "test"} and not learnt & own
        groups = [{job.dataset.places[name].group for name in part} for part in (learnt, own)]
        assert own and not groups[0] & groups[1]
        left_out += own
    assert sorted(left_out) == sorted(name for name, side in sides.items() if side != "test")
    assert {recording.name for recording in seen[0].dataset.part("val")} == {
        name for name, side in sides.items() if side == "val"
    }


def test_its_books_name_every_member_and_what_it_reached(done: Path) -> None:
    told, figures = record(done)["ensemble"], metrics(done)["ensemble"]
    assert read_json(done / "logs/1/history.json")["ensemble"] == told and record(done)["refit"] is None
    assert [row["member"] for row in told] == list(range(1, MEMBERS + 1))
    assert all(row["val_accuracy"] is not None and 1 <= row["best_epoch"] <= row["epochs"] for row in told)
    n = figures["recordings"]
    assert all(row["recordings"] + row["validated_on"] == n for row in told)
    assert all(0 <= row["test_accuracy"] <= 1 for row in [*figures["members"], figures["together"]])
    page = " ".join((done / "reports/1/report.html").read_text("utf-8").split())
    assert f"on {n} recordings of" in page and "an ensemble: the mean of 4 heads" in page and "mean of all" in page
    log = (done / "logs/1/run.log").read_text("utf-8")
    assert "member-4 of 4: learns from" in log and "times as long as the first alone" in log


def test_calibration_rests_on_all_recordings_but_those_of_test(done: Path) -> None:
    sides = [row for row in read_csv(done / "split.csv") if row["split"] != "test"]
    assert metrics(done)["calibration"]["sources"] == len({row["group"] for row in sides})
    assert not metrics(done)["calibration"]["reason"]


# ---- one model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "units"), [("linear", 0), ("mlp", 7), ("mlp", "6,5,4")])
def test_logits_of_the_one_head_are_the_mean_of_those_of_the_members(head: str, units: int | str) -> None:
    generator, backbone = np.random.default_rng(0), BACKBONES["vggish-small"]

    def build(seed: int | None, units: int | str) -> classifiers.Classifier:
        return classifiers.build(
            backbone, head=head, scores="softmax", hidden_units=units, embedding_activation="relu",
            freeze="all-but-head", classes=["a", "b", "c"], precision="float32", seed=seed,
        )  # fmt: skip

    members = []
    for seed in range(3):
        member = build(seed, units)
        for variable in member.trainable_variables:  # biases that are not zero, too
            variable.assign(generator.standard_normal(variable.shape))
        members.append(member)
    embeddings = generator.standard_normal((9, backbone.embedding_size)).astype(np.float32)
    expected = np.mean([np.asarray(member.head(embeddings), np.float64) for member in members], axis=0)
    arrays = [classifiers.weights(member) for member in members]
    for array in arrays[1:]:
        array |= {name: value for name, value in arrays[0].items() if name.startswith("backbone/")}
    one = build(None, heads_of_one.wide(units, 3))
    classifiers.load_weights(one, heads_of_one.averaged(arrays))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(one.head(embeddings)) / scale, expected / scale, atol=1e-6)
    arrays[1] |= {name: value + 1 for name, value in arrays[1].items() if name.startswith("backbone/")}
    with pytest.raises(ValueError, match="cannot share one backbone"):
        heads_of_one.averaged(arrays)


def test_the_mean_of_linear_heads_is_exported(done: Path) -> None:
    served = read_json(done / "model/birdtune/1/model.json")
    mean = heads_of_one.averaged(of_members(done))
    assert served["weights_sha256"] == weights_sha256(mean) == record(done)["weights_sha256"]
    assert (served["head"], served["hidden_units"], len(served["ensemble"])) == ("linear", 0, MEMBERS)
    kernels = [member["head/logits/kernel"] for member in of_members(done)]
    np.testing.assert_allclose(mean["head/logits/kernel"], np.mean(kernels, axis=0), atol=1e-6)
    assert all(np.abs(kernels[0] - other).max() > 1e-3 for other in kernels[1:])


def test_scores_served_of_test_are_those_of_the_members_mean(done: Path, seen: list[Any]) -> None:
    job = seen[0]
    networks = [ensemble.best_classifier(each) for each in (*ensemble.members(job), job.served)]
    test = ensemble._Part.of(job, networks[0], "test")
    found = [test.scores(network, logits=True) for network in networks]
    *alone, together = [each.window_scores for each in found]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6 * np.abs(together).max())


def test_heads_with_hidden_layers_lie_beside_each_other_in_one(wide: Path, tmp_path: Path, data: Path) -> None:
    served = read_json(wide / "model/birdtune/1/model.json")
    assert (served["head"], served["hidden_units"], served["hidden_units_before"]) == ("mlp", "24,20", "6,5")
    assert served["weights_sha256"] == weights_sha256(heads_of_one.averaged(of_members(wide)))
    shutil.copytree(wide, tmp_path / "output")
    config = settings(data, tmp_path / "output", **ENSEMBLE, **MLP)
    journal = Journal(quiet=True)
    slim.export_slim_model(config, journal)
    journal.close()
    assert any((tmp_path / "output/slim/1").iterdir())


def test_a_model_that_begins_from_it_begins_with_the_first_member(wide: Path, data: Path, tmp_path: Path) -> None:
    plain = {name: value for name, value in ENSEMBLE.items() if name != "train__ensemble"} | MLP
    config = settings(data, tmp_path, init_from=str(wide / "model/birdtune/1"), **plain)
    base = served_model.of_folder(config, "--init-from", wide / "model/birdtune/1")
    found, first = base_model.read_weights(base), best(wide)
    assert found.keys() == first.keys() and all(np.array_equal(found[name], first[name]) for name in found)
    assert run(config, until="evaluate") == 0
    plain |= {"model__hidden_units": "24,20", "init_from": str(wide / "model/birdtune/1")}
    with pytest.raises(SettingsError, match="hidden-units is 6,5 there and 24,20 here"):
        run(settings(data, tmp_path, **plain))


def test_labels_with_times_and_several_classes_are_learnt_and_detected_by_an_ensemble(
    timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out: list[Any] = []

    def evaluated(job: Any) -> Any:
        held_out.append(found := of_members(job))
        return found

    of_members = ensemble.evaluate
    monkeypatch.setattr(ensemble, "evaluate", evaluated)
    assert run(settings(timed, tmp_path, **ENSEMBLE | {"train__ensemble": 3, "split__test_fraction": 0.3})) == 0
    scores, _ = held_out[0]
    sides = {row["recording"]: row["split"] for row in read_csv(tmp_path / "split.csv")}
    assert sorted(scores.recordings) == sorted(name for name, side in sides.items() if side != "test")
    assert scores.window_targets is not None and scores.window_targets.any() and scores.window_mask is not None
    model = read_json(tmp_path / "model/birdtune/1/model.json")
    assert model["scores"] == "sigmoid" and model["detection_thresholds"]["goal"] == "the highest F1 of events"


# ---- stopped, refused ---------------------------------------------------------------------------


class StopIn(Interrupts):
    """A signal that comes at the n-th look for one after a folder is there."""

    def __init__(self, folder: Path, n: int) -> None:
        super().__init__()
        self._folder, self._left = folder, n

    def check(self) -> None:
        self._left -= self._folder.exists()
        if self._left == 0:
            raise Interrupted(15)


def test_however_often_it_is_stopped_the_weights_are_the_same(data: Path, done: Path, tmp_path: Path) -> None:
    config, inside = settings(data, tmp_path, **ENSEMBLE), tmp_path / "checkpoints/1"
    with pytest.raises(Interrupted):
        run(config, StopIn(inside / "member-3", 2))
    before = mtimes(inside / "member-2")
    assert before and not (inside / "member-4").exists()
    newest, _ = Checkpoints(inside / "member-3", 2).newest()
    assert newest is not None and not newest.state.finished
    with pytest.raises(Interrupted):
        run(config, StopIn(inside / "member-4", 2))
    assert not (inside / "ensemble").exists()
    assert run(config, until="train") == 0
    assert mtimes(inside / "member-2") == before
    assert record(tmp_path)["weights_sha256"] == record(done)["weights_sha256"]
    timeless = [[{**row, "seconds": 0} for row in record(output)["ensemble"]] for output in (tmp_path, done)]
    assert timeless[0] == timeless[1]


def test_what_could_not_be_served_as_one_model_or_be_evaluated_is_refused(data: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"model__freeze": "none"}, "a backbone of its own.*--model.freeze all-but-head"),
        ({"model__head": "attention"}, "Give --model.head linear or mlp"),
        ({"init_from": "latest"}, "Leave --init-from out"),
        ({"train__refit": True}, "leave --train.refit out"),
    ):
        with pytest.raises(SettingsError, match=f"--train.ensemble 4: .*{words}"):
            run(settings(data, tmp_path, **ENSEMBLE | changes))
    few = r"19 folds of training; 15 source recordings.*dealt to 15 folds.*Give a smaller number"
    with pytest.raises(InputError, match=few):
        run(settings(data, tmp_path, **ENSEMBLE | {"train__ensemble": 20}))
    with pytest.raises(InputError, match=r"there are no validation recordings. Give --split.val-fraction"):
        run(settings(data, tmp_path / "without", **ENSEMBLE | {"split__val_fraction": 0}))
    assert not (tmp_path / "checkpoints").exists()


def test_parts_of_scores_are_joined_as_they_were() -> None:
    whole = Scores(
        ("a", "b"), ("x", "y", "z"), ("x", "y", "z"), one_hot([0, 1, 0], 2), np.eye(5, 2, dtype=np.float32),
        np.array([0, 0, 1, 2, 2]), np.arange(5, dtype=np.float32), mask=np.array([[True, False], *[[True, True]] * 2]),
    )  # fmt: skip
    first = np.array([True, False, False])
    parts = [subset(whole, first), subset(whole, ~first)]
    found = joined(parts)
    assert (found.recordings, found.groups) == (whole.recordings, whole.groups)
    for name in ("targets", "window_scores", "window_recording", "window_start_s", "mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
