"""Work shared out over machines: who takes what, and when all of it is there."""

from pathlib import Path

import pytest

from birdtune.errors import InputError, RetryableError, UsageError
from birdtune.pipeline import shards
from birdtune.pipeline.shards import Shard


def test_parts_share_everything_out_once() -> None:
    items = [f"{number}.wav" for number in range(23)]
    parts = [Shard.of(f"{number}/5", {}).part(items) for number in range(1, 6)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert {len(part) for part in parts} == {4, 5}


@pytest.mark.parametrize("variable", ["AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"])
def test_an_array_job_numbers_its_parts(variable: str) -> None:
    assert Shard.of("/10", {variable: "0"}) == Shard(1, 10)
    assert Shard.of("/10", {variable: "9"}) == Shard(10, 10)
    with pytest.raises(UsageError, match="there is no part 11 of 10"):
        Shard.of("/10", {variable: "10"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "expected PART/PARTS, e.g. 3/10") for text in ("", "3", "a/3", "1/3/5", "-1/3", "1/" + "9" * 5_000)),
        ("3/2", "there is no part 3 of 2; parts are counted from 1 to 2. PART comes first"),
        ("0/3", "there is no part 0 of 3; parts are counted from 1 to 3"),
        ("1/0", "there cannot be 0 parts; expected PART/PARTS with 1 to 100,000 parts"),
        ("1/200000", "there cannot be 200,000 parts"),
    ],
    ids=str,
)
def test_what_is_no_part_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Shard.of(text, {})
    assert str(refused.value).startswith("--shard ") and f": {why}" in str(refused.value)


def test_a_part_that_nothing_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing says which part this is"):
        Shard.of("/10", {})


def finish(out: Path, *numbers: int, total: int = 3, made_by: str = "m") -> None:
    for number in numbers:
        folder = Shard(number, total).folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        shards.note_finished(folder, made_by)


def test_parts_are_merged_when_all_of_them_are_finished_with_the_same_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no parts"):
        shards.finished(tmp_path, "m", "tables")
    finish(tmp_path, 1)
    Shard(2, 3).folder(tmp_path).mkdir()
    with pytest.raises(RetryableError, match="2 parts of 3 not finished with this model and these settings: 2/3, 3/3"):
        shards.finished(tmp_path, "m", "tables")
    finish(tmp_path, 2)
    finish(tmp_path, 3, made_by="another")
    with pytest.raises(RetryableError, match=r"1 part of 3 not finished.*: 3/3"):
        shards.finished(tmp_path, "m", "tables")
    finish(tmp_path, 3)
    assert [path.name for path in shards.finished(tmp_path, "m", "tables")] == ["1-of-3", "2-of-3", "3-of-3"]
    finish(tmp_path, 1, total=2)
    with pytest.raises(InputError, match="found 2 parts, 3 parts"):
        shards.finished(tmp_path, "m", "tables")
