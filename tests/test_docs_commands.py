"""Every command of README.md and docs/ is run as it stands there, on a small input of made recordings.

A page's commands run in their order in a folder as its reader has it: `input/`, and `output/` with a first version.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_yamnet import original, write_hdf5
from makers import write_sound
from test_custom import saved as save_backbone
from test_docs import PAGES, ROOT, commands
from test_graph_safety import saved as save_model
from test_graph_safety import written
from test_job import write_data

# What a page says → what is run: other places, and less to compute.
INSTEAD = {
    "/archive": "archive",
    " nights/": " night/",
    ".venv/bin/python": sys.executable,
    "--trials 30": "--trials 2",
    "--train.head-warmup-epochs 10": "--train.head-warmup-epochs 0",  # of one epoch
    "--model.backbone yamnet": "--model.backbone yamnet --model.checkpoint yamnet.h5",
    # The rest of the test runs with a small backbone; a SavedModel is one itself.
    "./entrypoint.sh run --model.checkpoint saved_model/": "env -u BIRDTUNE_MODEL__BACKBONE "
    "./entrypoint.sh run --model.checkpoint saved_model/",
}
# Commands that end otherwise than with 0: a model of a stranger whose graph writes a file.
CODES = {"./entrypoint.sh predict --model strangers/1 recordings/": 42}
NOT_RUN = {
    "docker ": "needs Docker",
    "./entrypoint.sh test": "is what runs this test",
    "./entrypoint.sh extras": "needs a network; tests/test_entrypoint.py runs it with a stand-in for pip",
    "./entrypoint.sh embed --data recordings/ --model.backbone yamnet --format parquet": "needs the extra parquet; "
    "tests/test_embeddings.py writes such files",
    "./entrypoint.sh export --format onnx": "needs the extra onnx; tests/test_convert.py writes such files",
    "./entrypoint.sh run --track mlflow": "needs the extra mlflow; tests/test_tracking.py tracks such runs",
    "./entrypoint.sh run --init-from latest --model.head linear": "needs a model with that head, which `compare` "
    "may not have chosen; tests/test_base_model.py begins from models",
    "./entrypoint.sh compare --smote": "needs the extra smote; tests/test_compare.py runs it with a stand-in",
    "./entrypoint.sh unseen": "needs four classes, and tables of them; tests/test_unseen.py runs it",
    "./entrypoint.sh bench": "needs ESC-10 and minutes; tests/test_bench.py runs each part in its tiniest form",
    "python tests/faults/fuzz.py all": "needs requirements-fuzz.txt; tests/faults/test_hostile.py is its short form",
    "PYTHONPATH=code .venv/bin/python -m pytest -rP tests/test_statistics.py": "is a test itself",
    "./entrypoint.sh run --data my-birds --model.backbone birdnet": "needs the extra birdnet, whose licence is asked",
    "./entrypoint.sh run --model.backbone birdnet": "needs the extra birdnet",
    "./entrypoint.sh predict night.wav --window 3 --classes both": "is run by tests/test_keep_classes.py, with a made "
    "model that keeps classes",
    "./entrypoint.sh run --model.checkpoint model.tflite": "is run by tests/test_tflite_backbone.py, with a made file",
    "./entrypoint.sh run --model.checkpoint model.keras": "is run by tests/test_file_backbones.py, with a made file",
    "./entrypoint.sh run --data my-birds --model.backbone perch": "needs the extra onnx; "
    "tests/test_file_backbones.py runs it with a made file",
    "./entrypoint.sh run --data data.parquet": "needs the extra parquet; tests/test_embeddings.py reads such files",
    "./entrypoint.sh embed night/ --model vggish_model.ckpt --postprocess": "needs Google's weights and parameters; "
    "tests/test_postprocess.py computes it with made ones",
    "./entrypoint.sh run --input s3://": "is run by tests/faults/test_cloud_job.py, against a server on loopback",
    "./entrypoint.sh predict s3://": "as above, by tests/test_cloud.py",
    "./entrypoint.sh collect": "needs a network; tests/test_collect*.py run it against a server on loopback",
    "pip ": "needs a network, or is named as a part of what extras do",
    "python3 -c '": "is run by tests/test_serving.py",
    "curl ": "is run by tests/test_serving.py",
    "ffmpeg ": "needs FFmpeg",
    "find -print0": "is a part of a command",
}
# Said in prose without its arguments.
MENTIONED = {"./entrypoint.sh predict"}

# So that each command takes seconds: what it does is tested elsewhere.
SMALL = {
    "MODEL__BACKBONE": "vggish-small", "MODEL__CHECKPOINT": "none", "TRAIN__EPOCHS": "1", "TRAIN__BATCH_SIZE": "16",
    "TRAIN__JIT": "false", "EVALUATE__BOOTSTRAP": "20", "EVALUATE__LABEL_ISSUES": "false",
    "EVALUATE__RARE_CLASS_ABLATION": "false", "PREPARE__WORKERS": "1",
}  # fmt: skip


def to_run(page: Path) -> list[str]:
    return [line for line in commands(page) if not line.startswith(tuple(NOT_RUN)) and line not in MENTIONED]


def execute(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    for said, instead in INSTEAD.items():
        line = line.replace(said, instead)
    environment = os.environ | {f"BIRDTUNE_{name}": value for name, value in SMALL.items()}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has run the first command of the README, and has what the pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    entrypoint = folder / "entrypoint.sh"
    entrypoint.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}/code" exec "{sys.executable}" -m birdtune "$@"\n')
    entrypoint.chmod(0o755)
    data = write_data(folder / "input/data")
    names = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*"))]
    folds = "".join(f"{name},{int(name[-7]) % 5 + 1}\n" for name in names)  # by the last digit of the source
    (folder / "folds.csv").write_text("recording,fold\n" + folds)
    (folder / "species.txt").write_text("Bubo bubo\n")
    (folder / "annotated.csv").write_text("recording,start_s,end_s,label\nd.wav,1,2,Bubo_bubo\n")
    (folder / "marks").mkdir()
    for name in names[::2]:  # label tracks of Audacity
        (folder / "marks" / f"{Path(name).stem}.txt").write_text(f"0.1\t1.4\t{Path(name).parent}\n")
    (folder / "last").touch()
    os.utime(folder / "last", (0, 0))
    for number, name in enumerate(("new/a.wav", "night.wav", "recordings/b.wav", "archive/2026/c.wav", "night/d.wav")):
        write_sound(folder / name, np.tile(np.sin(np.arange(16_000) * 0.1 * (number + 1)), 6), seed=number)
    write_hdf5(folder / "yamnet.h5", original()[1])
    save_backbone(folder / "saved_model", n_samples=96_000)
    save_model(folder / "strangers/1", written(folder / "touched")["WriteFile"])
    done = execute("./entrypoint.sh run", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_stand(page: Path, reader: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reader, tmp_path / "reader")
    for line in to_run(page):
        if "--gate." in line:  # there is something to decide where new recordings make a new version
            write_data(folder / "input/data", range(7, 9))
        done = execute(line, folder)
        assert done.returncode == CODES.get(line, 0), f"{line}\n{done.stdout}\n{done.stderr}"
    assert not (reader / "touched").exists()


def test_each_exception_is_for_a_command_that_a_page_has() -> None:
    lines = [line for page in PAGES for line in commands(page)]
    for said in (*INSTEAD, *CODES, *NOT_RUN, *MENTIONED):
        assert any(said in line for line in lines), said
