"""The job, killed at random moments of every stage, comes to what it would have come to: torture.py, in short."""

import random
from pathlib import Path

import pytest
from helpers_command import Straight
from torture import ALWAYS_SAVING, PLACES, kill_and_compare, plan


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
