"""Several processes train together: what each computes, who they are, and that it comes to the same as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import make_store, one_class_each, quiet, write_sound
from safetensors.numpy import load_file

from birdtune.cloud import batch
from birdtune.data.batches import WHOLE, Batch, Batches, Part, Windows
from birdtune.data.clips import ClipBatches
from birdtune.errors import EXIT_RETRY, ProcessLostError, SettingsError
from birdtune.models import classifier as classifiers
from birdtune.models.vggish import SMALL
from birdtune.pipeline import processes
from birdtune.runtime import configure
from birdtune.runtime.files import read_json
from birdtune.runtime.rank import Cluster, cluster
from birdtune.runtime.signals import Interrupts
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
        backbone=SMALL, head=head, scores="softmax", hidden_units=4 if head == "attention" else 0, context=places,
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


@pytest.mark.parametrize(("head", "places"), [("linear", 1), ("attention", 3), ("gru", 3), ("self-attention", 3)])
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
    assert Cluster(("a:1", "b:1")).is_one_a_machine and last.n_machines == 2


def world(gpus: int, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str] | None = None, **given: Any) -> World:
    monkeypatch.setattr(processes, "_gpus", lambda: [str(number) for number in range(gpus)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")  # is given back with the test
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
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    same = config_of("worker", 1, worker=["a:1", "a:2"])
    assert world(4, monkeypatch, same).size == 2, "a process each for two of them is named already"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert world(1, monkeypatch, same).size == 2, "each has been given its own"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "all"
    here = [processes._gpu(spread.cluster.at(rank), spread.gpus) for rank in (4, 7)]
    assert here == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    with pytest.raises(SettingsError, match="names several processes on a machine"):
        world(4, monkeypatch, same, **{"train.processes": 2})


def batch_node(index: int, main: int, n: int = 3, job: str = "j#0") -> dict[str, str]:
    found = {"ID": job, "NUM_NODES": str(n), "NODE_INDEX": str(index), "MAIN_NODE_INDEX": str(main)}
    if index != main:
        found["MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = "127.0.0.1"
    return {f"AWS_BATCH_JOB_{name}": value for name, value in found.items()}


def test_the_nodes_of_a_batch_job_meet_and_the_main_one_is_the_chief() -> None:
    (port,) = processes._free_ports(1)

    def meet(index: int) -> Cluster:
        return cluster(batch.meet(batch_node(index, 1, job=f"j#{index}"), quiet(), Interrupts(), port, 30.0))

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(meet, index) for index in range(2)]
        with socket.socket() as stranger:  # is not counted
            while stranger.connect_ex(("127.0.0.1", port)):
                time.sleep(0.05)
            stranger.sendall(b'{"job": "other", "number": 2}\n')
            found.append(threads.submit(meet, 2))
            clusters = [each.result() for each in found]
    assert [each.rank for each in clusters] == [1, 0, 2]
    assert {each.addresses for each in clusters} == {("127.0.0.1:2222",) * 3}


def test_a_batch_job_of_one_node_needs_no_meeting_and_nodes_that_do_not_come_are_named() -> None:
    assert not batch.is_here({}) and not batch.is_here(batch_node(0, 0, n=1)) and batch.is_here(batch_node(0, 0))
    (port,) = processes._free_ports(1)
    with pytest.raises(ProcessLostError, match="1 of 3 came"):
        batch.meet(batch_node(0, 0), quiet(), Interrupts(), port, 0.0)
    with pytest.raises(ProcessLostError, match=f"127.0.0.1 does not answer on port {port}"):
        batch.meet(batch_node(1, 0), quiet(), Interrupts(), port, 0.5)
    with pytest.raises(SettingsError, match="another variable of Batch is missing"):
        batch.meet({"AWS_BATCH_JOB_NUM_NODES": "2"}, quiet(), Interrupts())


def test_who_waits_for_a_process_that_has_ended_waits_no_longer() -> None:
    addresses = tuple(f"127.0.0.1:{port}" for port in processes._free_ports(2))

    def check() -> None:
        raise ProcessLostError("process 1 ended before training")

    for rank in range(2):
        with pytest.raises(ProcessLostError, match="before training"):
            World(Cluster(addresses, rank)).connect(check)


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
            tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * source) * t) + 0.02 * rng.standard_normal(t.size)
            write_sound(folder / name / f"{name}-{number + 3}{source:03d}_0.wav", tone.astype(np.float32))
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
    record = read_json(two / "run.json")
    assert (record["processes"], record["hardware"]["processes"]) == (2, "2")
    assert "2 processes, each of which computes its part of every batch" in (two / "logs/1/run.log").read_text()
    assert read_json(one / "run.json")["fingerprint"] == read_json(two / "run.json")["fingerprint"]
    epochs = [read_json(folder / "logs/1/history.json")["epochs"] for folder in (one, two)]
    losses = [[row["train_loss"] for row in rows] for rows in epochs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert not list((two / "cache").glob("process-*")), "both had the chief's features"


# ---- at length: more steps, more processes, and what stops them ----------------------------------

FIFTY_STEPS = {"train__epochs": "17", "train__early_stopping_patience": "0"}  # of 3 batches


def free_config(n: int) -> list[dict[str, str]]:
    """What tells each of `n` processes on loopback who it is, as if each were on a machine of its own."""
    addresses = [f"127.0.0.{number}:{port}" for number, port in enumerate(processes._free_ports(n), start=1)]
    return [Cluster(tuple(addresses), rank).environment() for rank in range(n)]


def others_of(process: subprocess.Popen[str]) -> list[int]:
    """Ids of the processes that a command has started to train with."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, command in commands.items() if "spawn_main" in command]


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What it says up to a line with this text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"{text!r} was not said: {said}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it still says."""
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty steps by one process."""
    return train(data, tmp_path_factory.mktemp("alone"), **FIFTY_STEPS)


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 3])
def test_after_fifty_steps_several_processes_have_the_weights_of_one(
    data: Path, alone: Path, tmp_path: Path, n: int
) -> None:
    found = train(data, tmp_path, train__processes=str(n), **FIFTY_STEPS)
    assert read_json(found / "logs/1/history.json")["epochs"][-1]["epoch"] == 17
    print(f"{n} processes: the weights differ by {difference(alone, found):.1e} at most")
    assert difference(alone, found) < CLOSE


@pytest.mark.long
def test_two_processes_are_one_that_adds_up_two_halves_bit_for_bit(data: Path, tmp_path: Path) -> None:
    how = FIFTY_STEPS | {"model__dropout": "0"}  # which is drawn for each of the halves
    two = train(data, tmp_path / "two", **how, train__processes="2", train__batch_size="16")
    halves = train(data, tmp_path / "halves", **how, train__accumulate="2", train__batch_size="8")
    assert difference(two, halves) == 0


@pytest.mark.long
def test_processes_without_a_common_folder_make_their_own_features(data: Path, alone: Path, tmp_path: Path) -> None:
    started = [
        start(data, tmp_path / str(rank), environment, **FIFTY_STEPS)
        for rank, environment in enumerate(free_config(2))
    ]
    assert [ended(process)[0] for process in reversed(started)] == [0, 0]
    assert difference(alone, tmp_path / "0") < CLOSE
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["cache"], "only the chief writes results"
    assert [path.name for path in (tmp_path / "1/cache").iterdir()] == ["process-1"]


@pytest.mark.long
@pytest.mark.parametrize("whom", ["silent", "other", "chief"])
def test_when_one_is_killed_all_end_and_the_same_command_goes_on_with_more_or_fewer(
    data: Path, alone: Path, tmp_path: Path, whom: str
) -> None:
    process = start(data, tmp_path, train__processes="3", **FIFTY_STEPS)
    wait_for(process, "epoch   4 of")
    others = others_of(process)
    assert len(others) == 2
    # One that is stopped keeps its connections, as a machine that vanishes does.
    os.kill(process.pid if whom == "chief" else others[0], signal.SIGSTOP if whom == "silent" else signal.SIGKILL)
    began = time.monotonic()
    code, said = ended(process)
    if whom != "chief":
        assert code == EXIT_RETRY
        (error,) = [line for line in said.splitlines() if line.startswith("birdtune: error:")]
        assert "ended, or cannot be reached" in error and "Traceback" not in said
        assert read_json(tmp_path / "run.json")["exit_code"] == EXIT_RETRY
    while any(is_running(pid) for pid in others):
        assert time.monotonic() < began + 60
        time.sleep(0.01)
    print(f"{whom}: all had ended after {time.monotonic() - began:.1f} s")
    if whom == "silent":
        return
    for n in ("2", "1"):
        process = start(data, tmp_path, train__processes=n, **FIFTY_STEPS)
        said = wait_for(process, "resuming before epoch")
        if n == "2":
            wait_for(process, "epoch   9 of")
            process.terminate()
            assert ended(process)[0] == 143
        else:
            code, said = ended(process)
            assert code == 0, said
    assert difference(alone, tmp_path) < CLOSE


@pytest.mark.long
def test_a_signal_to_one_stops_all_after_the_same_update(data: Path, alone: Path, tmp_path: Path) -> None:
    environments = free_config(2)
    started = [start(data, tmp_path, environment, **FIFTY_STEPS) for environment in environments]
    wait_for(started[0], "epoch   5 of")
    started[1].terminate()
    assert [ended(process)[0] for process in started] == [143, 143]
    assert "told to stop: saving" in (tmp_path / "logs/1/run.log").read_text()
    train(data, tmp_path, **FIFTY_STEPS)
    assert difference(alone, tmp_path) < CLOSE


@pytest.mark.long
def test_other_settings_and_a_chief_that_fails_end_the_others_too(data: Path, tmp_path: Path) -> None:
    started = [
        start(data, tmp_path / "o", environment, train__epochs=epochs)
        for environment, epochs in zip(free_config(2), ("3", "4"), strict=True)
    ]
    results = [ended(process) for process in reversed(started)]
    assert [result[0] for result in results] == [42, EXIT_RETRY]
    assert "other settings than process 0: train.epochs (4, there 3)" in results[0][1]
    started = [start(tmp_path / "nothing/data", tmp_path / "p", environment) for environment in free_config(2)]
    results = [ended(process) for process in reversed(started)]
    assert [result[0] for result in results] == [42, 42]
    assert "process 0, which prepares, ended" in results[0][1]
