"""Bad learning is not silent: the real command on sounds, labels, settings and first weights that cannot end well."""

import html
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers_input import RATE_HZ, problems, tone, write_tone

from birdtune.models.registry import BACKBONES
from birdtune.runtime.files import write_csv

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
QUICK = (
    "--model.backbone=vggish-small", "--train.batch-size=8", "--train.jit=false", "--prepare.workers=1",
    "--evaluate.bootstrap=200", "--train.precision=float32",
)  # fmt: skip
FROM_SCRATCH = "--model.checkpoint=none"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    said: str
    errors: str
    output: Path

    @property
    def record(self) -> dict[str, Any]:
        """run.json"""
        found: dict[str, Any] = json.loads((self.output / "run.json").read_text("utf-8"))
        return found

    @property
    def warned(self) -> dict[str, str]:
        """Codes of the warnings in run.json, with their severity; of two the graver."""
        rows = sorted(self.record["warnings"], key=lambda row: str(row["severity"]))
        return {row["code"]: row["severity"] for row in rows}

    @property
    def log(self) -> str:
        """run.log of the newest version"""
        return (self.output / "logs" / str(self.record["version"]) / "run.log").read_text("utf-8")


def birdtune(command: str, data: Path, output: Path, *settings: str) -> Done:
    """Run the command to its end, in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BIRDTUNE_")}
    done = subprocess.run(
        [sys.executable, "-m", "birdtune", command, f"--input={data.parent}", f"--output={output}", *QUICK, *settings],
        env={**inherited, "PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, output)


def write_classes(data: Path, **tones: range) -> Path:
    """Class folders; the numbers say which tones: loud in a band of its own for each hundred."""
    for name, numbers in tones.items():
        for number in numbers:
            write_tone(data / name / f"rec{number}.wav", number)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "data"
    return write_classes(folder, Apus_apus=range(12), Bubo_bubo=range(100, 112), Corvus_corax=range(200, 212))


def top_of(report: Path) -> str:
    """What stands on the report's first screen before the figures, as text."""
    page = re.sub(r"<(style|script)>.*?</\1>", "", report.read_text("utf-8"), flags=re.DOTALL)
    top = page[: page.index('<div class="first">')]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", top)))


# ---- it did not learn ---------------------------------------------------------------------------


def test_what_cannot_be_learnt_from_is_said_at_once_in_the_log_in_run_json_and_on_top_of_the_report(
    tmp_path: Path,
) -> None:
    """A learning rate of nearly nothing; a class of calls above what is heard; samples that are no numbers."""
    data = write_classes(tmp_path / "input" / "data", Apus_apus=range(14), Bubo_bubo=range(100, 114))
    (data / "Mute").mkdir()
    for number in range(14):
        phase = 2 * np.pi * (40_000 + 50 * number) * np.arange(144_000) / 96_000
        ultrasound = 0.3 * np.hanning(144_000) * np.sin(phase)
        soundfile.write(data / "Mute" / f"rec{number}.wav", ultrasound, 96_000, subtype="FLOAT")
    for name, value in (("infinite", np.inf), ("nan", np.nan), ("loud", 1e30)):
        samples = tone(900)
        samples[100:] = value
        soundfile.write(data / "Apus_apus" / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
    settings = (FROM_SCRATCH, "--train.learning-rate=1e-12", "--train.epochs=5")

    done = birdtune("run", data, tmp_path / "out", *settings)

    assert done.code == 0, done.errors
    assert {name: row["problem"] for name, row in problems(done.output).items()} == {
        f"Apus_apus/{name}.wav": "not-finite" for name in ("infinite", "nan", "loud")
    }
    assert done.warned["never-predicted"] == "mild" and "overfitting" not in done.warned
    strong = {code for code, severity in done.warned.items() if severity == "strong"}
    # Whether a network that was never trained answers one class only is chance.
    assert strong - {"collapsed", "shortcut"} == {
        "dead-input", "weights-unmoved", "loss-never-moved", "not-above-baseline"
    }  # fmt: skip
    assert done.record["verdict"] == "poor"
    assert "Mute (" in next(row["text"] for row in done.record["warnings"] if row["code"] == "dead-input")
    # As soon as it is sure: what the sounds lack before the first epoch, and of the loss after the third.
    order = [done.log.index(text) for text in (
        "warning: Classes with training recordings in which nothing ever changes: Mute",
        "epoch   3 of 5", "warning: The training loss never moved", "epoch   4 of 5",
        "warning: The weights never moved", "warning: On test, accuracy is not above", "was never predicted",
    )]  # fmt: skip
    assert order == sorted(order)
    events = [json.loads(line) for line in (done.output / "logs/1/events.jsonl").read_text("utf-8").splitlines()]
    assert strong <= {event.get("code") for event in events if event["event"] == "warning"}
    figures = json.loads((done.output / "reports/1/metrics.json").read_text("utf-8"))
    assert (figures["verdict"], figures["warnings"]) == ("poor", done.record["warnings"])
    top = top_of(done.output / "reports/1/report.html")
    assert "Not shown to be better than guessing. Do not rely on its predictions." in top
    assert all(row["text"] in top and row["advice"] in top for row in done.record["warnings"])
    grave = [row for row in done.record["warnings"] if row["severity"] == "strong"]
    last = done.said.splitlines()[-len(grave) - 1 :]
    assert last[:-1] == [f"warning {row['code']}: {row['text']}" for row in grave]
    assert last[-1].startswith("Do not rely on this model.")

    again = birdtune("run", data, tmp_path / "out", *settings)

    assert again.code == 0 and "nothing to do" in again.said
    assert again.said.splitlines()[-len(last) :] == last
    assert again.record["warnings"] == figures["warnings"]


def test_labels_that_do_not_fit_the_sounds_leave_a_score_under_the_baseline_and_it_is_said(tmp_path: Path) -> None:
    """Low tones are Apus in training and Bubo in the test, and the other way round. Rare sounds like Apus."""
    data = write_classes(
        tmp_path / "input" / "data", Apus_apus=range(20), Bubo_bubo=range(100, 120), Rare=range(30, 34)
    )
    write_classes(data, Apus_apus=range(120, 130), Bubo_bubo=range(20, 30))
    sides = {"train": [*range(16), *range(100, 116), 30, 31], "val": [16, 17, 116, 117, 32]}
    rows = [
        {"recording": f"{path.parent.name}/{path.name}",
         "split": next((side for side, numbers in sides.items() if int(path.stem[3:]) in numbers), "test")}
        for path in data.rglob("*.wav")
    ]  # fmt: skip
    write_csv(tmp_path / "split.csv", ("recording", "split"), rows)

    done = birdtune(
        "evaluate", data, tmp_path / "out", FROM_SCRATCH, "--train.epochs=2", "--train.learning-rate=1e-3",
        # A head that learns fast would learn the two rare recordings by heart.
        "--train.head-lr-multiplier=1", f"--split.file={tmp_path / 'split.csv'}",
    )  # fmt: skip

    assert done.code == 0, done.errors
    assert done.warned["not-above-baseline"] == "strong" and done.record["verdict"] == "poor"
    assert done.warned["never-predicted"] == "mild"
    assert {"loss-never-moved", "nothing-learnt", "weights-unmoved", "dead-input"}.isdisjoint(done.warned)
    assert "never predicted: Rare (1 recording)" in done.log
    assert done.said.splitlines()[-1].startswith("Do not rely on this model.")


def test_sounds_that_are_learnt_raise_no_strong_doubt(data: Path, tmp_path: Path) -> None:
    done = birdtune(
        "evaluate", data, tmp_path / "out", FROM_SCRATCH, "--train.epochs=5", "--train.learning-rate=1e-3",
        "--split.test-fraction=0.4",
    )  # fmt: skip
    assert done.code == 0, done.errors
    # A tone that never pauses is in the noise floor, too.
    assert done.warned["small-test"] == "mild" and done.warned.keys() <= {"small-test", "shortcut", "noise-accepted"}
    assert "strong" not in done.warned.values() and done.record["verdict"] == "fair"
    assert done.said.splitlines()[-1].startswith("read its figures with care: ")


# ---- it broke -----------------------------------------------------------------------------------


def test_training_that_diverges_ends_with_42_one_line_and_its_reason_everywhere_and_so_does_a_retry(
    data: Path, tmp_path: Path
) -> None:
    settings = (
        FROM_SCRATCH, "--train.learning-rate=10", "--train.warmup-epochs=0", "--train.weight-decay=0.99",
        "--train.schedule=constant", "--model.head=mlp", "--model.output=sigmoid",
    )  # fmt: skip
    for _ in range(2):
        done = birdtune("run", data, tmp_path / "out", *settings)
        assert done.code == 42
        (line,) = done.errors.splitlines()
        assert re.match(r"birdtune: error: Training went astray in epoch 1, update \d+: .*--train\.learning-rate", line)
        assert (done.record["status"], done.record["version"], done.record["verdict"]) == ("failed", 1, "none")
        assert done.warned == {"diverged": "strong"}
        assert done.record["warnings"][0]["text"] in line and done.record["error"] in line
        assert done.record["error"] in done.log
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "reports").exists()


# ---- first weights ------------------------------------------------------------------------------


def write_first_weights(folder: Path, *, scale: float, nan_in: str | None = None) -> Path:
    """A checkpoint of the reduced network: He's weights times `scale`."""
    from helpers_slim import write_checkpoint

    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in BACKBONES["vggish-small"].variables().items():
        size = np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1 else 0.0
        arrays[name] = (scale * size * rng.standard_normal(shape)).astype(np.float32)
    if nan_in is not None:
        arrays[nan_in].flat[0] = np.nan
    folder.mkdir()
    return write_checkpoint(folder / "model.ckpt", arrays)


def test_first_weights_that_are_no_numbers_are_refused_by_name_before_the_long_work(
    data: Path, tmp_path: Path
) -> None:
    checkpoint = write_first_weights(tmp_path / "nan", scale=1.0, nan_in="vggish/conv2/weights")
    done = birdtune("run", data, tmp_path / "out", f"--model.checkpoint={checkpoint}")
    assert done.code == 42
    (line,) = done.errors.splitlines()
    assert "holding NaN or infinity: vggish/conv2/weights." in line
    assert done.record["exit_code"] == 42 and "vggish/conv2/weights" in done.record["error"]
    assert not (tmp_path / "out" / "split.csv").exists()


def test_a_network_that_is_dead_from_the_start_is_said_after_its_first_epoch(data: Path, tmp_path: Path) -> None:
    checkpoint = write_first_weights(tmp_path / "zeros", scale=0.0)
    done = birdtune("train", data, tmp_path / "out", f"--model.checkpoint={checkpoint}", "--train.epochs=3")
    assert done.code == 0, done.errors
    assert done.warned == {
        "embeddings-dead": "strong", "weights-unmoved": "strong", "loss-never-moved": "strong",
    }  # fmt: skip
    dead = done.log.index("warning: After epoch 1, the network gives the same embedding for every validation window")
    assert dead < done.log.index("epoch   2 of 3")
    assert done.record["verdict"] is None, "nothing was judged yet"
    assert done.said.splitlines()[-1].startswith("Do not rely on this model.")
