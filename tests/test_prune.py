"""`prune`: the cache gives back what nothing that is there needs."""

from pathlib import Path

import pytest
from makers import write_tones

from birdtune.cli import main

pytestmark = pytest.mark.usefixtures("in_one_process")


def do(command: str, data: Path, output: Path, *more: str) -> int:
    flags = ["--data", str(data), "--output", str(output), "--model.checkpoint", "none"]
    return main([command, *flags, *more])


def sizes(output: Path) -> dict[str, int]:
    return {str(path.relative_to(output)): path.stat().st_size for path in (output / "cache").rglob("shard-*")}


def test_what_is_gone_and_what_other_settings_made_is_given_back_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    write_tones(data, {"Apus": 900.0, "Bubo": 1800.0}, 1.0, 16_000)
    assert do("prepare", data, output) == 0
    first = sizes(output)
    write_tones(data, {"Corvus": 3600.0}, 1.0, 16_000)
    assert do("prepare", data, output) == 0
    assert do("prepare", data, output, "--audio.channels", "first") == 0
    everything = sizes(output)
    for path in (data / "Corvus").iterdir():
        path.unlink()
    for number, path in enumerate(sorted((data / "Apus").iterdir())):
        path.rename(data / "Apus" / f"renamed {number}.wav")
    capsys.readouterr()
    assert do("prune", data, output) == 0
    said = capsys.readouterr().out
    assert sizes(output) == first and sum(everything.values()) > 2 * sum(first.values())
    assert "given back" in said and "of recordings that are not there any more" in said
    assert do("prepare", data, output) == 0
    assert "decoded" not in capsys.readouterr().out
    assert do("prune", data, output) == 0
    assert ": 0 bytes given back" in capsys.readouterr().out and sizes(output) == first


def test_without_a_cache_there_is_nothing_to_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert do("prune", tmp_path / "data", tmp_path / "output") == 42
    assert "there is no cache" in capsys.readouterr().err
