"""`prepare --shard`: recordings that several machines prepare, and their features put together."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import write_tones

from birdtune.audio.logmel import VGGISH
from birdtune.cli import main
from birdtune.data.frames import FrameStore
from birdtune.runtime.files import read_csv
from birdtune.settings import AudioSettings

pytestmark = pytest.mark.usefixtures("in_one_process")

FLAGS = ("--model.backbone", "vggish", "--model.checkpoint", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tones(tmp_path_factory.mktemp("tones") / "data", {"Apus": 900.0, "Bubo": 1800.0}, 1.5, 16_000)
    (folder / "Bubo" / "broken.wav").write_bytes(b"RIFF, and nothing behind it")
    shutil.copy(folder / "Apus" / "Apus 1.wav", folder / "Apus" / "copy.wav")
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "output"
    assert prepare(data, output) == 0
    return output


def prepare(data: Path, output: Path, *more: str) -> int:
    return main(["prepare", "--data", str(data), "--output", str(output), *FLAGS, *more])


def rows(output: Path) -> dict[str, Any]:
    store = FrameStore(output / "cache", VGGISH, AudioSettings())
    return {content: store.rows(content) for content in store.contents()}


def test_parts_together_are_what_one_machine_prepares(
    data: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    for number in (1, 2, 3):
        assert prepare(data, output, "--shard", f"{number}/3") == 0
    said = capsys.readouterr().out
    assert "part 1 of 3: 6 recordings, 6 decoded now, " in said and "1 cannot be used" in said
    assert not (output / "cache").exists() and not (output / "split.csv").exists()
    assert prepare(data, output) == 0
    said = capsys.readouterr().out
    assert "prepared in 3 parts" in said and "decoded" not in said
    for name in ("split.csv", "problems.csv", "sources.csv"):
        assert read_csv(output / name) == read_csv(alone / name), name
    one, together = rows(alone), rows(output)
    assert one.keys() == together.keys() and len(one) == 16
    assert all(np.array_equal(one[content], together[content]) for content in one)
    # A machine without a cache finds the parts again.
    shutil.rmtree(output / "cache")
    assert prepare(data, output) == 0
    assert "decoded" not in capsys.readouterr().out and rows(output).keys() == one.keys()


def test_what_a_part_lacks_is_named_and_prepared_here(
    data: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert prepare(data, output, "--shard", "1/2") == 0
    assert prepare(data, output) == 0
    captured = capsys.readouterr()
    assert "1 part not finished with these settings: 2/2. Their recordings are prepared here." in "".join(captured)
    assert " 8 recordings decoded" in captured.out
    assert read_csv(output / "split.csv") == read_csv(alone / "split.csv")


def test_parts_of_other_settings_are_not_used(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    assert prepare(data, output, "--shard", "1/1", "--audio.channels", "first") == 0
    assert prepare(data, output) == 0
    said = "".join(capsys.readouterr())
    assert "1 part not finished with these settings: 1/1" in said and "17 recordings decoded" in said


def test_a_part_is_copied_where_it_cannot_be_linked(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    output = tmp_path / "output"
    assert prepare(data, output, "--shard", "1/1") == 0
    monkeypatch.setattr(os, "link", refuse)
    assert prepare(data, output) == 0
    assert rows(output).keys() == rows(alone).keys()


def test_embeddings_are_not_shared_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", X=np.zeros((4, 8), np.float32), y=np.zeros(4, np.int64))
    assert prepare(tmp_path / "data.npz", tmp_path / "output", "--shard", "1/2") == 42
