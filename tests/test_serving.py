"""A served model as its clients meet it: the calls of docs/serving.md against a server in small (`helpers_serving`)."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from helpers_serving import grpc_server, rest_predict, rest_server, sound
from makers import Here
from test_export import CLASSES, RATE_HZ, exported_to, made_classifier, made_waveform, told

from birdtune.serving import verify

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")
SECONDS = (0.5, 3.7, 2.0)


@pytest.fixture(scope="module", params=[False, True], ids=["without OOD statistics", "with OOD statistics"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user with output/model/birdtune/1 in it, and a recording."""
    place, classifier = tmp_path_factory.mktemp("user"), made_classifier()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "Isolated", Here)
        ood = told(classifier) if request.param else None
        exported_to(place / "output" / "model" / "birdtune" / "1", classifier, ood=ood)
    soundfile.write(place / "recording.wav", made_waveform(3.7, seed=1), RATE_HZ, subtype="FLOAT")
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return tf.saved_model.load(str(folder / "output" / "model" / "birdtune" / "1"))


def example(section: str) -> str:
    """The block of commands in a section of the page."""
    found = re.search(rf"^## {section}\n.*?^```\w*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("by_row", [True, False])
def test_rest_gives_what_the_signature_gives_by_row_and_by_column(loaded: Any, by_row: bool) -> None:
    waveforms = [made_waveform(seconds, seed=1) for seconds in SECONDS]
    expected = sound(loaded, *waveforms)
    longest = max(waveform.size for waveform in waveforms)
    padded = [np.pad(waveform, (0, longest - waveform.size)).tolist() for waveform in waveforms]
    lengths = [waveform.size for waveform in waveforms]
    rows = [{"waveforms": row, "lengths": length} for row, length in zip(padded, lengths, strict=True)]
    asked = {"instances": rows} if by_row else {"inputs": {"waveforms": padded, "lengths": lengths}}
    status, content = rest_predict(loaded, json.dumps({"signature_name": "sound", **asked}).encode())
    found = json.loads(content)
    assert status == 200, found
    columns = {name: [row[name] for row in found["predictions"]] for name in expected} if by_row else found["outputs"]
    assert columns.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(columns[name], value, atol=1e-6)
    alone = sound(loaded, waveforms[1])
    np.testing.assert_allclose(columns["scores"][1], alone["scores"][0], atol=1e-6)  # others of a batch do not count


def test_recordings_of_several_lengths_in_one_rest_request_are_refused_by_the_server_not_misread(loaded: Any) -> None:
    rows = [{"waveforms": [0.1] * n, "lengths": n} for n in (20, 30)]
    status, _ = rest_predict(loaded, json.dumps({"signature_name": "sound", "instances": rows}).encode())
    assert status == 400


@pytest.mark.parametrize("folder", [pytest.param(False, marks=pytest.mark.long), True], indirect=True)
def test_the_calls_of_the_page_work_as_they_stand(folder: Path, loaded: Any) -> None:
    expected = sound(loaded, made_waveform(3.7, seed=1))
    with rest_server(loaded) as port:
        script = example("REST").replace("localhost:8501", f"127.0.0.1:{port}").replace("python3", sys.executable)
        subprocess.run(["bash", "-euc", script], cwd=folder, check=True, timeout=120)
    (found,) = json.loads((folder / "response.json").read_text())["predictions"]
    np.testing.assert_allclose(found["scores"], expected["scores"][0], atol=1e-6)
    assert found["windows"] == 4 and len(found["window_scores"]) == 4

    with grpc_server(loaded) as port:
        script = example("gRPC").replace("localhost:8500", f"127.0.0.1:{port}")
        run = [sys.executable, "-c", script]
        said = subprocess.run(run, cwd=folder, check=True, timeout=240, capture_output=True, text=True).stdout
    with (folder / "output/model/birdtune/1/labels.csv").open(newline="", encoding="utf-8") as file:
        limits = [float(row["threshold"] or "inf") for row in csv.DictReader(file)]
    scores, ood_score = expected["scores"][0], expected["ood_score"][0]
    passing = [(score, name) for score, name, limit in zip(scores, CLASSES, limits, strict=True) if score >= limit]
    assert said.splitlines()[-1] == (max(passing)[1] if passing and ood_score <= 1 else "unknown")
