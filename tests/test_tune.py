"""birdtune.tuning.tune: trials go on where they were stopped, leave test alone, and are judged without flattery."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from makers import Said
from test_compare import with_heron
from test_job import run as run_job
from test_job import write_data

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import DivergedError, InputError, Interrupted, RetryableError, SettingsError
from birdtune.evaluation.scores import one_hot
from birdtune.reporting import figures, tune_page
from birdtune.reporting import tuned as tuned_words
from birdtune.reporting.tuned import Tuned
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json, write_json
from birdtune.runtime.runs import versions
from birdtune.runtime.signals import Interrupts
from birdtune.training.embeddings import folds, judgeable
from birdtune.tuning import trials, tune
from birdtune.tuning.study import Trial

pytestmark = pytest.mark.usefixtures("in_one_process")

ROOT = Path(__file__).parents[1]
SPACE = "model.head=linear|mlp, train.epochs=1..3, train.learning-rate=1e-5..1e-2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data")


def config_of(data: Path, output: Path, **changes: Any) -> Config:
    """Settings of a small tuning; learning rate and epochs are left to it."""
    given = {
        name.replace("__", "."): value
        for name, value in {"tune__space": SPACE, "tune__trials": 4, **changes}.items()
    }
    flags = {
        "data": data, "input": data.parent, "output": output, "model.backbone": "vggish-small",
        "model.checkpoint": "none", "train.batch-size": 16, "train.jit": False, "evaluate.bootstrap": 50,
        "prepare.workers": 1,
    }  # fmt: skip
    return configure.load({**flags, **{name.replace("_", "-"): value for name, value in given.items()}}, {})


def tuned(config: Config) -> list[str]:
    journal = Said()
    assert tune.tune(config, journal, Interrupts()) == 0
    return journal.lines


def rows(output: Path) -> list[dict[str, Any]]:
    """The trials on the disk, without the time they took."""
    (record,) = (output / "tune").glob("*/trials.json")
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in read_json(record)["trials"]
    ]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tuning that nobody stopped, and what it said."""
    output = tmp_path_factory.mktemp("whole")
    return output, tuned(config_of(data, output))


# ---- on embeddings ------------------------------------------------------------------------------


def test_a_tuning_leaves_its_trials_its_page_and_what_run_takes_and_no_version(
    data: Path, whole: tuple[Path, list[str]]
) -> None:
    output, lines = whole
    found = read_json(output / "tune" / "tune.json")
    assert [row["number"] for row in found["trials"]] == [0, 1, 2, 3]
    assert found["trials"][0]["settings"] == {
        "model.head": "linear",
        "train.epochs": 30,
        "train.learning-rate": 1e-4,
    }
    assert [int(row["trial"]) for row in read_csv(output / "tune" / "tune.csv")] == [1, 2, 3, 4]
    best = max(found["trials"], key=lambda row: (row["score"], -row["number"]))
    assert found["best"] == best["number"]
    # People are told trials from 1, wherever they are.
    page, number = (output / "tune" / "report.html").read_text(), best["number"] + 1
    assert "All trials" in page and f"<b>{number}</b> best" in page and f"<th>trial {number}</th>" in page
    at = next(k for k, line in enumerate(lines) if line.strip().startswith("trial  score"))
    assert [line.split()[0] for line in lines[at + 1 : at + 5] if line.endswith("as they are")] == ["1"]
    assert lines[at + 1].split()[0] == str(number)
    assert any(f"the best, trial {number}," in line for line in lines) == (number != 1)
    assert versions(output) == [] and not (output / "model").exists() and not (output / "run.json").exists()
    # The space is said before the first trial.
    at = [k for k, line in enumerate(lines) if "train.epochs" in line and "1..3" in line]
    assert at and at[0] < next(k for k, line in enumerate(lines) if "trial   1 of 4" in line)
    name, *arguments = shlex.split(found["command"])[1:]
    _, flags = cli.parse(name, arguments)
    taken = configure.load(flags, {})
    assert (
        taken.model.freeze == "all-but-head"
        and taken.train.learning_rate == best["settings"]["train.learning-rate"]
    )


def test_the_test_part_is_left_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    judge = trials.OnEmbeddings
    monkeypatch.setattr(
        tune, "OnEmbeddings", lambda c, embedded, *more: seen.append(embedded) or judge(c, embedded, *more)
    )
    few = with_heron(write_data(tmp_path / "in" / "data"))
    lines = tuned(config_of(few, tmp_path, tune__trials=1))
    sides = {row["recording"]: row["split"] for row in read_csv(tmp_path / "split.csv")}
    assert set(seen[0].names) == {name for name, side in sides.items() if side != "test"} < set(sides)
    # A class of one source is learnt from, and not judged.
    embedded, found = seen[0], read_json(tmp_path / "tune" / "tune.json")
    judged = [name for name in embedded.names if not name.startswith("heron/")]
    sources = {group for group, name in zip(embedded.groups, embedded.names, strict=True) if name in judged}
    assert (found["recordings"], found["sources"]) == (len(judged), len(sources))
    assert len(judged) == len(embedded.names) - 2
    left_out = "not scored for want of another source: heron (1 source recording)"
    assert left_out in found["how"] and left_out in (tmp_path / "tune" / "report.html").read_text()
    assert any(f"{len(judged)} recordings scored" in line for line in lines)
    assert sum("heron (1 source recording)" in line for line in lines) == 2  # a warning, and what is done


def stopped_in(head: Callable[..., Any], call: int) -> Callable[..., Any]:
    """Heads of which one is stopped in the middle of its folds."""
    calls: list[int] = []

    def made(*given: Any) -> Any:
        calls.append(1)
        real = head(*given)
        if len(calls) != call:
            return real

        def stop(training: Any, judged: Any) -> Any:
            real(training, judged)
            raise Interrupted(signal.SIGTERM)

        return stop

    return made


def test_a_tuning_that_was_stopped_in_a_trial_comes_to_the_same(
    data: Path, whole: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(trials, "Head", stopped_in(trials.Head, 3))
        with pytest.raises(Interrupted):
            tuned(config)
    assert len(rows(tmp_path)) == 2
    lines = tuned(config)
    assert any("going on: 2 trials are done" in line for line in lines)
    assert rows(tmp_path) == rows(whole[0])
    one, other = (read_json(output / "tune" / "tune.json") for output in (tmp_path, whole[0]))
    assert one["again"] == other["again"] and one["best"] == other["best"]
    # And once more there is nothing left to try.
    monkeypatch.setattr(trials, "Head", None)
    assert not any(" of 4: " in line for line in tuned(config))


def test_where_fewer_than_two_classes_can_be_evaluated_nothing_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "embed", None)
    config = config_of(write_data(tmp_path / "in" / "data", range(1)), tmp_path / "out")
    with pytest.raises(InputError, match="takes two classes with two each beside the test part: there are none"):
        tuned(config)


def test_evaluated_anew_by_other_folds_the_recordings_are_the_same() -> None:
    # Of the second class, a source of its own and one that the first has, too: by some seeds both are in one fold.
    labels, groups = np.array([0, 0, 0, 0, 0, 1, 1]), ["a", "b", "d", "e", "both", "both", "c"]
    positive = one_hot(labels, 2) > 0
    each = [folds(positive, groups, seed) >= 0 for seed in range(40)]
    first = next(seed for seed in range(40) if each[seed].all())
    some = judgeable(positive, groups, range(first, 40)).any(axis=1)
    assert np.array_equal(some, np.all(each[first:], axis=0))
    assert some[:5].all() and not some[5:].any()


def test_tuning_does_not_begin_from_a_served_model(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="init-from 3: trials begin from the backbone's weights"):
        tuned(config_of(data, tmp_path, init_from=3))


# ---- with trials that take no time ---------------------------------------------------------------


class Quick:
    """A judge whose scores depend on the settings alone: it learns from a learning rate near 1e-3."""

    again, how = 2, "at a glance"

    def __init__(self, real: Any, *, gain: float = 1.0, fault: Exception | None = None) -> None:
        self.positive, self.known, self.groups = real.positive, real.known, real.groups
        self.labels = real.positive.argmax(axis=1)
        self.calls: list[Config] = []
        self._gain, self._fault = gain, fault

    def __call__(self, config: Config, name: str, hopeless: Any = None, again: int = 0) -> trials.Outcome:
        self.calls.append(config)
        if self._fault is not None and len(self.calls) > 1:
            raise self._fault
        rng = np.random.default_rng(again)
        known = self._gain * abs(np.log10(config.train.learning_rate) + 3)
        wrong = rng.permutation(len(self.labels))[: round(len(self.labels) * min(0.9, 0.4 * known))]
        said = np.where(np.isin(np.arange(len(self.labels)), wrong), (self.labels + 1) % 3, self.labels)
        return trials.Outcome(np.eye(3)[said] + rng.uniform(0, 0.01, (len(said), 3)))

    def clear(self, name: str) -> None:
        """Nothing is left."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Quick]]:
    def put(**how: Any) -> list[Quick]:
        made: list[Quick] = []
        judge = tune._evaluator
        monkeypatch.setattr(
            tune, "_evaluator", lambda *given: made.append(Quick(judge(*given), **how)) or made[-1]
        )
        return made

    return put


def test_a_gain_that_holds_when_evaluated_anew_is_said_to_be_one_and_matters_by_the_right_setting(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    made = quick()
    lines = tuned(config_of(data, tmp_path, tune__trials=24))
    found = read_json(tmp_path / "tune" / "tune.json")
    assert found["again"]["difference"] > 0.2 and found["again"]["low"] > 0
    assert any("That is more than luck." in line and "flatters it" in line for line in lines)
    assert next(iter(found["importance"])) == "train.learning-rate"
    assert any(line.startswith("what matters most: train.learning-rate") for line in lines)
    assert "Importance of each setting" in (tmp_path / "tune" / "report.html").read_text()
    # Evaluated again, the seeds are others.
    assert {config.train.seed for config in made[0].calls} == {1}
    assert len(made[0].calls) == 24 + 4


def test_other_data_settings_or_ranges_are_another_study_and_the_same_again_is_not(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick()
    small = {"tune__space": "train.learning-rate", "train__epochs": 1, "tune__trials": 1}
    for changes in (
        {},
        {"model__dropout": 0.5},
        {"tune__space": "train.learning-rate=1e-4..1e-1"},
        {"train__seed": 2},
    ):
        tuned(config_of(data, tmp_path, **{**small, **changes}))
    assert len(list((tmp_path / "tune").glob("*/trials.json"))) == 4
    lines = tuned(config_of(data, tmp_path, **{**small, "tune__trials": 2}))
    assert any("going on: 1 trials are done" in line for line in lines)
    assert len(list((tmp_path / "tune").glob("*/trials.json"))) == 4


def test_a_gain_that_luck_explains_is_no_gain(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick(gain=0.08)
    lines = tuned(config_of(data, tmp_path, tune__trials=6))
    assert any("no better than the settings as they are" in line for line in lines)


def of_again(whole: Path, difference: float | None) -> Tuned:
    """What was found, as if the second trial were best and had come to this when it was evaluated again."""
    found = read_json(whole / "tune" / "tune.json")
    again = difference is not None and {
        "times": 3, "best": 0.8 + difference, "defaults": 0.8, "difference": difference, "low": -0.1, "high": 0.1,
    }  # fmt: skip
    return Tuned.model_validate({**found, "best": 1, "again": again or None})


def test_where_the_best_is_worse_when_evaluated_anew_everything_says_to_keep_your_settings(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    for difference, keeps in ((-0.02, True), (0.0, True), (0.02, False), (None, False)):
        found = of_again(whole[0], difference)
        tune_page.write_page(tmp_path / "page.html", found)
        page = (tmp_path / "page.html").read_text()
        told = (tuned_words.verdict(found), tuned_words.advice(found), tuned_words.fragment(found))
        luck = difference == 0.02  # not clearly better
        assert ["keep your settings" in text.lower() for text in told] == [keeps, keeps or luck, keeps or luck]
        assert ("nothing found is clearly better" in told[1]) == ("That may be luck" in told[0]) == luck
        assert (told[1] == "to train with the best settings") == (difference is None)
        assert ("<h1>Keep your settings: " in page) == keeps
        # How to try it all the same is there.
        assert (
            "--model.freeze=all-but-head" in page
            and yaml.safe_load(told[2])["model"]["freeze"] == "all-but-head"
        )
    assert told[0].endswith("there is nothing to compare it with.") and "None of the" not in told[0]
    assert tuned_words.advice(of_again(whole[0], -0.02)).endswith("to try those of trial 2 all the same")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (16, 256, [20, 50, 100, 200]),
        (18, 47, [18, 47]),
        (5, 60, [5, 10, 20, 50]),
        (12, 95, [20, 50]),
        (1e-5, 1e-2, [1e-5, 1e-4, 1e-3, 1e-2]),
        (1e-9, 1e3, [1e-9, 1e-5, 1e-1, 1e3]),
        (2.4e-5, 8e-3, [1e-4, 1e-3]),
        (7, 7, [7]),
    ],
)
def test_logarithmic_axes_have_at_least_two_labelled_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert figures.log_ticks(low, high) == pytest.approx(ticks)
    drawn = figures.tuned_setting([(low, 0.5), (high, 0.6)], "train.epochs", log=True)
    assert all(f">{tick:g}</text>" in drawn for tick in ticks)


def test_the_page_shows_no_setting_that_had_no_effect(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick()
    tuned(config_of(data, tmp_path, tune__trials=1, tune__space="model.head, model.hidden-units=16..256"))
    page = (tmp_path / "tune" / "report.html").read_text()
    (row,) = re.findall(
        r"<tr><th scope=\"row\"><code>model.hidden-units</code></th>(.*)</tr>", page.split("All trials")[0]
    )
    assert re.findall(r">([^<]*)</td>", row) == ["–", "–"]  # noqa: RUF001


def test_settings_that_were_tried_are_not_tried_again(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    made = quick()
    tuned(config_of(data, tmp_path, tune__trials=8, tune__space="model.head=linear|mlp"))
    assert len(made[0].calls) <= 2 + 4
    assert sum(row["same_as"] is not None for row in rows(tmp_path)) == 6


def test_no_trial_is_begun_after_the_minutes_and_the_same_command_does_the_rest(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick()
    lines = tuned(config_of(data, tmp_path, tune__minutes=1e-9))
    # One at least, or there would be nothing to tell.
    assert len(rows(tmp_path)) == 1
    assert any("the 3 trials that lack" in line for line in lines)
    tuned(config_of(data, tmp_path))
    assert len(rows(tmp_path)) == 4


def test_a_training_that_goes_astray_is_a_bad_trial_and_where_all_do_it_is_an_error(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick(fault=DivergedError("the loss is nan"))
    lines = tuned(config_of(data, tmp_path, tune__trials=3))
    assert [row["state"] for row in rows(tmp_path)] == ["done", "diverged", "diverged"]
    assert any("diverged" in line for line in lines)
    assert "training went astray" in (tmp_path / "tune" / "report.html").read_text()


def test_a_disk_that_fills_up_ends_it_and_keeps_what_was_finished(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    quick(fault=RetryableError("the disk is full"))
    with pytest.raises(RetryableError):
        tuned(config_of(data, tmp_path))
    assert len(rows(tmp_path)) == 1


def test_a_damaged_record_is_named_before_anything_is_computed(
    data: Path, tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    made = quick()
    tuned(config_of(data, tmp_path, tune__trials=1))
    (record,) = (tmp_path / "tune").glob("*/trials.json")
    write_json(record, {"study": "x", "trials": []})
    made.clear()
    with pytest.raises(InputError, match=r"trials\.json: the record of this tuning is damaged"):
        tuned(config_of(data, tmp_path))
    assert made == []


# ---- whole training -----------------------------------------------------------------------------


def training(data: Path, output: Path, **changes: Any) -> Config:
    space = "train.learning-rate=1e-4..1e-2, model.freeze=none|conv"
    given = {"tune__on": "training", "tune__space": space, "tune__trials": 2, "train__epochs": 2}
    return config_of(data, output, **{**given, **changes})


def test_a_whole_training_that_was_killed_goes_on_and_leaves_no_version(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    lines = tuned(training(data, plain))
    assert any("evaluated on the validation part" in line for line in lines)
    assert [len(row["curve"]) for row in rows(plain)] == [2, 2]

    lengths: list[int] = []

    def look(curve: Any, done: list[Trial], space: Any) -> None:
        lengths.append(len(curve))
        if len(lengths) == 1:
            raise Interrupted(signal.SIGKILL)  # as dead as it can be here

    monkeypatch.setattr(tune, "hopeless_at", look)
    with pytest.raises(Interrupted):
        tuned(training(data, stopped))
    (folder,) = (stopped / "tune").glob("*/trial-2")
    assert list(folder.glob("checkpoints/1/*"))
    assert lengths == [1]
    # A trial of another study, which nobody goes on with, is cleared away; this one's is not.
    (stopped / "tune" / "other" / "trial-3").mkdir(parents=True)
    tuned(training(data, stopped))
    assert lengths == [1], "its last epoch alone was left, and that is not asked about"
    assert rows(stopped) == rows(plain)
    assert (stopped / "tune" / "other").is_dir()
    for output in (plain, stopped):
        assert not list((output / "tune").glob("*/trial-*")) and not list((output / "tune").glob("*/again-*"))
        assert versions(output) == [] and not (output / "checkpoints").exists()


def test_a_hopeless_training_is_ended_early_and_is_not_the_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "hopeless_at", lambda curve, done, space: 1)
    lines = tuned(training(data, tmp_path))
    usual, other = rows(tmp_path)
    assert (usual["state"], other["state"], len(other["curve"])) == ("done", "pruned", 1)
    assert any("ended early" in line for line in lines)
    assert not list((tmp_path / "tune").glob("*/trial-*"))


def test_whole_trainings_need_validation_recordings(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation recordings"):
        tuned(training(data, tmp_path, split__val_fraction=0))


# ---- beside other commands -----------------------------------------------------------------------


def test_the_report_of_a_run_with_tuned_settings_shows_what_was_tuned(
    tmp_path: Path, quick: Callable[..., list[Quick]]
) -> None:
    data = write_data(tmp_path / "in" / "data")
    quick()
    config = config_of(data, tmp_path / "out", tune__trials=24)
    tuned(config)
    fragment = tmp_path / "out" / "tune" / "best.yaml"
    (tmp_path / "in" / "job.yaml").write_text(fragment.read_text())
    found = read_json(tmp_path / "out" / "tune" / "tune.json")
    config = config_of(data, tmp_path / "out")  # which reads job.yaml
    assert (
        config.train.learning_rate == found["settings"]["train.learning-rate"] != Config().train.learning_rate
    )
    run_job(config)
    page = (tmp_path / "out" / "reports" / "1" / "report.html").read_text()
    assert "Tuned settings" in page and "Importance of each setting" in page
    # What was tuned anew is told anew, and nothing else is done again.
    write_json(tmp_path / "out" / "tune" / "tune.json", {**found, "how": "by a look at the stars"})
    run_job(config)
    assert "by a look at the stars" in (tmp_path / "out" / "reports" / "1" / "report.html").read_text()
    assert versions(tmp_path / "out") == [1]
    # A damaged one is none.
    (tmp_path / "out" / "tune" / "tune.json").write_text("{")
    run_job(config)
    assert "Tuned settings" not in (tmp_path / "out" / "reports" / "1" / "report.html").read_text()


@pytest.mark.long
def test_killed_twice_the_real_command_comes_to_the_same_trials(
    data: Path, whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    flags = [f"--{name}={value}" for name, value in config_of(data, tmp_path).changed().items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2"}

    def start(until: str, signum: int) -> int:
        with subprocess.Popen(
            [sys.executable, "-m", "birdtune", "tune", *flags],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if until in line:
                    process.send_signal(signum)
        return process.returncode

    assert start("trial   1 of 4", signal.SIGTERM) == 143
    assert start("trial   2 of 4", signal.SIGKILL) == -signal.SIGKILL
    assert start("nothing that it says", 0) == 0
    assert rows(tmp_path) == rows(whole[0])
