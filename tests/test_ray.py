"""`--engine ray` on a cluster of Ray on this machine: two nodes, a worker that is killed, a node that is taken away."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_base_model import write_data
from test_prepare_parts import rows
from test_world import SETTINGS, difference

from birdtune.cli import main
from birdtune.cloud.ray_cluster import Claim, _share
from birdtune.errors import UsageError
from birdtune.pipeline import on_ray
from birdtune.runtime.files import read_csv, read_json

# Not 127.0.0.1, for which Ray takes the address of another interface.
HEAD, FIRST, SECOND = "127.0.0.2", "127.0.0.3", "127.0.0.4"
CODE = Path(__file__).parents[1] / "code"
PITCHES_HZ = {"Apus_apus": 900, "Bubo_bubo": 1800, "Corvus_corax": 3600}
FLAGS = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]


# ---- what a command line asks for ----------------------------------------------------------------


def test_parts_and_nodes_are_taken_out_of_the_command_line() -> None:
    line = ["--engine", "ray", "--out", "x", "--shard", "/20", "night.wav"]
    assert on_ray.asked("predict", line) == on_ray.Asked("predict", ["--out", "x", "night.wav"], 20)
    assert on_ray.asked("run", ["--engine=ray", "--nodes", "2"]) == on_ray.Asked("run", [], nodes=2)
    assert on_ray.asked("prepare", ["--shard", "1/2"]) is None and on_ray.asked("run", ["--shard"]) is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("check --engine ray", "--engine ray: expected `ray`, of prepare, predict, run, train; not of check"),
        ("run --engine slurm", "--engine slurm: expected `ray`"),
        ("run --engine", "--engine: expected one argument"),
        ("prepare --engine ray", "needs the number of parts, and it alone: --shard /20"),
        ("prepare --engine ray --shard 1/20", "needs the number of parts, and it alone"),
        ("prepare --engine ray --shard /0", "there cannot be 0 parts"),
        ("run --engine ray --nodes some", "--nodes some: expected how many nodes"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(line: str, message: str) -> None:
    name, *rest = line.split()
    with pytest.raises(UsageError, match=message):
        on_ray.asked(name, rest)


def test_a_wrong_setting_is_refused_before_the_cluster_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--engine", "ray", "--shard", "/2", "--modle", "x"]) == 2
    assert "'--modle' is not understood" in capsys.readouterr().err


def test_parts_of_a_node_do_not_get_in_each_others_way() -> None:
    nodes = [Claim(32, 4), Claim(16, 4), Claim(64)]
    assert _share(nodes, on_gpu=True) == Claim(4, 1)
    assert _share(nodes, on_gpu=False) == Claim(16)
    assert _share([Claim(8)], on_gpu=True) == Claim(8)


@pytest.mark.skipif("ray" in sys.modules, reason="Ray is loaded already")
def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "--engine", "ray"]) == 42
    assert "Ray is not installed. Install it: ./entrypoint.sh extras ray" in capsys.readouterr().err


# ---- a cluster of this machine -------------------------------------------------------------------


class Driver:
    """A command that shares its work out, in a process of its own; what it says."""

    def __init__(self, address: str, folder: Path, *line: object) -> None:
        self._log = folder / "driver.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "birdtune", *map(str, line), "--engine", "ray"], cwd=folder, stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(CODE), "RAY_ADDRESS": address, "RAY_DEDUP_LOGS": "0"},
            )  # fmt: skip

    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        until = time.monotonic() + 300
        while not (found := condition()):
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.05)
        return found

    def end(self) -> int:
        return self.process.wait(300)


class Cluster:
    """Ray's own cluster for tests, on loopback."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        small = {"object_store_memory": 80 << 20}
        head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": HEAD, **small}
        self._cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.nodes = {
            place: self._cluster.add_node(num_cpus=1, node_ip_address=place, **small) for place in (FIRST, SECOND)
        }
        self.address = self._cluster.address

    def processes(self, place: str = "") -> list[int]:
        """Processes of birdtune below the nodes, by process id; of one node, or of all."""
        wanted = [self.nodes[place]] if place else self.nodes.values()
        raylets = {node.all_processes["raylet"][0].process.pid for node in wanted}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line, given = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
                pairs = dict(each.split(b"=", 1) for each in given if b"=" in each)
                if line[1:3] == [b"-m", b"birdtune"] and int(pairs.get(b"RAY_RAYLET_PID", 0)) in raylets:
                    found.append(int(folder.name))
        return found

    def take_away(self, place: str) -> None:
        self._cluster.remove_node(self.nodes[place], allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: ./entrypoint.sh extras ray")
    found = Cluster()
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data", PITCHES_HZ, range(6))


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.long  # beside other tests, training has ended before Ray has passed on that it is cancelled
@pytest.mark.filterwarnings("ignore")
def test_processes_that_are_stopped_or_killed_on_a_cluster_come_to_the_weights_of_one(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    line = ("train", "--data", data, *FLAGS, "--model.dropout", "0", "--train.epochs", "40", "--train.batch-size", "16")
    one, two = tmp_path / "one", tmp_path / "two"

    def newest() -> str:
        return max((path.name for path in two.glob("checkpoints/1/epoch-*")), default="")

    driver = Driver(cluster.address, tmp_path, *line, "--output", two, "--nodes", 2)
    driver.wait_until(newest)
    theirs = cluster.processes()
    assert len(theirs) >= 2 and cluster.processes(FIRST) and cluster.processes(SECOND)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.end() == 143, driver.said()
    assert read_json(two / "run.json")["status"] == "interrupted", driver.said()
    assert not any(map(is_there, theirs))

    before = newest()
    driver = Driver(cluster.address, tmp_path, *line, "--output", two)
    driver.wait_until(lambda: newest() > before)
    others = [pid for pid in cluster.processes() if '"index": 1}' in environment(pid)]
    worker = int(Path(f"/proc/{others[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)  # as Ray does where memory runs short
    driver.wait_until(lambda: not is_there(others[0]))
    assert driver.end() == 0, driver.said()
    said = driver.said()
    assert "2 processes on 2 nodes, each with 1 core" in said
    assert "process 0 ended with exit code 75" in said and "process 1 was lost (" in said
    halves = ("--train.accumulate", "2", "--train.batch-size", "8")  # so that the order of adding is the same
    assert main([*map(str, line), "--output", str(one), *halves]) == 0
    assert difference(one, two) == 0


def environment(pid: int) -> str:
    """TF_CONFIG of a process."""
    with contextlib.suppress(OSError):
        given = Path(f"/proc/{pid}/environ").read_text("utf-8", "replace").split("\0")
        return next((each for each in given if each.startswith("TF_CONFIG=")), "")
    return ""


@pytest.mark.filterwarnings("ignore")
def test_the_parts_of_a_node_that_is_taken_away_are_prepared_by_the_other(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    line = ("prepare", "--data", data, *FLAGS, "--output")
    driver = Driver(cluster.address, tmp_path, *line, tmp_path / "two", "--shard", "/5")
    pid = driver.wait_until(lambda: cluster.processes(SECOND))[0]
    os.kill(pid, signal.SIGSTOP)  # so that its part is not done yet
    cluster.take_away(SECOND)
    driver.wait_until(lambda: not is_there(pid))
    assert driver.end() == 0, driver.said()
    said = driver.said()
    assert "prepare: 5 parts on 2 nodes, each with 1 core" in said
    assert re.search(r"part \d of 5 was lost \(.*\); try 1 of 5", said)
    assert "prepared in 5 parts by other commands" in said
    assert main([*map(str, line), str(tmp_path / "one")]) == 0
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one.keys() == two.keys() and all(np.array_equal(one[content], two[content]) for content in one)
    assert read_csv(tmp_path / "one/split.csv") == read_csv(tmp_path / "two/split.csv")


@pytest.mark.filterwarnings("ignore")
def test_detections_of_all_parts_are_put_together(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "output")
    assert main([*map(str, ("export", "--data", data, *output, *FLAGS, "--evaluate.bootstrap", "20"))]) == 0
    how = ("--format", "csv", "--detect.on", "0.01", "--detect.one-table", "true")
    line = ("predict", data / "Bubo_bubo", *output, *how)
    driver = Driver(cluster.address, tmp_path, *line, "--out", tmp_path / "two", "--shard", "/2")
    assert driver.end() == 0, driver.said()
    assert main([*map(str, line), "--out", str(tmp_path / "one")]) == 0
    one, two = (read_csv(tmp_path / name / "detections.csv") for name in ("one", "two"))
    assert one == two and len({row["recording"] for row in one}) == 12


@pytest.mark.filterwarnings("ignore")
def test_a_mistake_ends_it_at_once_with_its_code(cluster: Cluster, tmp_path: Path) -> None:
    driver = Driver(cluster.address, tmp_path, "prepare", "--data", tmp_path / "none", *FLAGS, "--shard", "/3")
    assert driver.end() == 42
    assert "a process on the Ray cluster ended with exit code 42" in driver.said()
    assert "try 1 of 5" not in driver.said() and not cluster.processes(FIRST)
