"""SageMaker's folders, laid out as its contract says."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from birdtune.cloud import sagemaker
from birdtune.errors import BirdtuneError, InputError, Interrupted
from birdtune.runtime.rank import cluster


def lay_out(root: Path, hyperparameters: dict[str, str], channels: dict[str, dict[str, str]]) -> None:
    config = root / "input/config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "inputdataconfig.json").write_text(json.dumps({name: {"TrainingInputMode": "File"} for name in channels}))
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    for name, files in channels.items():
        for path, text in files.items():
            place = root / "input/data" / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)


def line_of(root: Path) -> list[str]:
    lines: list[list[str]] = []
    assert sagemaker.train(lambda line: lines.append(line) or 0, root) == 0  # type: ignore[func-returns-value]
    return lines[0]


def test_hyperparameters_and_channels_are_a_command_line(tmp_path: Path) -> None:
    given = {
        "train.epochs": "5", "gate.champion": '"latest"', "model.output": "softmax", "audio.band_limit": "8000",
        "sagemaker_region": '"eu-west-1"', "_tuning_objective_metric": "val",
    }  # fmt: skip
    lay_out(tmp_path, given, {"training": {"robin/1.wav": ""}, "backbone": {"net.tflite": ""}})
    data = tmp_path / "input/data"
    assert line_of(tmp_path) == [
        "run", "--output", str(tmp_path / "checkpoints"), "--input", str(data), "--data", str(data / "training"),
        "--model.checkpoint", str(data / "backbone/net.tflite"), "--train.epochs", "5", "--gate.champion", "latest",
        "--model.output", "softmax", "--audio.band_limit", "8000",
    ]  # fmt: skip


def test_a_channel_nobody_knows_is_refused_and_the_failure_told(tmp_path: Path) -> None:
    lay_out(tmp_path, {}, {"validation": {"robin/1.wav": ""}})
    with pytest.raises(InputError, match="input channels validation: are not known"):
        sagemaker.train(lambda line: pytest.fail("ran"), tmp_path)
    assert (tmp_path / "output/failure").read_text().startswith("exit 42: input channels validation")


def test_several_machines_are_a_cluster_and_the_first_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, {}, {"input": {"job.yaml": ""}})
    place = tmp_path / "input/config/resourceconfig.json"
    place.write_text('{"current_host": "algo-2", "hosts": ["algo-2", "algo-1"], "network_interface_name": "eth0"}')
    monkeypatch.setenv("TF_CONFIG", "")
    sagemaker.train(lambda line: record(tmp_path, promoted=True) or 0, tmp_path)  # type: ignore[func-returns-value]
    found = cluster()
    assert (found.addresses, found.rank) == (("algo-1:2222", "algo-2:2222"), 1)
    assert not (tmp_path / "model").exists() and not (tmp_path / "output/data").exists()
    monkeypatch.setenv("TF_CONFIG", "")
    place.write_text('{"current_host": "algo-3", "hosts": ["algo-2", "algo-1"]}')
    with pytest.raises(InputError, match="current_host algo-3 is none of hosts algo-1, algo-2"):
        sagemaker.train(lambda line: pytest.fail("ran"), tmp_path)


def record(root: Path, **fields: Any) -> None:
    output = root / "checkpoints"
    for name in ("model/birds/2/saved_model.pb", "reports/2/report.html", "reports/1/report.html"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(name)
    (output / "run.json").write_text(json.dumps({"version": 2, **fields}))


@pytest.mark.parametrize("promoted", [True, False])
def test_a_promoted_model_and_the_report_are_handed_over(tmp_path: Path, promoted: bool) -> None:
    lay_out(tmp_path, {}, {"input": {"job.yaml": ""}})
    sagemaker.train(lambda line: record(tmp_path, promoted=promoted) or 0, tmp_path)  # type: ignore[func-returns-value]
    assert (tmp_path / "output/data/report.html").read_text() == "reports/2/report.html"
    assert (tmp_path / "model/birds/2/saved_model.pb").exists() == promoted
    assert (tmp_path / "checkpoints/cache").resolve() == tmp_path / "cache"
    assert not (tmp_path / "output/failure").exists()


def test_why_it_failed_is_told_in_1024_characters_and_a_stop_is_no_failure(tmp_path: Path) -> None:
    lay_out(tmp_path, {}, {"input": {}})

    def fail(line: list[str]) -> int:
        raise ValueError("x" * 2000)

    def stop(line: list[str]) -> int:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        sagemaker.train(stop, tmp_path)
    assert not (tmp_path / "output/failure").exists()
    with pytest.raises(ValueError, match="xxx"):
        sagemaker.train(fail, tmp_path)
    text = (tmp_path / "output/failure").read_text()
    assert text.startswith("exit 1: ValueError: xxx") and len(text) == 1024


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 42), (errno.ENOSPC, 75)])
def test_what_the_system_refuses_has_the_exit_code_of_the_process(tmp_path: Path, number: int, code: int) -> None:
    lay_out(tmp_path, {}, {"input": {}})

    def refuse(line: list[str]) -> int:
        raise OSError(number, os.strerror(number), str(tmp_path / "checkpoints/x"))

    with pytest.raises(BirdtuneError) as refused:
        sagemaker.train(refuse, tmp_path)
    assert refused.value.exit_code == code
    assert (tmp_path / "output/failure").read_text() == f"exit {code}: {refused.value}"


def test_another_user_than_root_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {}, {"input": {}})
    (tmp_path / "output").write_text("as if it could not be made")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot be written by user \d+\. SageMaker mounts it for root"):
        sagemaker.train(lambda line: 0, tmp_path)
