"""The release workflow is sound, and the images say what they were made from."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import deploy_schemas
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
WORKFLOW = ROOT / ".github/workflows/release.yml"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
LABELS = {
    "title", "description", "licenses", "version", "revision", "source", "created", "base.name", "base.digest",
}  # fmt: skip


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    return found


def scripts() -> list[str]:
    return [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]


def test_github_takes_the_workflow() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    workflow["on"] = workflow.pop(True)  # as YAML 1.1 reads the word
    jsonschema.validate(workflow, deploy_schemas.published("github-workflows"))
    for job in jobs().values():
        assert job.get("needs", "test") in jobs()


def test_zizmor_finds_nothing_in_the_workflow() -> None:
    # Such as actions named by a tag that can be moved, tokens that may do too much, and text of others in scripts.
    done = subprocess.run(
        [PROGRAMS / "zizmor", "--offline", "--no-progress", "--persona=pedantic", WORKFLOW],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.split("\n")[0][:30])
def test_shellcheck_finds_nothing_in_a_step(script: str) -> None:
    done = subprocess.run(
        [PROGRAMS / "shellcheck", "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_is_published_before_all_that_must_hold_does() -> None:
    assert jobs()["publish"]["needs"] == "test"
    assert [step["run"] for step in jobs()["test"]["steps"] if "run" in step] == [".ci/run"]


def test_a_release_says_what_it_is_made_from() -> None:
    given = set(re.findall(r"--build-arg (\w+)=", "\n".join(scripts())))
    assert given == {"BASE", "BASE_DIGEST", "VERSION", "REVISION", "SOURCE", "CREATED"}
    for name in DOCKERFILES:
        text = (ROOT / name).read_text("utf-8")
        assert given <= set(re.findall(r"^ARG (\w+)", text, re.M)), name
        labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', text))
        assert set(labels) == LABELS, name
        assert {f"${{{argument}}}" for argument in given} <= set(labels.values()), name


def test_both_images_are_published_signed_and_with_what_is_in_them() -> None:
    assert [f"Dockerfile.{kind}" for kind in jobs()["publish"]["strategy"]["matrix"]["kind"]] == list(DOCKERFILES)
    script = "\n".join(scripts())
    assert "cosign sign " in script
    assert re.search(r"\.ci/sbom .* >(\S+)\n.*cosign attest .*--type cyclonedx --predicate \1", script, re.S)
