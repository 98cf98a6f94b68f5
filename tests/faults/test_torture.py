"""The job, killed at random moments of every stage, comes to what it would have come to: torture.py, in short."""

import random
from pathlib import Path

import pytest
from helpers_command import Straight, lengths, run
from torture import ALWAYS_SAVING, PLACES, kill_and_compare, plan

from birdtune.runtime.files import read_json

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kills", [*range(1, 12), 20, 100])
def test_kills_are_spread_over_the_job_in_its_order(kills: int) -> None:
    places = plan(kills, random.Random(kills))
    assert len(places) == kills
    later = [PLACES.index(place) for place in places if place != "start"]
    assert later == sorted(later)
    assert len(set(places)) == min(kills, len(PLACES))


def test_however_often_it_is_killed_nothing_comes_out_otherwise(straight: Straight, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    done, findings = kill_and_compare(
        [*straight.arguments, ALWAYS_SAVING], straight.output, tmp_path / "killed", straight.seconds, 4, seed
    )
    assert [finding for finding in findings if finding[1]] == [], f"torture.py --seed {seed}"
    assert done >= 3


def test_a_run_that_begins_from_a_served_model_comes_to_the_same_too(straight: Straight, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    arguments = [*straight.arguments, f"--init-from={straight.output / 'model/birdtune/1'}", "--train.seed=2"]
    second = run([*arguments, f"--output={tmp_path / 'straight'}"])
    assert second.process.returncode == 0, second.text()
    done, findings = kill_and_compare(
        [*arguments, ALWAYS_SAVING], tmp_path / "straight", tmp_path / "killed", lengths(second), 3, seed
    )
    assert [finding for finding in findings if finding[1]] == [], f"--seed {seed}"
    assert done >= 2
    of_both = [read_json(folder / "run.json") for folder in (straight.output, tmp_path / "killed")]
    assert of_both[1]["init_from"]["weights_sha256"] == of_both[0]["weights_sha256"] != of_both[1]["weights_sha256"]
