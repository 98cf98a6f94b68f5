"""birdtune.tuning.study: the record of trials, and what Optuna proposes by it."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from birdtune.errors import InputError
from birdtune.runtime.files import make_folder, read_json, write_json
from birdtune.tuning.space import Dimension
from birdtune.tuning.study import FEWEST_FOR_IMPORTANCE, Study, Trial, hopeless_at, importance, propose

SPACE = (
    Dimension("train.learning-rate", "…", 1e-5, 1e-1, log=True),
    Dimension("model.head", "…", choices=("linear", "mlp")),
    Dimension("train.epochs", "…", 1, 100, whole=True),
)


def trial(number: int, values: dict[str, Any], score: float | None, **more: Any) -> Trial:
    state = more.pop("state", "done")
    return Trial(number=number, values=values, settings=values, state=state, score=score, seconds=1.0, **more)


def tried(n: int, seed: int = 1, begun: list[Trial] | None = None) -> list[Trial]:
    """Trials whose score depends on the learning rate, most of all, and is best at 1e-3."""
    found = list(begun or [])
    while len(found) < n:
        values = propose(SPACE, found, seed)
        score = 1 - 0.2 * abs(math.log10(float(values["train.learning-rate"])) + 3)
        score += 0.01 * (values["model.head"] == "mlp")
        found.append(trial(len(found), values, score))
    return found


def test_a_tuning_that_goes_on_proposes_what_it_would_have_proposed(tmp_path: Path) -> None:
    whole = tried(20)
    assert tried(20) == whole
    for stop in (1, 9, 13):
        study = Study(make_folder(tmp_path / str(stop)), "digest")
        for each in whole[:stop]:
            study.add(each)
        again = Study(tmp_path / str(stop), "digest")  # what the next start finds on the disk
        assert again.trials == whole[:stop]
        assert tried(20, begun=again.trials) == whole
    assert tried(5, seed=2) != whole[:5]


def test_proposals_lie_within_their_ranges_are_short_and_follow_what_was_found() -> None:
    found = tried(40)
    for each in found:
        assert all(row.holds(each.values[row.name]) for row in SPACE)
        assert float(f"{each.values['train.learning-rate']:.3g}") == each.values["train.learning-rate"]
    first, last = found[:8], found[-8:]
    assert len({each.values["train.learning-rate"] for each in first}) == len(first)
    assert sum(each.score or 0 for each in last) > sum(each.score or 0 for each in first)
    assert Study(Path("nowhere"), "").best is None


def test_the_best_is_the_first_of_equals_and_was_evaluated_at_its_end(tmp_path: Path) -> None:
    study = Study(tmp_path, "digest")
    for number, (score, state) in enumerate([(0.5, "done"), (0.9, "pruned"), (0.7, "done"), (0.7, "done")]):
        study.add(trial(number, {}, score, state=state))
    study.add(trial(4, {}, None, state="diverged"))
    assert study.best is not None and study.best.number == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: "{", "no JSON object"),
        (lambda record: [1], "valid dictionary|no JSON object"),
        (lambda record: {**record, "study": "other"}, "of another study"),
        (lambda record: {**record, "trials": record["trials"][1:]}, "missing or stand twice"),
        (lambda record: {**record, "trials": record["trials"] * 2}, "missing or stand twice"),
        (lambda record: {**record, "trials": [{**record["trials"][0], "score": "much"}]}, "trials.0.score"),
        (lambda record: {**record, "trials": [{**record["trials"][0], "state": "well"}]}, "trials.0.state"),
    ],
)
def test_a_damaged_record_is_named_and_nothing_is_counted_of_it(
    tmp_path: Path, change: Any, told: str
) -> None:
    study = Study(tmp_path, "digest")
    for each in tried(2):
        study.add(each)
    path = tmp_path / "trials.json"
    changed = change(read_json(path))
    path.write_text(changed) if isinstance(changed, str) else write_json(path, changed)
    with pytest.raises(
        InputError, match=rf"trials\.json: the record of this tuning is damaged .*({told})"
    ) as caught:
        Study(tmp_path, "digest")
    assert "remove the folder" in str(caught.value)


def test_a_trial_below_the_median_is_ended_but_not_in_its_first_epochs() -> None:
    done = [
        trial(number, {"train.learning-rate": 1e-3, "model.head": "mlp", "train.epochs": 9}, 0.8,
              curve=[0.5, 0.6, 0.7, 0.8])
        for number in range(5)
    ]  # fmt: skip
    assert hopeless_at([0.1, 0.2, 0.3], done, SPACE) == 3
    assert hopeless_at([0.1, 0.2], done, SPACE) is None
    assert hopeless_at([0.1, 0.2, 0.75, 0.9], done, SPACE) is None
    assert hopeless_at([0.1, 0.2, 0.3], done[:3], SPACE) is None  # the median of three tells too little


def test_what_diverged_is_not_proposed_again() -> None:
    space = (Dimension("train.learning-rate", "…", 1e-5, 1e-1, log=True),)
    found: list[Trial] = []
    while len(found) < 40:
        values = propose(space, found, 1)
        astray = float(values["train.learning-rate"]) > 1e-3
        found.append(
            trial(len(found), values, None if astray else 0.5, state="diverged" if astray else "done")
        )
    late = [each.state for each in found[20:]]
    assert late.count("diverged") < len(late) / 3


def test_the_setting_that_matters_is_the_important_one() -> None:
    shares, lacks = importance(SPACE, tried(30), 1)
    assert lacks is None
    assert next(iter(shares)) == "train.learning-rate" and shares["train.learning-rate"] > 0.6
    assert sum(shares.values()) == pytest.approx(1) and set(shares) == {row.name for row in SPACE}
    assert importance(SPACE, tried(30), 1) == (shares, None)


def test_where_trials_do_not_show_what_matters_nothing_is_made_up() -> None:
    few = tried(FEWEST_FOR_IMPORTANCE - 1)
    assert importance(SPACE, few, 1) == ({}, "19 finished trials are too few to show it; 20 are needed")
    equal = [each.model_copy(update={"score": 0.5}) for each in tried(20)]
    assert importance(SPACE, equal, 1) == ({}, "all trials came to the same score")
    assert importance(SPACE[:1], tried(20), 1)[0] == {}


def test_settings_outside_of_a_narrowed_range_are_no_trouble() -> None:
    outside = {"train.learning-rate": 0.5, "model.head": "linear", "train.epochs": 30}
    begun = [trial(0, outside, 0.4)]
    assert len(tried(12, begun=begun)) == 12
    assert importance(SPACE, tried(21, begun=begun), 1)[1] is None


def test_optuna_says_nothing_of_its_own() -> None:
    script = (
        "from birdtune.tuning.space import Dimension; from birdtune.tuning.study import propose\n"
        "propose([Dimension('train.epochs', '', 1, 9, whole=True)], [], 1)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "code")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
