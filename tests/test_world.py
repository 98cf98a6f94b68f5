"""Several processes train together: what each computes, who they are, and that it comes to the same as one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import make_store, one_class_each, write_sound
from safetensors.numpy import load_file

from birdtune.data.batches import WHOLE, Batch, Batches, Part, Windows
from birdtune.data.clips import ClipBatches
from birdtune.errors import SettingsError
from birdtune.models import classifier as classifiers
from birdtune.models.vggish import SMALL
from birdtune.pipeline import processes
from birdtune.runtime import configure
from birdtune.runtime.files import read_json
from birdtune.runtime.rank import Cluster, cluster
from birdtune.settings import TrainSettings
from birdtune.training import inputs
from birdtune.training.step import StepSettings, Trainer
from birdtune.training.world import World

CODE = Path(__file__).parents[1] / "code"
# Largest difference of weights that sums in another order may make.
CLOSE = 1e-5

# ---- parts of a batch ----------------------------------------------------------------------------


def test_parts_have_one_length_and_each_row_counts_in_one_of_them() -> None:
    parts = [Part(number, 3) for number in range(3)]
    assert [part.rows(10).tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [part.real(10).tolist() for part in parts] == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert [Part(number, 3).real(2).tolist() for number in range(3)] == [[1], [1], [0]]
    assert WHOLE.rows(3).tolist() == [0, 1, 2] and WHOLE.real(3).tolist() == [1, 1, 1]


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    lengths = {"a": 96, "b": 250, "c": 950, "d": 96, "e": 150}
    return Windows(make_store(tmp_path, lengths), list(lengths), hop_rows=96)


def upside_down(batch: Batch, epoch: int, first: int, order: Any) -> Batch:
    """An augmentation that mixes rows of a batch."""
    return replace(batch, features=batch.features[::-1], targets=batch.targets[::-1])


def batches_of(kind: str, windows: Windows, part: Part) -> Batches | ClipBatches:
    targets = one_class_each(windows, [0, 1, 2, 1, 0])
    if kind == "clips":
        return ClipBatches(windows, targets, batch_size=30, seed=3, jitter_rows=9, part=part)
    augment = upside_down if kind == "mixed" else None
    return Batches(windows, targets, batch_size=7, seed=3, jitter_rows=9, augment=augment, part=part)


@pytest.mark.parametrize("kind", ["windows", "clips", "mixed"])
def test_the_parts_of_a_batch_are_the_whole_batch(windows: Windows, kind: str) -> None:
    whole = batches_of(kind, windows, WHOLE)
    parts = [batches_of(kind, windows, Part(number, 2)) for number in range(2)]
    assert {len(some) for some in (whole, *parts)} == {len(whole)}
    for step in range(len(whole)):
        expected, found = whole.batch(1, step), [some.batch(1, step) for some in parts]
        assert len({batch.features.shape for batch in found}) == 1
        for name in ("features", "targets", "known", "weights", "inside"):
            arrays = [getattr(batch, name) for batch in (expected, *found)]
            if arrays[0] is not None:
                joined = np.concatenate(arrays[1:])[: len(arrays[0])]
                np.testing.assert_array_equal(joined, arrays[0], err_msg=name)
        assert sum(batch.weights.sum() for batch in found) == expected.weights.sum()


def gradients(head: str, part: Part, batch: Batch, examples: int, places: int) -> tuple[float, float, list[Any]]:
    network = classifiers.build(
        backbone=SMALL, head=head, scores="softmax", hidden_units=4 if head == "attention" else 0,
        embedding_activation="relu", freeze="all-but-head", classes=("A", "B", "C"), precision="float32", seed=1,
    )  # fmt: skip
    step = StepSettings(0.5, np.ones(3, np.float32), "float32")
    feed = inputs.Feed(None, lambda rows: rows, 0.0, False)  # type: ignore[arg-type]
    trainer = Trainer(network, TrainSettings(jit=False), step, feed, part=part, examples=examples, places=places)
    loss, weight, found = trainer.gradients(batch, 4)
    return float(loss), float(weight), [np.asarray(each) for each in found]


def cut(batch: Batch, part: Part, places: int) -> Batch:
    rows = part.rows(len(batch.weights))
    of_windows = (rows[:, None] * places + np.arange(places)).reshape(-1)
    return Batch(
        batch.features[of_windows], batch.weights[rows] * part.real(len(batch.weights)), batch.windows[of_windows],
        batch.targets[rows], batch.known[rows], batch.inside if batch.inside is None else batch.inside[rows],
    )  # fmt: skip


@pytest.mark.parametrize(("head", "places"), [("linear", 1), ("attention", 3)])
def test_gradients_of_all_parts_add_up_to_those_of_the_batch_dropout_included(head: str, places: int) -> None:
    rng = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.float32)[np.arange(7) % 3]
    batch = Batch(
        rng.normal(size=(7 * places, 128)).astype(np.float32), np.ones(7, np.float32), np.arange(7 * places), targets,
        np.ones_like(targets), np.ones((7, places), np.bool_) if places > 1 else None,
    )  # fmt: skip
    loss, weight, whole = gradients(head, WHOLE, batch, 7, places)
    found = [gradients(head, Part(k, 2), cut(batch, Part(k, 2), places), 7, places) for k in range(2)]
    assert sum(each[1] for each in found) == weight == 7
    assert sum(each[0] for each in found) == pytest.approx(loss, rel=1e-5)
    for name, array in enumerate(whole):
        np.testing.assert_allclose(sum(each[2][name] for each in found), array, atol=1e-5)


# ---- who the processes are -----------------------------------------------------------------------


def config_of(kind: str, index: int, **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


def test_tf_config_names_the_processes_the_chief_first() -> None:
    found = cluster(config_of("worker", 1, chief=["c:1"], worker=["a:2", "b:3"]))
    assert (found.addresses, found.rank, found.size) == (("c:1", "a:2", "b:3"), 2, 3)
    assert cluster({}) == Cluster() and cluster({}).size == 1
    assert cluster(config_of("worker", 0, worker=["a:1"])) == Cluster(), "alone"
    assert cluster(found.environment()) == found


@pytest.mark.parametrize(
    ("kind", "index", "jobs"),
    [
        ("worker", 2, {"worker": ["a:1", "b:1"]}), ("ps", 0, {"worker": ["a:1", "b:1"]}),
        ("worker", 0, {"worker": ["a", "b:1"]}), ("chief", 0, {"chief": ["a:1", "b:1"]}),
        ("worker", 0, {"worker": ["a:1", "b:99999"]}),
    ],
)  # fmt: skip
def test_a_tf_config_that_names_no_such_process_is_refused(kind: str, index: int, jobs: dict[str, list[str]]) -> None:
    with pytest.raises(SettingsError, match="TF_CONFIG="):
        cluster(config_of(kind, index, **jobs))


def test_each_machine_may_have_several_processes_on_ports_one_after_another() -> None:
    found = Cluster(("a:2222", "b:2222"), 1).spread(3)
    assert found.addresses == ("a:2222", "a:2223", "a:2224", "b:2222", "b:2223", "b:2224")
    assert (found.rank, found.first_here, found.local_rank) == (3, 3, 0)
    last = found.at(5)
    assert (last.first_here, last.local_rank, last.is_one_a_machine) == (3, 2, False)
    assert Cluster(("a:1", "b:1")).is_one_a_machine


def world(gpus: int, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str] | None = None, **given: Any) -> World:
    monkeypatch.setattr(processes, "_gpus", lambda: [str(number) for number in range(gpus)])
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    return processes.world_of(configure.load({"model.backbone": "vggish", **given}, {}))


def test_there_is_a_process_for_each_gpu_where_the_backbone_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world(0, monkeypatch).size == 1
    found = world(4, monkeypatch)
    assert (found.size, found.is_chief) == (4, True)
    assert len(set(found.cluster.addresses)) == 4 and found.cluster.addresses[0].startswith("127.0.0.1:")
    assert world(4, monkeypatch, **{"model.freeze": "all-but-head"}).size == 1
    assert world(4, monkeypatch, **{"train.processes": "2"}).size == 2
    with pytest.raises(SettingsError, match="this machine has 4 GPUs"):
        world(4, monkeypatch, **{"train.processes": 5})
    two = config_of("worker", 1, worker=["a:1", "b:1"])
    spread = world(4, monkeypatch, two)
    assert (spread.size, spread.cluster.rank, spread.is_chief) == (8, 4, False)
    same = config_of("worker", 1, worker=["a:1", "a:2"])
    assert world(4, monkeypatch, same).size == 2, "a process each for two of them is named already"
    with pytest.raises(SettingsError, match="names several processes on a machine"):
        world(4, monkeypatch, same, **{"train.processes": 2})


# ---- whole trainings -----------------------------------------------------------------------------

SETTINGS = {
    "model.backbone": "vggish-small", "model.checkpoint": "none", "model.dropout": "0.2", "train.epochs": "2",
    "train.batch-size": "15", "train.precision": "float32", "train.jit": "false", "prepare.workers": "1",
}  # fmt: skip
PITCHES_HZ = {"Apus_apus": 900, "Bubo_bubo": 1800, "Corvus_corax": 3600}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in pitch, 6 sources of two seconds each."""
    folder = tmp_path_factory.mktemp("input") / "data"
    rng = np.random.default_rng(0)
    t = np.arange(32_000) / 16_000
    for number, (name, pitch_hz) in enumerate(PITCHES_HZ.items()):
        for source in range(6):
            noise = 0.3 * rng.standard_normal(t.size)  # so loud that there is something to learn for a while
            tone = 0.1 * np.sin(2 * np.pi * (pitch_hz + 10 * source) * t) + noise
            write_sound(folder / name / f"{name}-{number + 3}{source:03d}_0.wav", tone.clip(-1, 1).astype(np.float32))
    return folder


def start(data: Path, output: Path, environment: dict[str, str] | None = None, **changes: str) -> subprocess.Popen[str]:
    given = SETTINGS | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [sys.executable, "-m", "birdtune", "train", "--input", data.parent, "--output", output, *flags],
        env={**os.environ, "PYTHONPATH": str(CODE), **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def train(data: Path, output: Path, **changes: str) -> Path:
    process = start(data, output, **changes)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return output


def weights_of(output: Path) -> dict[str, Any]:
    """The newest weights."""
    return dict(load_file(sorted(output.glob("checkpoints/1/epoch-*/weights.safetensors"))[-1]))


def difference(one: Path, other: Path) -> float:
    """The largest of any weight."""
    a, b = weights_of(one), weights_of(other)
    assert set(a) == set(b)
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


def test_two_processes_come_to_the_weights_of_one(data: Path, tmp_path: Path) -> None:
    two = train(data, tmp_path / "two", train__processes="2")
    one = train(data, tmp_path / "one")
    assert difference(one, two) < CLOSE
    assert read_json(two / "run.json")["processes"] == 2
    assert read_json(one / "run.json")["fingerprint"] == read_json(two / "run.json")["fingerprint"]
    epochs = [read_json(folder / "logs/1/history.json")["epochs"] for folder in (one, two)]
    losses = [[row["train_loss"] for row in rows] for rows in epochs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert not list((two / "cache").glob("process-*")), "both had the chief's features"
