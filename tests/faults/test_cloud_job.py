"""The whole job with its input and output in S3: the machine vanishes, and another one goes on to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_input import write_good
from helpers_s3 import CREDENTIALS, S3, s3_server

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SMALL = ("--model.backbone", "vggish-small", "--model.checkpoint", "none", "--train.epochs", "12", "--train.seed", "3")


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "birdtune", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
    )  # fmt: skip


def in_s3(s3: S3, folder: Path, *command: str) -> "subprocess.Popen[str]":
    return start(
        *command, "--input", "s3://birds/in", "--output", "s3://birds/out", "--cloud.endpoint", s3.endpoint,
        "--cloud.folder", str(folder), "--cloud.publish-s", "1", *SMALL, **CREDENTIALS,
    )  # fmt: skip


def test_a_machine_that_vanishes_is_followed_by_another_to_the_same_weights(tmp_path: Path) -> None:
    write_good(tmp_path / "in/data")
    alone = start("run", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "alone"), *SMALL)
    text = alone.communicate(timeout=900)[0]
    assert alone.returncode == 0, text
    with s3_server() as s3:
        s3.put_folder(tmp_path / "in", "in")
        first = in_s3(s3, tmp_path / "first", "run")
        until = time.monotonic() + 600
        while not any("/state.json" in key for key in s3.stored("out/checkpoints/")) and first.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        before = first.communicate()[0]
        assert "version 1" in before and not any("saved_model.pb" in key for key in s3.stored()), before
        # Requests are cut, throttled and damaged while the second one works.
        for method, key, fault in (("GET", "in/", "cut"), ("PUT", "out/", 503), ("PUT", "out/", "drop")):
            s3.faults.add(method, key, fault, 2)  # fewer than the attempts of one request
        second = in_s3(s3, tmp_path / "second", "run")
        text = second.communicate(timeout=900)[0]
        assert second.returncode == 0, text
        assert "The last job there ended without finishing" in text and "version 1: going on" in text
        record = json.loads(s3.get("out/run.json"))
        assert record["exit_code"] == 0 and "out/model/birdtune/1/saved_model.pb" in s3.stored()
        assert "out/.lease.json" not in s3.stored()
        assert record["weights_sha256"] == json.loads((tmp_path / "alone/run.json").read_text())["weights_sha256"]
        third = in_s3(s3, tmp_path / "third", "run")
        assert "nothing to do" in third.communicate(timeout=900)[0] and third.returncode == 0
