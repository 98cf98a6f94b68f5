"""birdtune.tuning.compare: heads and baselines side by side, on folds that share no source and never touch test."""

import argparse
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import Said
from test_job import CLASSES, settings, write_data
from test_job import run as train

from birdtune import cli
from birdtune.config import Config
from birdtune.data.split import Place
from birdtune.errors import InputError, UsageError
from birdtune.evaluation import embedding_map, mistakes
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.pipeline import commands
from birdtune.reporting import compare_page
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.signals import Interrupts
from birdtune.tuning import compare, tune

pytestmark = pytest.mark.usefixtures("in_one_process")

OPTIONS = argparse.Namespace(then=None, smote=False)  # of the command, as it is usually given


def with_heron(data: Path) -> Path:
    """One class more, with two clips of one source."""
    (data / "heron").mkdir()
    for part in range(2):
        noise = 0.1 * np.random.default_rng(part).standard_normal(32_000)
        soundfile.write(data / "heron" / f"heron-0_{part}.wav", noise, 16_000)
    return data


def run(config: Config, **more: Any) -> list[str]:
    journal = Said()
    compare.compare(config, journal, Interrupts(), **more)
    return journal.lines


def test_all_candidates_are_judged_on_folds_of_whole_sources_and_test_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    evaluate, out_of_fold = compare.evaluate, compare.out_of_fold
    monkeypatch.setattr("birdtune.training.embeddings.MOST_FOLDS", 2)

    def told(candidate: Any, fold: Any, *given: Any) -> Any:
        seen.append((candidate._embedded, fold))
        return out_of_fold(candidate, fold, *given)

    judged: list[Any] = []
    monkeypatch.setattr(compare, "out_of_fold", told)
    monkeypatch.setattr(compare, "evaluate", lambda *given, **more: judged.append(given) or evaluate(*given, **more))
    given = {"train__learning_rate": 1e-3, "train__focal_gamma": 0.5, "model__head": "mlp", "model__hidden_units": 64}
    config = settings(with_heron(write_data(tmp_path / "in" / "data")), tmp_path / "out", **given)
    lines = run(config)

    embedded, folds = seen[0]
    sides = {row["recording"]: row["split"] for row in read_csv(tmp_path / "out" / "split.csv")}
    assert set(embedded.names) == {name for name, side in sides.items() if side != "test"} < set(sides)
    assert all(len(set(folds[np.array(embedded.groups) == group])) == 1 for group in embedded.groups)
    # Of the heron there is one source: it is learnt from, and nothing is said of how well.
    herons = np.array([name.startswith("heron/") for name in embedded.names])
    assert herons.sum() == 2 and set(folds[herons]) == {-1} and set(folds[~herons]) == {0, 1}
    ((scores, positive, known, groups),) = judged
    labels = positive.argmax(axis=1)
    assert known.all() and (positive.sum(axis=1) == 1).all()
    assert {len(table) for table in scores.values()} == {len(labels)} == {len(groups)} == {(~herons).sum()}
    assert embedded.classes.index("heron") not in labels and "heron-0" not in groups
    sources = len(set(groups))

    found = read_json(tmp_path / "out" / "compare.json")
    rows = read_csv(tmp_path / "out" / "compare.csv")
    names = {"linear", "mlp", "attention", "sed-attention", "prototype", "logistic regression", "k-NN", "random forest"}
    assert {row["candidate"] for row in rows} == {row["candidate"] for row in found["rows"]} == names
    assert (
        max(float(row["accuracy"]) for row in rows) > 0.9
    )  # tones of three pitches: a constant answer has 0.33
    assert (found["recordings"], found["sources"], found["unjudged"]) == (len(labels), sources, {"heron": 1})
    assert any(f"{len(labels)} recordings of {sources} sources scored" in line for line in lines)
    assert sum("heron (1 source recording)" in line for line in lines) == 2
    assert found["best"] == rows[0]["candidate"] and f"--model.head={found['head']}" in found["command"]
    assert any(line.startswith("to train ") and found["command"] in line for line in lines)
    assert any("focal-gamma 0.5 plays no part in logistic regression, k-NN, random forest" in line for line in lines)
    name, *flags = shlex.split(found["command"])[1:]
    taken = configure.load(cli.parse(name, flags)[1], {})
    assert (taken.model.head, taken.model.freeze) == (found["head"], "all-but-head")
    assert not (tmp_path / "out" / "logs").exists() and not (tmp_path / "out" / "model").exists()
    wrong = read_csv(tmp_path / "out" / "mistakes.csv")
    best = scores[found["best"]]
    missed = [row["recording"] for row in wrong if row["kind"] == "false negative"]
    right = best.argmax(axis=1) == labels
    assert sorted(missed) == sorted(np.array(embedded.names)[~herons][~right].tolist())
    assert len(wrong) == 2 * (~right).sum()
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert page.count('<g class="k') == 2 * len(labels) and page.count('href="#map-error"/></g>') == 2 * (~right).sum()


def test_the_page_shows_outside_text_as_text_and_both_maps_share_one_list_of_classes(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    names = tuple(f"{bad}/{n}.wav" for n in range(8))
    labels = np.arange(8) % 2
    own = np.eye(2)[labels] * 0.6 + 0.2
    own[0] = own[0, ::-1]
    found = Scores(
        (bad, "Bubo"), names, names, one_hot(labels, 2), own.astype(np.float32), np.arange(8), np.zeros(8, np.float32)
    )
    positive = found.positive
    rng = np.random.default_rng(0)
    before, after = (
        embedding_map.measure(
            numbers.astype(np.float32), positive, recordings=names, classes=found.classes,
            places={name: Place(name, "fold") for name in names}, n_bootstrap=20, seed=1,
        )
        for numbers in (rng.normal(size=(8, 5)), own)
    )  # fmt: skip
    wrong = mistakes.mistakes(
        own, np.zeros((8, 2)), positive, positive | True, recordings=names, groups=names, classes=found.classes,
        several=False,
    )  # fmt: skip
    rows = compare.evaluate({"linear": own, "k-NN": own}, positive, positive | True, names, n=20, seed=1)
    rows = [{**row, "seconds": 1.0} for row in rows]
    compare_page.write_page(tmp_path / "compare.html", compare_page.Compared(
        "2026-01-31", rows, 5, 8, {bad: 1}, "to train it", "./entrypoint.sh run", found, before, after, wrong, False
    ))  # fmt: skip
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert "<img" not in page and page.count("&lt;img src=x onerror=alert(1)&gt;") > 10
    assert page.count('id="map-error"') == 1 and page.count('<use href="#map-error"/></g>') == 2
    assert page.count('class="pick"') == 2 and page.count('<div class="plane">') == 2
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and "http" not in re.sub("http-equiv", "", page)
    after_js = page[page.index("<tbody>", page.index('id="mistakes-table"')) :]
    assert after_js.count("<tr><th") == 2 and "false positive" in after_js and "false negative" in after_js


def test_what_comes_after_is_what_run_does_with_the_best_head_and_no_baseline_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = compare.evaluate

    def forest_first(*given: Any, **more: Any) -> Any:
        rows = evaluate(*given, **more)
        return sorted(rows, key=lambda row: (row["candidate"] != "random forest", row["candidate"] != "linear"))

    monkeypatch.setattr(compare, "evaluate", forest_first)
    given = {"model__head": "mlp", "model__hidden_units": 8, "train__optimizer": "sgd", "train__learning_rate": 1e-2}
    data = write_data(tmp_path / "in" / "data")
    config = settings(data, tmp_path / "out", model__freeze="conv", evaluate__label_issues=False,
                      evaluate__rare_class_ablation=False, **given)  # fmt: skip
    journal = Said()
    then = argparse.Namespace(then="train", smote=False, keep=lambda: None)
    with pytest.raises(UsageError, match=r"--train\.processes is 2"):
        commands.compare(config.with_train(processes=2), then, journal, Interrupts())
    assert commands.compare(config, then, journal, Interrupts()) == 0
    journal.close()
    said = "random forest is a baseline, and no model that is served has it: the best head, linear, is "
    assert any(line.startswith(said) for line in journal.lines)
    served = read_json(tmp_path / "out" / "model" / "birdtune" / "1" / "model.json")
    assert served["head"] == "linear" and (tmp_path / "out" / "reports" / "1" / "report.html").is_file()

    command = read_json(tmp_path / "out" / "compare.json")["command"]
    _, flags = cli.parse("run", shlex.split(command)[2:])
    assert (flags["model.freeze"], flags["train.optimizer"]) == ("conv", "sgd") and "model.hidden-units" not in flags
    again = configure.load({**flags, "output": str(tmp_path / "again")}, {})
    assert train(again) == 0
    weights = [read_json(tmp_path / name / "run.json")["weights_sha256"] for name in ("out", "again")]
    assert weights[0] == weights[1]


def test_smote_is_learnt_in_each_fold_from_its_training_recordings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any, dict[str, Any]]] = []

    class Repeated:
        """Stands in for imbalanced-learn: what is made is one recording of the class, again and again."""

        def __init__(self, **how: Any) -> None:
            self.how = how

        def fit_resample(self, rows: Any, labels: Any) -> Any:
            ((column, wanted),) = self.how["sampling_strategy"].items()
            asked.append((rows, labels, self.how))
            more = np.full(wanted - (labels == column).sum(), column)
            return np.concatenate([rows, rows[labels == column][np.zeros(len(more), int)]]), np.append(labels, more)

    module = types.ModuleType("imblearn")
    module.over_sampling = types.SimpleNamespace(SMOTE=Repeated)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imblearn", module)
    data = write_data(tmp_path / "in" / "data")
    for path in sorted((data / "Apus_apus").glob("*.wav"))[6:]:
        path.unlink()
    config = settings(data, tmp_path / "out", split__test_fraction=0)
    run(config, smote=True)
    rows = {row["candidate"] for row in read_csv(tmp_path / "out" / "compare.csv")}
    assert "logistic with SMOTE" in rows
    counts = [np.bincount(labels) for _, labels, _ in asked]
    n_all = len(read_csv(tmp_path / "out" / "split.csv"))
    assert all(len(table) == len(labels) < n_all for table, labels, _ in asked)
    for count, (_, _, how) in zip(counts, asked, strict=True):
        ((column, wanted),) = how["sampling_strategy"].items()
        assert wanted == count.max() > count[column] and how["k_neighbors"] == min(5, count[column] - 1)


def test_smote_without_its_package_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.util, "find_spec", lambda name: None)
    config = settings(tmp_path / "data", tmp_path / "out")
    with pytest.raises(InputError, match=r"\./entrypoint\.sh extras smote"):
        commands.compare(config, argparse.Namespace(then=None, smote=True), Said(), Interrupts())


def test_where_fewer_than_two_classes_can_be_judged_nothing_is_embedded_and_the_way_out_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "embed", None)
    few = write_data(tmp_path / "in" / "data", range(1))
    with pytest.raises(InputError) as caught:
        run(settings(few, tmp_path / "out"))
    text = str(caught.value)
    assert all(f"{name} (1 source recording)" in text for name in CLASSES) and "there are none" in text
    assert text.endswith("Add recordings of other sources.")  # a smaller test part would bring none
    two = write_data(tmp_path / "two" / "data", range(2))
    with pytest.raises(InputError, match=r"sources, or lower --split\.test-fraction\.$"):
        run(settings(two, tmp_path / "other", split__test_fraction=0.5))


@pytest.mark.parametrize(("command", "module"), [("compare", compare), ("tune", tune)])
def test_it_is_said_that_shared_labels_play_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: Any
) -> None:
    monkeypatch.setattr(module, command, lambda *given, **more: 0)
    for weak_labels, times in ((True, 1), (False, 0)):
        config = settings(tmp_path / "data", tmp_path / "out", train__label_refinement=weak_labels)
        journal = Said()
        assert getattr(commands, command)(config, OPTIONS, journal, Interrupts()) == 0
        said = [line for line in journal.lines if "--train.label-refinement plays no part here" in line]
        assert len(said) == times


def scores_of(labels: Any, wrong: Any) -> Any:
    """Scores [N, 3] that are right but for some rows."""
    said = np.where(np.isin(np.arange(len(labels)), wrong), (labels + 1) % 3, labels)
    return np.eye(3)[said] * 0.8 + 0.1


def truth(labels: Any) -> tuple[Any, Any]:
    positive = one_hot(labels, 3) > 0
    return positive, np.ones_like(positive)


def test_the_best_stands_first_and_only_what_the_sources_leave_open_is_a_tie() -> None:
    labels = np.arange(120) % 3
    groups = [f"source {n // 4}" for n in range(120)]
    scores = {
        "far": scores_of(labels, range(0, 120, 3)),
        "best": scores_of(labels, range(2)),
        "near": scores_of(labels, range(4)),
    }

    rows = compare.evaluate(scores, *truth(labels), groups, n=300, seed=1)

    assert [row["candidate"] for row in rows] == ["best", "near", "far"]
    assert [row["tie"] for row in rows] == [False, True, False]
    assert rows[0]["accuracy"] == pytest.approx(118 / 120) and rows[2]["behind"] == pytest.approx(38 / 120)
    for row in rows:
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["behind_low"] <= row["behind"] <= row["behind_high"]
    rows = [{**row, "seconds": 1.0} for row in rows]
    assert [line.split()[0] for line in compare.table(rows)[1:]] == ["best", "near", "far"]
    assert [line.endswith("tie") for line in compare.table(rows)[1:]] == [False, True, False]


def test_wrong_answers_of_one_source_say_less_than_those_of_many() -> None:
    labels = np.zeros(120, np.int64)
    scores = {"a": scores_of(labels, []), "b": scores_of(labels, range(12))}
    one = [f"source {n // 12}" for n in range(120)]
    many = [f"source {n}" for n in range(120)]

    ties = [compare.evaluate(scores, *truth(labels), groups, n=300, seed=1)[1]["tie"] for groups in (one, many)]

    assert ties == [True, False]
