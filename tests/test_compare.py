"""birdtune.tuning.compare: heads and baselines side by side, on folds that share no source and never touch test."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import Said
from test_job import CLASSES, settings, write_data

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import InputError
from birdtune.evaluation.scores import one_hot
from birdtune.pipeline import commands
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.signals import Interrupts
from birdtune.tuning import compare, tune

pytestmark = pytest.mark.usefixtures("in_one_process")


def with_heron(data: Path) -> Path:
    """One class more, with two clips of one source."""
    (data / "heron").mkdir()
    for part in range(2):
        noise = 0.1 * np.random.default_rng(part).standard_normal(32_000)
        soundfile.write(data / "heron" / f"heron-0_{part}.wav", noise, 16_000)
    return data


def run(config: Config) -> list[str]:
    journal = Said()
    assert compare.compare(config, journal, Interrupts()) == 0
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
    names = {"linear", "mlp", "attention", "prototype", "logistic regression", "k-NN", "random forest"}
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
    monkeypatch.setattr(module, command, lambda *given: 0)
    for weak_labels, times in ((True, 1), (False, 0)):
        config = settings(tmp_path / "data", tmp_path / "out", train__label_refinement=weak_labels)
        journal = Said()
        assert getattr(commands, command)(config, argparse.Namespace(), journal, Interrupts()) == 0
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
