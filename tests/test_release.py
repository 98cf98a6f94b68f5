"""What servers see: a promoted model appears whole, a model that is kept back never does, and a rollback is one."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers_s3 import BUCKET, S3, emptied, s3_server
from test_base_model import settings, write_data
from test_gate import OLD, UNTRAINED
from test_job import record
from test_job import run as run_job

from birdtune.config import Config
from birdtune.errors import InputError, RetryableError, SettingsError
from birdtune.pipeline import release
from birdtune.pipeline import run as job
from birdtune.runtime.files import file_sha256, read_csv, read_json, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts

pytestmark = pytest.mark.usefixtures("in_one_process")

GATED = {"gate__champion": "latest"}


def run(data: Path, output: Path, **changes: Any) -> None:
    given = {"split__test_fraction": 0.3, "evaluate__bootstrap": 200, "train__epochs": 3, **changes}
    assert run_job(settings(data, output, **given), None, "export") == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data", OLD, range(12))


@pytest.fixture(scope="module")
def good(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose version 1 is good."""
    output = tmp_path_factory.mktemp("good") / "output"
    run(data, output)
    return output


@pytest.fixture
def output(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "output"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as found:
        yield found


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    return emptied(server, monkeypatch)


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


class Server:
    """What TensorFlow Serving's file system source does, without a pause: it lists a folder, and takes the version with
    the highest number among the names that are numbers. What it takes must be whole at that moment.

    Attributes:
        served: versions, one after another.
        broken: those that lacked something when they were seen.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.served, self.broken = folder, list[int](), list[str]()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._poll)

    def _poll(self) -> None:
        names = ("saved_model.pb", "model.json", "labels.csv", "variables/variables.index")
        while not self._stop.is_set():
            numbers = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
            if numbers and self.served[-1:] != [max(numbers)]:
                found = self.folder / str(max(numbers))
                self.served.append(max(numbers))
                sizes = [(found / name).stat().st_size for name in names if (found / name).exists()]
                if len(sizes) < len(names) or not all(sizes) or not list(found.glob("variables/variables.data*")):
                    self.broken.append(f"{max(numbers)}: {sizes}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


def test_servers_see_whole_models_none_that_is_kept_back_and_a_rollback(data: Path, tmp_path: Path) -> None:
    output, place = tmp_path / "output", tmp_path / "served"
    place.mkdir()
    own, further = Server(output / "model" / "birdtune"), Server(place)
    more = {"gate__publish_to": str(place)}
    with own.watching(), further.watching():
        run(data, output, **more)
        run(data, output, **UNTRAINED, **GATED, **more)
        assert (output / "candidates/2/saved_model.pb").is_file() and record(output)["promoted"] is False
        assert own.served == further.served == [1]
        run(data, output, **UNTRAINED, **more)  # somebody wants it all the same
        assert digests(place / "2") == digests(output / "model/birdtune/2") and record(output)["promoted"] is True
        run(data, output, **UNTRAINED, **GATED, **more)  # a schedule leaves that as it is
        assert further.served == [1, 2] and record(output)["outcome"] == "unchanged"
        run(data, output, **UNTRAINED, gate__champion=1, **more)  # and somebody takes it back
    assert own.served == further.served == [1, 2, 1]
    rows = read_csv(output / "history.csv")
    assert [row["version"] + row["promoted"] for row in rows] == ["1yes", "2no", "2yes", "2no"]
    assert own.broken == further.broken == []
    assert [path.name for path in place.iterdir()] == ["1"]
    assert record(output)["published"] == [{"place": str(place), "version": 1, "has_it": False, "error": None}]
    later = tmp_path / "later"  # a place that comes while the newest version is a candidate
    later.mkdir()
    run(data, output, **UNTRAINED, **GATED, gate__publish_to=str(later))
    assert digests(later / "1") == digests(output / "model/birdtune/1") and not (later / "2").exists()


def test_a_place_that_fails_costs_the_run_nothing_and_the_next_start_tries_it_alone(
    data: Path, output: Path, s3: S3, tmp_path: Path
) -> None:
    place = tmp_path / "served"
    place.mkdir()
    s3.faults.add("PUT", "saved_model.pb", "damage", times=3)
    more = {
        "gate__publish_to": f"{place},s3://{BUCKET}/served", "cloud__endpoint": s3.endpoint, "cloud__path_style": True,
    }  # fmt: skip
    with pytest.raises(RetryableError, match=r"version 1 is not as it should be in 1 of 2 places: s3://.*damages it"):
        run(data, output, **more)
    found = record(output)
    assert (found["status"], found["exit_code"], found["stage"]) == ("failed", 75, "publish")
    assert found["promoted"] is True and "export" in found["done"]
    rows = [(row["version"], row["has_it"], row["error"] is None) for row in found["published"]]
    assert rows == [(1, True, True), (None, False, False)]
    model = digests(output / "model/birdtune/1")
    assert digests(place / "1") == model
    s3.put("served/1/variables/old", b"of an earlier try")
    s3.faults.seen.clear()
    before = (place / "1").stat().st_mtime_ns
    run(data, output, **more)
    assert record(output)["exit_code"] == 0 and (place / "1").stat().st_mtime_ns == before
    assert [row["version"] for row in record(output)["published"]] == [1, 1]
    assert set(s3.stored("served/")) == {f"served/1/{name}" for name in model}
    assert all(s3.get(f"served/1/{name}") == (output / "model/birdtune/1" / name).read_bytes() for name in model)
    sent = [path for method, path in s3.faults.seen if method in ("PUT", "POST", "DELETE")]
    assert "/saved_model.pb" in sent[-1]
    s3.faults.seen.clear()
    run(data, output, **more)
    assert not [row for row in s3.faults.seen if row[0] in ("PUT", "POST", "DELETE")]


def test_a_model_that_is_taken_back_goes_from_s3_its_graph_first(data: Path, output: Path, s3: S3) -> None:
    more = {"gate__publish_to": f"s3://{BUCKET}/served", "cloud__endpoint": s3.endpoint, "cloud__path_style": True}
    run(data, output, **more)
    assert len(s3.stored("served/1/")) > 5
    found = read_json(output / "logs/1/run.json")
    write_json(output / "logs/1/run.json", {**found, "promoted": False})
    s3.faults.seen.clear()
    run(data, output, **GATED, **more)
    gone = [path for method, path in s3.faults.seen if method == "DELETE"]
    assert s3.stored("served/") == [] and gone[0].endswith("/saved_model.pb")


def test_the_output_is_kept_before_any_place_is_changed(data: Path, output: Path, tmp_path: Path) -> None:
    place = tmp_path / "served"
    place.mkdir()

    def fail() -> None:
        assert read_json(output / "logs/1/run.json")["promoted"] is True
        raise RetryableError("S3 is away")

    config = settings(data, output, split__test_fraction=0.3, evaluate__bootstrap=200, train__epochs=3,
                      gate__publish_to=str(place))
    with pytest.raises(RetryableError, match="S3 is away"):
        job.run(config, Journal(quiet=True), Interrupts(), until="export", keep=fail)
    assert not list(place.iterdir())


def test_a_version_of_another_output_folder_is_not_replaced(data: Path, output: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(output / "model/birdtune", tmp_path / "served"))
    facts = read_json(place / "1/model.json")
    write_json(place / "1/model.json", {**facts, "fingerprint": "another"})
    with pytest.raises(InputError, match=r"served: has a version 1 of another output folder\. Give each"):
        run(data, output, gate__publish_to=str(place))
    assert record(output)["exit_code"] == 42 and record(output)["promoted"] is True
    with pytest.raises(InputError, match=r"served: has a version 1 of another output folder\. Give each"):
        run(data, output, **UNTRAINED, **GATED, gate__publish_to=str(place))  # version 2 is not promoted, 1 in service
    assert read_json(place / "1/model.json")["fingerprint"] == "another"


def test_the_same_model_of_another_output_folder_is_another(data: Path, output: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "served", tmp_path / "other"
    place.mkdir()
    run(data, output, gate__publish_to=str(place))
    model = digests(place)
    with pytest.raises(InputError, match=r"served: has a version 1 of another output folder\. Give each"):
        run(data, other, gate__publish_to=str(place))
    assert record(other)["weights_sha256"] == record(output)["weights_sha256"]
    champion = str(output / "model/birdtune/1")
    run(data, other, gate__champion=champion, gate__publish_to=str(place))  # which takes its own back, and none else
    found = record(other)
    assert found["promoted"] is False and found["gate"]["champion"]["folder"] == champion
    assert digests(place) == model


def test_a_higher_version_of_another_output_folder_is_named(
    data: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "served"
    shutil.copytree(output / "model/birdtune/1", place / "9")
    config = settings(data, output, split__test_fraction=0.3, evaluate__bootstrap=200, train__epochs=3,
                      gate__publish_to=str(place))
    assert job.run(config, Journal(), Interrupts(), until="export") == 0
    assert "has version 9, which servers take in place of version 1" in capsys.readouterr().out
    assert record(output)["published"] == [{"place": str(place), "version": 9, "has_it": True, "error": None}]


def test_a_folder_that_goes_away_meanwhile_is_worth_another_start(
    data: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "served"
    place.mkdir()
    required = release.require

    def require_and_lose(config: Config) -> None:
        required(config)
        place.rmdir()

    monkeypatch.setattr(release, "require", require_and_lose)
    with pytest.raises(RetryableError, match=r"served: is gone"):
        run(data, output, gate__publish_to=str(place))
    assert record(output)["exit_code"] == 75 and not place.exists()


def test_a_place_that_cannot_be_is_refused_before_anything_is_computed(
    data: Path, tmp_path: Path, s3: S3
) -> None:
    with pytest.raises(InputError, match=r"--gate\.publish-to .*there is no such folder.*Make it, or mount it"):
        run(data, tmp_path / "output", gate__publish_to=str(tmp_path / "served"))
    with pytest.raises(SettingsError, match=r"--gate\.publish-to s3://X: is no address in S3"):
        run(data, tmp_path / "output", gate__publish_to="s3://X")
    with pytest.raises(InputError, match=r"--gate\.publish-to s3://nowhere/birds: there is no such bucket"):
        run(data, tmp_path / "output", gate__publish_to="s3://nowhere/birds", cloud__endpoint=s3.endpoint)
    (tmp_path / "output/models").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"lies in the output folder, which has the promoted models in model/bird"):
        run(data, tmp_path / "output", gate__publish_to=str(tmp_path / "output/models"))
    assert not (tmp_path / "output/cache").exists()
