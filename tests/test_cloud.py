"""S3 in and out, against a real server of S3 and a proxy that cuts, damages and throttles."""

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_s3 import BUCKET, CREDENTIALS, S3, emptied, s3_server
from makers import write_tones

from birdtune import cli
from birdtune.audio.logmel import VGGISH
from birdtune.cli import main
from birdtune.cloud import client as clients
from birdtune.cloud import fetch as fetches
from birdtune.cloud import lease, places, publish, session, staging
from birdtune.cloud.fetch import fetch, index_of
from birdtune.cloud.places import Place, place_of
from birdtune.cloud.publish import EmbeddingsMirror, Mirror, send
from birdtune.config import Config
from birdtune.errors import BusyError, InputError, RetryableError, SettingsError
from birdtune.models.head_kinds import Pooling
from birdtune.pipeline.shards import Shard
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import FORMAT
from birdtune.runtime.signals import Interrupts
from birdtune.settings import CloudSettings

QUIET, STOP = Journal(quiet=True), Interrupts()
INPUT, OUTPUT = Place(BUCKET, "in"), Place(BUCKET, "out")


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as found:
        yield found


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setattr(fetches, "_PAUSE_S", 0.0)
    return emptied(server, monkeypatch)


def storage_of(s3: S3, **settings: object) -> clients.Storage:
    return clients.connect(CloudSettings.model_validate({"endpoint": s3.endpoint, "connections": 4, **settings}))


def content(path: Path) -> dict[str, bytes]:
    """Files below a folder, without what says that it is kept in step with S3."""
    files = (each for each in path.rglob("*") if each.is_file() and each.name != publish._MARK)
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# ---- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["s3://birds/a/b", "s3:/birds/a/b", Path("s3://birds/a/b"), "s3://birds/a/b/"])
def test_an_address_is_a_bucket_and_a_key(text: str | Path) -> None:
    assert place_of(text) == Place("birds", "a/b")


@pytest.mark.parametrize("text", ["/data", "input", "s3", "./s3:/birds", 7, None, "https://birds/a"])
def test_what_is_no_address_is_a_path_of_this_machine(text: object) -> None:
    assert place_of(text) is None


@pytest.mark.parametrize("text", ["s3://", "s3://Birds/a", "s3://birds/../a", "s3://birds/a//b/./c", "s3://b/a"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no address in S3; expected s3://BUCKET/KEY"):
        place_of(text)


def test_settings_and_arguments_get_paths_of_this_machine(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"input": "s3://birds/in", "model": {"checkpoint": "s3://weights/vggish.ckpt"}, "init_from": "latest"}
    )
    local = places.with_local_settings(config, lambda place: place.local(tmp_path))
    assert local.input == tmp_path / "birds/in" and local.output == Path("output") and local.init_from == "latest"
    assert local.model.checkpoint == str(tmp_path / "weights/vggish.ckpt")
    several = Config.model_validate({"labels": {"annotations": "s3://birds/a, marks.csv,s3://birds/b/c.csv"}})
    assert places.settings(several) == {"labels.annotations": [Place("birds", "a"), Place("birds", "b/c.csv")]}
    local = places.with_local_settings(several, lambda place: place.local(tmp_path))
    assert local.labels.annotations == f"{tmp_path / 'birds/a'},marks.csv,{tmp_path / 'birds/b/c.csv'}"
    options = Namespace(files=[Path("s3://birds/night.wav"), Path("day.wav")], out=None, input="s3://birds/in")
    vars(options)["gate.publish-to"] = "s3://birds/serve,s3://birds/too"
    assert places.arguments(options) == {"files": [Place("birds", "night.wav")]}
    found = places.with_local_arguments(options, lambda place: place.local(tmp_path))
    assert found.files == [tmp_path / "birds/night.wav", Path("day.wav")]


# ---- in -----------------------------------------------------------------------------------------


def test_what_lies_in_s3_comes_once_and_again_only_what_has_changed(s3: S3, tmp_path: Path) -> None:
    for name in ("a/1.wav", "a/2.wav", "b/1.wav"):
        s3.put(f"in/{name}", name.encode() * 1000)
    s3.put("in/a/", b"")  # a folder, as consoles show it
    s3.put("inside/1.wav", b"of another prefix")
    found = fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP)
    assert found == tmp_path / BUCKET / "in"
    assert content(found) == {name: name.encode() * 1000 for name in ("a/1.wav", "a/2.wav", "b/1.wav")}
    s3.put("in/a/2.wav", b"changed")
    s3.client.delete_object(Bucket=BUCKET, Key="in/b/1.wav")
    (found / "a/1.wav").write_bytes(b"touched here")
    (found / "own.txt").write_text("of this machine")
    s3.faults.seen.clear()
    fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP)
    assert content(found) == {"a/1.wav": b"a/1.wav" * 1000, "a/2.wav": b"changed", "own.txt": b"of this machine"}
    assert sorted(path for method, path in s3.faults.seen if ".wav" in path) == [
        f"/{BUCKET}/in/a/1.wav", f"/{BUCKET}/in/a/2.wav"
    ]  # fmt: skip


def test_an_address_may_be_one_object_or_the_files_of_a_checkpoint(s3: S3, tmp_path: Path) -> None:
    for key in ("w/model.ckpt.index", "w/model.ckpt.data-00000-of-00001", "w/model.ckpt2.index", "w/net.tflite"):
        s3.put(key, key.encode())
    storage = storage_of(s3)
    assert fetch(storage, Place(BUCKET, "w/net.tflite"), tmp_path, QUIET, STOP).read_bytes() == b"w/net.tflite"
    found = fetch(storage, Place(BUCKET, "w/model.ckpt"), tmp_path, QUIET, STOP)
    assert found == tmp_path / BUCKET / "w/model.ckpt"
    assert sorted(content(found.parent)) == ["model.ckpt.data-00000-of-00001", "model.ckpt.index", "net.tflite"]


def test_keys_that_would_leave_the_folder_are_left_out_and_named(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("in/../../evil.wav", "in//double.wav", "in/good.wav", f"in/{'n' * 300}.wav", "in/a", "in/a/2.wav"):
        s3.put(key, b"sound")
    fetch(storage_of(s3), INPUT, tmp_path / "s3", Journal(), STOP)
    assert sorted(path.name for path in tmp_path.rglob("*.wav")) == ["2.wav", "good.wav"]
    assert "4 objects cannot be files" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["cut", "drop", 500, 503, "damage", "delay"])
def test_a_transfer_survives_what_the_network_does(s3: S3, tmp_path: Path, fault: int | str) -> None:
    sound = os.urandom(1 << 20)
    s3.put("in/1.wav", sound)
    s3.faults.add("GET", "1.wav", fault, 2)
    assert (fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP) / "1.wav").read_bytes() == sound
    assert [path.name for path in (tmp_path / BUCKET / "in").iterdir()] == ["1.wav"]


def test_a_transfer_that_breaks_off_goes_on_where_it_did(s3: S3, tmp_path: Path) -> None:
    s3.put("in/1.wav", os.urandom(1 << 20))
    ranges: list[str] = []
    storage = storage_of(s3)
    storage.client.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: ranges.append(str(request.headers.get("Range", b""), "ascii"))
    )
    s3.faults.add("GET", "1.wav", "cut")
    fetch(storage, INPUT, tmp_path, QUIET, STOP)
    assert ranges == ["", f"bytes={1 << 19}-"]


@pytest.mark.parametrize("left", ["half", "other", "all"])
def test_a_transfer_goes_on_where_a_killed_process_was(s3: S3, tmp_path: Path, left: str) -> None:
    sound = os.urandom(1 << 20)
    s3.put("in/1.wav", sound)
    storage, ranges = storage_of(s3), list[str]()
    storage.client.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: ranges.append(str(request.headers.get("Range", b""), "ascii"))
    )
    temporary = index_of(INPUT, tmp_path).temporary("1.wav")
    temporary.parent.mkdir(parents=True)
    temporary.write_bytes({"half": sound[: 1 << 19], "other": os.urandom(1 << 19), "all": sound}[left])
    fetch(storage, INPUT, tmp_path, QUIET, STOP)
    assert content(tmp_path / BUCKET) == {"in/1.wav": sound} and not list(temporary.parent.iterdir())
    assert ranges == {"half": [f"bytes={1 << 19}-"], "other": [f"bytes={1 << 19}-", ""], "all": []}[left]


def test_what_has_arrived_is_known_while_more_arrives(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetches, "_INDEX_EVERY_S", -1.0)
    known: list[int] = []
    monkeypatch.setattr(fetches, "write_json", lambda path, rows, **_: known.append(len(rows)))
    for number in range(20):
        s3.put(f"in/{number}.wav", b"sound")
    fetch(storage_of(s3, connections=1), INPUT, tmp_path, QUIET, STOP)
    assert known[-1] == 20 and len(set(known)) > 2


def test_two_processes_may_fetch_the_same(s3: S3, tmp_path: Path) -> None:
    s3.put("in/1.wav", b"sound")
    temporary = index_of(INPUT, tmp_path).temporary("1.wav")
    temporary.parent.mkdir(parents=True)
    with temporary.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP)
    assert content(tmp_path / BUCKET) == {"in/1.wav": b"sound"}
    assert list(temporary.parent.iterdir()) == [temporary]


def test_what_arrives_damaged_every_time_is_never_used(s3: S3, tmp_path: Path) -> None:
    s3.put("in/1.wav", b"sound")
    s3.faults.add("GET", "1.wav", "damage", 99)
    with pytest.raises(RetryableError, match=r"s3://birds/in/1\.wav: what arrives is not what was stored"):
        fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP)
    assert content(tmp_path / BUCKET) == {}


@pytest.mark.parametrize(
    "key, settings, fault, kind, words",
    [
        ("missing", {}, None, InputError, "s3://birds/missing: nothing lies there"),
        ("in", {}, 403, InputError, "clock differs from that of S3"),
        ("in", {"endpoint": "http://127.0.0.1:9"}, None, RetryableError, "S3 cannot be reached"),
    ],
)  # fmt: skip
def test_what_s3_refuses_is_named_with_what_to_do(
    s3: S3, tmp_path: Path, key: str, settings: dict[str, str], fault: int | None, kind: type[Exception], words: str
) -> None:
    s3.put("in/1.wav", b"sound")
    if fault:
        s3.faults.add("GET", "prefix=in", fault, 99)
    with pytest.raises(kind, match=words):
        fetch(storage_of(s3, **settings), Place(BUCKET, key), tmp_path, QUIET, STOP)


def test_a_bucket_that_is_not_there_is_an_error_of_the_input(s3: S3, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s3://no-such-bucket/in: there is no such bucket"):
        fetch(storage_of(s3), Place("no-such-bucket", "in"), tmp_path, QUIET, STOP)


def test_without_credentials_it_is_said_where_they_come_from(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3.put("in/1.wav", b"sound", ACL="public-read")
    with pytest.raises(InputError, match=r"no credentials were found.*AWS_SESSION_TOKEN"):
        fetch(storage_of(s3), INPUT, tmp_path, QUIET, STOP)
    assert (fetch(storage_of(s3, anonymous=True), INPUT, tmp_path, QUIET, STOP) / "1.wav").read_bytes() == b"sound"


# ---- out ----------------------------------------------------------------------------------------


def mirror_of(s3: S3, folder: Path, every_s: float = 60.0) -> Mirror:
    return Mirror(storage_of(s3), OUTPUT, folder, QUIET, every_s)


def make(output: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)


def test_an_output_is_published_without_what_is_this_machines_own(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path)
    own = {"cache/f/1": "c", ".lock": "", ".unfinished-1": "", "checkpoints/1/.unfinished-2/w": "", ".reserve": "r"}
    make(mirror.output, {"run.json": "{}", "checkpoints/1/e1/w": "1", **own})
    mirror.publish()
    assert s3.stored() == ["out/checkpoints/1/e1/w", "out/run.json"]
    make(mirror.output, {"checkpoints/1/e2/w": "2", "run.json": "{2}"})
    (mirror.output / "checkpoints/1/e1/w").unlink()
    s3.faults.seen.clear()
    mirror.publish()
    assert s3.stored() == ["out/checkpoints/1/e2/w", "out/run.json"] and s3.get("out/run.json") == b"{2}"
    assert [(method, path.split("/")[-1]) for method, path in s3.faults.seen] == [
        ("PUT", "w"), ("PUT", "run.json"), ("DELETE", "w")
    ]  # fmt: skip
    s3.faults.seen.clear()
    mirror.publish()
    assert s3.faults.seen == []


def test_what_refers_to_others_goes_behind_them_and_run_json_last(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path)
    names = ["model/birds/1/variables/v.index", "model/birds/1/saved_model.pb", "logs/1/run.json", "run.json"]
    make(mirror.output, dict.fromkeys(names, "x"))
    s3.faults.add("PUT", "v.index", 503)  # the others would overtake it
    s3.faults.add("PUT", "saved_model.pb", 503)
    mirror.publish()
    puts = [path.removeprefix(f"/{BUCKET}/out/") for method, path in s3.faults.seen if method == "PUT"]
    assert list(dict.fromkeys(reversed(puts)))[::-1] == names


def test_a_record_waits_for_what_was_made_while_others_were_sent(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = mirror_of(s3, tmp_path)

    def send_slowly(storage: clients.Storage, place: Place, path: Path) -> tuple[str, os.stat_result]:
        make(mirror.output, {"reports/1/report.html": "r", "run.json": "done"})  # by the job
        return send(storage, place, path)

    make(mirror.output, {"checkpoints/1/w": "w", "run.json": "running"})
    with monkeypatch.context() as patch:
        patch.setattr(publish, "send", send_slowly)
        mirror.publish()
    assert s3.stored() == ["out/checkpoints/1/w"]
    mirror.publish()
    assert s3.get("out/run.json") == b"done" and "out/reports/1/report.html" in s3.stored()


def test_another_machine_finds_what_was_published_and_nothing_else(s3: S3, tmp_path: Path) -> None:
    first, second = mirror_of(s3, tmp_path / "1"), mirror_of(s3, tmp_path / "2")
    make(first.output, {"run.json": "{}", "checkpoints/1/e1/w": "1"})
    first.publish()
    # Of an earlier start here, which did not get so far as to publish it.
    make(second.output, {"checkpoints/1/e7/w": "7", "cache/f/1": "c"})
    second.fetch(STOP)
    assert content(second.output) == {"run.json": b"{}", "checkpoints/1/e1/w": b"1", "cache/f/1": b"c"}
    [aside] = second.output.parent.glob("out.superseded-*")
    assert content(aside) == {"checkpoints/1/e7/w": b"7"}
    s3.faults.seen.clear()
    second.publish()
    assert s3.faults.seen == []


def test_a_machine_goes_on_with_what_it_could_not_publish(s3: S3, tmp_path: Path) -> None:
    make(mirror_of(s3, tmp_path).output, {"run.json": "{}", "checkpoints/1/e1/w": "1"})
    mirror_of(s3, tmp_path).publish()
    later = {"run.json": "{2}", "checkpoints/1/e2/w": "2"}
    make(mirror_of(s3, tmp_path).output, later)
    (mirror_of(s3, tmp_path).output / "checkpoints/1/e1/w").unlink()  # lost
    again = mirror_of(s3, tmp_path)
    again.fetch(STOP)
    assert content(again.output) == {"run.json": b"{2}", "checkpoints/1/e2/w": b"2", "checkpoints/1/e1/w": b"1"}
    again.publish()
    assert s3.stored() == ["out/checkpoints/1/e1/w", "out/checkpoints/1/e2/w", "out/run.json"]
    assert s3.get("out/run.json") == b"{2}"


STORE = "cache/vggish/frozen-1-hop96"


def test_what_changed_here_since_is_moved_aside_where_another_job_has_gone_on(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path)
    make(mirror.output, {"run.json": "1", "logs/1/run.json": "1", "reports/1/report.html": "1"})
    mirror.publish()
    make(mirror.output, {"run.json": "mine", "model/m/1/saved_model.pb": "mine"})
    s3.put("out/run.json", b"theirs")
    s3.put("out/model/m/1/saved_model.pb", b"theirs")
    mirror_of(s3, tmp_path).fetch(STOP)
    theirs = {"run.json", "model/m/1/saved_model.pb"}
    assert content(mirror.output) == {
        **dict.fromkeys(theirs, b"theirs"), **dict.fromkeys(("logs/1/run.json", "reports/1/report.html"), b"1"),
    }  # fmt: skip
    (aside,) = mirror.output.parent.glob("out.superseded-*")
    assert content(aside) == dict.fromkeys(theirs, b"mine")


def test_what_is_over_is_removed_from_s3_by_nobody(s3: S3, tmp_path: Path) -> None:
    first = mirror_of(s3, tmp_path)
    make(first.output, {"run.json": "{}", "checkpoints/1/e1/w": "w", "logs/1/run.json": "{}", "logs/2/run.json": "{}"})
    first.publish()
    before = s3.stored()
    shutil.rmtree(first.output)  # a disk that was lost, and the index on another one
    second = mirror_of(s3, tmp_path)
    second.fetch(STOP, staging._read_by_writers)
    make(second.output, {"logs/2/history.json": "{}"})
    second.publish()
    assert s3.stored() == sorted([*before, "out/logs/2/history.json"])


def test_a_lifecycle_rule_is_no_other_job(s3: S3, tmp_path: Path) -> None:
    first = mirror_of(s3, tmp_path)
    make(first.output, {"checkpoints/1/e1/w": "w", "logs/1/run.json": "{}", "logs/2/run.json": "{}"})
    first.publish()
    make(first.output, {"checkpoints/2/e1/w": "not published"})
    s3.client.delete_object(Bucket=BUCKET, Key="out/checkpoints/1/e1/w")
    mirror_of(s3, tmp_path).fetch(STOP, staging._read_by_writers)
    assert content(first.output)["checkpoints/2/e1/w"] == b"not published"
    assert not list(first.output.parent.glob("out.superseded-*"))


def embeddings_of(s3: S3, folder: Path) -> EmbeddingsMirror:
    return EmbeddingsMirror(storage_of(s3), OUTPUT, folder, QUIET, 60.0)


def make_store(output: Path, shards: dict[str, str], *, whole: bool = True) -> dict[str, bytes]:
    """A store of embeddings with some shards; what is in it."""
    make(output / STORE, {**shards, "index.jsonl": "".join(shards)})
    if whole:
        make(output / STORE, {"whole.json": json.dumps({name: [len(text), 1, 1] for name, text in shards.items()})})
    return content(output / STORE)


def test_embeddings_are_published_when_complete_and_found_by_a_machine_without_any(s3: S3, tmp_path: Path) -> None:
    first, second = embeddings_of(s3, tmp_path / "1"), embeddings_of(s3, tmp_path / "2")
    one, two = tmp_path / "1/birds/out", tmp_path / "2/birds/out"
    make(one, {"cache/vggish/shard-0.rows": "features", f"{STORE}-copy/shard-3.rows": "half"})
    make_store(one, {"shard-1.rows": "rows"}, whole=False)
    first.publish()
    assert s3.stored() == []
    whole = make_store(one, {"shard-1.rows": "rows"})
    first.publish()
    puts = [path.rpartition("/")[2] for method, path in s3.faults.seen if method == "PUT"]
    assert puts[0] == "shard-1.rows" and sorted(puts) == ["index.jsonl", "shard-1.rows", "whole.json"]
    make_store(one, {"shard-1.rows": "rows", "shard-2.rows": "more"}, whole=False)  # more recordings
    first.publish()
    assert len(s3.stored()) == 3
    second.fetch(STOP)
    assert content(two / STORE) == whole and content(two).keys() == {f"{STORE}/{name}" for name in whole}
    s3.faults.seen.clear()
    second.publish()
    first.fetch(STOP)
    assert {method for method, _ in s3.faults.seen} == {"GET"} and len(s3.faults.seen) == 1, "a listing"
    mirror_of(s3, tmp_path / "3").fetch(STOP)
    assert not (tmp_path / "3/birds/out").exists(), "who only reads needs none"
    shutil.rmtree(two / STORE)  # of frozen layers that are not used any more
    second.publish()
    assert s3.stored() == []


def test_embeddings_that_would_fill_the_disk_are_made_again(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "1/birds/out", {"shard-1.rows": "rows"})
    embeddings_of(s3, tmp_path / "1").publish()
    monkeypatch.setattr(publish, "free_bytes", lambda path: 30)
    embeddings_of(s3, tmp_path / "2").fetch(STOP)
    assert not (tmp_path / "2").exists() and len(s3.stored()) == 3


def test_nothing_is_published_while_it_is_not_known_whose_the_output_is(s3: S3, tmp_path: Path) -> None:
    mirror = Mirror(storage_of(s3), OUTPUT, tmp_path, QUIET, 60.0, lambda: False)
    make(mirror.output, {"run.json": "{}"})
    with pytest.raises(RetryableError, match="another may work there; nothing is published"):
        mirror.publish()
    assert s3.stored() == []


def test_an_end_while_s3_is_away_for_a_moment_is_waited_out(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_PAUSE_S", 0.01)
    mirror = mirror_of(s3, tmp_path)
    mirror.start()
    make(mirror.output, {"run.json": "{}"})
    s3.faults.add("PUT", "run.json", 500, 7)  # more than the attempts of one request
    mirror.finish(patience_s=60)
    assert s3.stored() == ["out/run.json"]


def test_who_has_to_stop_does_not_wait_for_s3(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_LEAVING_S", 0.1)
    mirror = mirror_of(s3, tmp_path, every_s=0.01)
    mirror.start()
    make(mirror.output, {"run.json": "{}"})
    s3.faults.add("PUT", "run.json", "delay")
    wait_until(lambda: any(row[0] == "PUT" for row in s3.faults.seen))
    with pytest.raises(RetryableError, match=r"S3 does not answer\. Run again"):
        mirror.leave()


def test_what_vanishes_with_its_folder_stays_in_s3(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path)
    make(mirror.output, {"run.json": "{}", "model/m/1/saved_model.pb": "m", "checkpoints/1/e1/w": "w"})
    mirror.start()
    mirror.publish()
    before = s3.stored()
    shutil.rmtree(mirror.output)
    make(mirror.output, {"run.json": "{}"})  # a job that goes on, not knowing
    with pytest.raises(RetryableError, match=r"birds/out: is gone"):
        mirror.finish(patience_s=0)
    assert s3.stored() == before and len(before) == 3


def test_an_end_while_s3_refuses_all_is_quick(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path)
    mirror.start()
    make(mirror.output, {f"checkpoints/1/e{number}": "1" for number in range(500)})
    s3.faults.add("PUT", "out/", 503, 10_000)
    with pytest.raises(RetryableError, match="SlowDown"):
        mirror.finish(patience_s=0)
    tried = Counter(path for method, path in s3.faults.seen if method == "PUT")
    assert 0 < len(tried) < 50 and max(tried.values()) == 3  # the first that fail, not the others, and not for long


def test_what_is_made_while_a_command_works_goes_out_meanwhile(s3: S3, tmp_path: Path) -> None:
    mirror = mirror_of(s3, tmp_path, every_s=0.05)
    mirror.start()
    s3.faults.add("PUT", "e1/w", 500, 3)
    make(mirror.output, {"checkpoints/1/e1/w": "1"})
    until = time.monotonic() + 60
    while s3.stored() == [] and time.monotonic() < until:
        time.sleep(0.05)
    assert s3.stored() == ["out/checkpoints/1/e1/w"]
    make(mirror.output, {"run.json": "{}"})
    mirror.finish(patience_s=0)
    assert s3.stored() == ["out/checkpoints/1/e1/w", "out/run.json"]


@pytest.mark.parametrize("size", [1000, 6 << 20])
@pytest.mark.parametrize("fault", ["drop", 503, "damage", "lost"])
def test_what_is_sent_is_stored_as_it_was(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int | str, size: int
) -> None:
    monkeypatch.setattr(publish, "_PART_BYTES", 5 << 20)  # the least that S3 takes
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(size))
    s3.faults.add("PUT", "weights", fault)
    send(storage_of(s3), OUTPUT.below("weights"), path)
    assert hashlib.sha256(s3.get("out/weights")).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_what_is_stored_damaged_every_time_is_an_error(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    s3.faults.add("PUT", "out/w", "damage", 99)
    with pytest.raises(RetryableError, match="what was stored is not what was sent"):
        send(storage_of(s3), OUTPUT.below("w"), tmp_path / "w")


# ---- one job at a time --------------------------------------------------------------------------


def test_of_two_jobs_one_works_at_an_output(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.1)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    storage = storage_of(s3)
    with lease.alone_at(storage, OUTPUT, QUIET, STOP):
        busy = pytest.raises(BusyError, match=r"s3://birds/out: another job is working there: `birdtune .*on host")
        with busy, lease.alone_at(storage, OUTPUT, QUIET, STOP):
            pass
        assert s3.stored() == ["out/.lease.json"]
    assert s3.stored() == []


def test_a_job_that_vanished_is_followed_when_its_lease_has_expired(
    s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    s3.put("out/.lease.json", b'{"command": "run", "host": "gone", "pid": 7, "since": "then"}')
    with lease.alone_at(storage_of(s3), OUTPUT, Journal(), STOP):
        assert json.loads(s3.get("out/.lease.json"))["pid"] == os.getpid()
    said = capsys.readouterr().out
    assert "The last job there ended without finishing: `birdtune run` on host gone, process 7, since then" in said


def test_a_lease_whose_answer_was_lost_is_still_ones_own(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.faults.add("PUT", ".lease.json", "lost")
    with lease.alone_at(storage_of(s3), OUTPUT, QUIET, STOP):
        assert s3.stored() == ["out/.lease.json"]


def test_an_outage_costs_no_lease(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    with lease.alone_at(storage_of(s3), OUTPUT, QUIET, STOP) as is_held:
        s3.faults.add("PUT", ".lease.json", 403, 10_000)
        wait_until(lambda: not is_held())
        s3.faults.rows.clear()
        wait_until(is_held)


def test_a_storage_that_ignores_conditions_is_refused(s3: S3) -> None:
    storage = storage_of(s3)
    storage.client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: request.headers.pop("If-None-Match", None) and None
    )
    refused = pytest.raises(InputError, match="this storage ignores `If-None-Match`")
    with refused, lease.alone_at(storage, OUTPUT, QUIET, STOP):
        pass


def test_who_loses_the_lease_stops_at_once(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(lease, "os", SimpleNamespace(_exit=leave))
    with lease.alone_at(storage_of(s3), OUTPUT, QUIET, STOP):
        s3.put("out/.lease.json", b'{"command": "run", "host": "other", "pid": 8, "since": "now"}')
        assert ended.wait(60) and codes[0] == 75
    assert s3.stored() == ["out/.lease.json"]  # the other job's


# ---- a command ----------------------------------------------------------------------------------


def test_a_command_finds_its_input_and_leaves_its_output(s3: S3, tmp_path: Path) -> None:
    s3.put("in/job.yaml", b"train: {epochs: 3}\ndata: s3://birds/recordings\n"
           b"labels: {annotations: 's3://birds/marks/a,s3://birds/marks/b'}\n")
    s3.put("in/bird_id_map.csv", b"name,id\n")
    s3.put("recordings/robin/1.wav", b"sound")
    for name in "ab":
        s3.put(f"marks/{name}/1.txt", b"1\t2\trobin\n")
    flags = {"input": "s3://birds/in", "output": "s3://birds/out", "cloud.endpoint": s3.endpoint}
    flags["cloud.folder"] = str(tmp_path)
    folder = session.settings_folder(flags, {}, QUIET, STOP)
    assert folder == tmp_path / "birds/in" and content(folder).keys() == {"job.yaml"}
    from birdtune.runtime import configure

    config = configure.load(flags, {}, job_yaml=folder)
    assert config.train.epochs == 3
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, options):
        assert content(local.input).keys() == {"job.yaml", "bird_id_map.csv"}
        assert content(local.data_folder) == {"robin/1.wav": b"sound"}
        assert all(content(Path(each)).keys() == {"1.txt"} for each in str(local.labels.annotations).split(","))
        named = {name: value for name, value in local.with_train(epochs=4).flat().items() if "s3://" in str(value)}
        assert named == {
            "input": "s3://birds/in", "output": "s3://birds/out", "data": "s3://birds/recordings",
            "labels.annotations": "s3://birds/marks/a,s3://birds/marks/b",
        }  # fmt: skip
        assert local.tree()["labels"]["annotations"] == named["labels.annotations"]
        assert local.as_given(f"{local.data_folder}/robin/1.wav") == "s3://birds/recordings/robin/1.wav"
        make(local.output, {"history.csv": "decided"})
        options.keep()  # at once, not at the next look
        assert s3.get("out/history.csv") == b"decided"
        make(local.output, {"run.json": "{}"})
    assert s3.stored("out/") == ["out/history.csv", "out/run.json"]


def test_a_model_in_s3_comes_with_the_logs_of_its_run(s3: S3, tmp_path: Path) -> None:
    for key in ("model/m/7/model.json", "logs/7/split.csv", "logs/6/split.csv", "reports/7/report.html"):
        s3.put(f"best/{key}", key.encode())
    s3.put("alone/model/m/1/model.json", b"{}")
    cloud = {"endpoint": s3.endpoint, "folder": str(tmp_path)}
    for name, wanted in (("best/model/m/7", {"model/m/7/model.json", "logs/7/split.csv"}),
                         ("alone/model/m/1", {"model/m/1/model.json"})):  # fmt: skip
        config = Config.model_validate({"gate": {"champion": f"s3://birds/{name}"}, "cloud": cloud})
        with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
            assert content(Path(str(local.gate.champion)).parents[2]).keys() == wanted


def test_where_a_command_fails_what_it_made_is_published_all_the_same(s3: S3, tmp_path: Path) -> None:
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    work = session.staged(config, Namespace(), QUIET, STOP, only_reads=False)
    with pytest.raises(InputError, match="no recordings"), work as (local, _):
        make(local.output, {"run.json": '{"status": "failed"}'})
        raise InputError("no recordings")
    assert s3.stored() == ["out/run.json"]


def test_of_several_processes_that_train_the_chief_alone_publishes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("out/model/m/1/model.json", b"{}")
    s3.put("out/checkpoints/1/w", b"w")
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    )
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
        assert local.output == tmp_path / "rank-1/birds/out"
        assert content(local.output) == {"model/m/1/model.json": b"{}"}, "no more than it may begin from"
        make(local.output, {"run.json": "{}"})
    assert s3.stored("out/") == ["out/checkpoints/1/w", "out/model/m/1/model.json"]


def test_processes_of_one_machine_share_what_the_first_of_them_fetched(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("in/bird_id_map.csv", b"name,id\n")
    given = {"input": "s3://birds/in", "output": "s3://birds/out"}
    config = Config.model_validate({**given, "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}})
    hosts = ["a:1", "a:2", "b:1", "b:2"]
    wanted = [tmp_path, tmp_path, tmp_path / "rank-2", tmp_path / "rank-2"]
    for rank, folder in enumerate(wanted):
        cluster = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": rank}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
        before = len(s3.faults.seen)
        with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
            assert local.output == folder / "birds/out" and content(local.input).keys() == {"bird_id_map.csv"}
        assert (len(s3.faults.seen) > before) == (rank in (0, 2))


def test_what_cannot_be_published_ends_a_command_that_did_its_work(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    work = session.staged(config, Namespace(), QUIET, STOP, only_reads=False)
    monkeypatch.setattr(staging, "_PATIENCE_S", 0.0)
    refused = pytest.raises(RetryableError, match=r"s3://birds/out/run.json: S3 refused \(InternalError")
    with refused, work as (local, _):
        s3.faults.add("PUT", "run.json", 500, 99)
        make(local.output, {"run.json": "{}"})


def test_a_command_goes_on_with_what_the_one_before_could_not_publish(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
        make(local.output, {"run.json": "{}"})
    monkeypatch.setattr(staging, "_PATIENCE_S", 0.0)
    work = session.staged(config, Namespace(), QUIET, STOP, only_reads=False)
    with pytest.raises(RetryableError), work as (local, _):
        make(local.output, {"w": "2"})
        s3.faults.add("PUT", "out/w", 500, 99)
    s3.faults.rows.clear()
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
        assert content(local.output) == {"run.json": b"{}", "w": b"2"}
    assert s3.stored() == ["out/run.json", "out/w"]


def test_a_command_that_only_reads_takes_no_lease_and_writes_nothing(s3: S3, tmp_path: Path) -> None:
    s3.put("out/model/birds/1/saved_model.pb", b"model")
    s3.put("out/checkpoints/1/e1/optimizer", b"large")
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    options = Namespace(files=[Path("s3://birds/night")], out=Path("s3://birds/tables/night.csv"), model=None)
    s3.put("night/1.wav", b"sound")
    with session.staged(config, options, QUIET, STOP, only_reads=True) as (local, found):
        assert local.output == tmp_path / "read/birds/out"  # a job may work at the same one here
        assert content(local.output) == {"model/birds/1/saved_model.pb": b"model"}
        assert content(found.files[0]) == {"1.wav": b"sound"}
        found.out.write_text("recording,class\n")
    assert {path for method, path in s3.faults.seen if method == "PUT"} == {f"/{BUCKET}/tables/night.csv"}


def test_a_part_of_the_recordings_is_fetched_alone(s3: S3, tmp_path: Path) -> None:
    for name in ("a/1.wav", "a/2.WAV", "a/notes.txt", "b/3.flac", "b/4.wav"):
        s3.put(f"night/{name}", b"sound")
    s3.put("more/5.wav", b"sound")
    found = []
    for number in range(1, 8):
        cloud = {"endpoint": s3.endpoint, "folder": str(tmp_path / str(number))}
        options = Namespace(
            files=[Path("s3://birds/night"), Path("s3://birds/more/5.wav")], list=None, out=None, model=None,
            format="csv", merge=False, shard=Shard(number, 7),
        )  # fmt: skip
        config = Config.model_validate({"cloud": cloud})
        with session.staged(config, options, QUIET, STOP, only_reads=True) as (_, local):
            assert local.shard.part([1, 2, 3]) == [1, 2, 3] and all(path.exists() for path in local.files)
            found.append(sorted(path.name for path in (tmp_path / str(number)).rglob("*.*") if path.is_file()
                                and path.suffix != ".json"))  # fmt: skip
    assert found == [
        ["5.wav", "notes.txt"], ["1.wav", "notes.txt"], ["2.WAV", "notes.txt"], ["3.flac", "notes.txt"],
        ["4.wav", "notes.txt"], ["notes.txt"], ["notes.txt"],
    ]  # fmt: skip


def test_what_is_over_stays_in_s3_alone(s3: S3, tmp_path: Path) -> None:
    names = ["run.json", "logs/1/run.json", "logs/2/run.json", "checkpoints/1/e9/w", "checkpoints/2/e1/w",
             "reports/1/report.html", "shards/1-of-2/rows", "candidates/2/model.json",
             *(f"model/{name}/{version}/{file}" for name, version in (("a", 9), ("a", 10), ("b", 3))
               for file in ("model.json", "saved_model.pb"))]  # fmt: skip
    for name in names:
        s3.put(f"out/{name}", b"{}")
    config = Config.model_validate(
        {"output": "s3://birds/out", "cloud": {"endpoint": s3.endpoint, "folder": str(tmp_path)}}
    )
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=False) as (local, _):
        # No run goes on with version 1.
        assert content(local.output).keys() == {*names} - {"checkpoints/1/e9/w"}
        make(local.output, {"checkpoints/2/e2/w": "2"})
        (local.output / "checkpoints/2/e1/w").unlink()
    stored = {key.removeprefix("out/") for key in s3.stored("out/")}
    assert stored == {*names, "checkpoints/2/e2/w"} - {"checkpoints/2/e1/w"}
    options = Namespace(model=Path("s3://birds/out/model/a/9"), files=[], out=None)
    with session.staged(config, options, QUIET, STOP, only_reads=True) as (local, found):
        models = {name for name in names if name.startswith(("model/a/", "model/b/"))}
        assert content(local.output).keys() == {"run.json", "logs/1/run.json", "logs/2/run.json", *models}
        assert found.model == local.output / "model/a/9"
    shutil.rmtree(tmp_path)
    with session.staged(config, Namespace(), QUIET, STOP, only_reads=True) as (local, _):
        assert {path.name for path in local.output.glob("model/*/*")} == {"10", "3"}


@pytest.mark.parametrize(
    "name, given, output",
    [("input", "in", "in"), ("input", "in", "in/out"), ("input", "out/in", "out"), ("data", "out/in", "out")],
)
def test_input_and_output_in_one_another_are_refused(
    s3: S3, tmp_path: Path, name: str, given: str, output: str
) -> None:
    cloud = {"endpoint": s3.endpoint, "folder": str(tmp_path)}
    config = Config.model_validate({name: f"s3://birds/{given}", "output": f"s3://birds/{output}", "cloud": cloud})
    refused = pytest.raises(SettingsError, match=rf"--{name} s3://birds/{given} and --output .* lie in one another")
    with refused, session.staged(config, Namespace(), QUIET, STOP, only_reads=False):
        pass
    assert s3.stored() == []


def test_a_start_that_is_refused_leaves_nothing_in_the_input(s3: S3, tmp_path: Path) -> None:
    s3.put("in/data/a/1.wav", b"sound")
    cloud = ["--cloud.endpoint", s3.endpoint, "--cloud.folder", str(tmp_path)]
    code = cli.main(["run", "--input", "s3://birds/in", "--output", "s3://birds/in/out", *cloud])
    assert code == 42 and s3.stored() == ["in/data/a/1.wav"]


def test_parts_that_machines_prepare_meet_in_s3(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.put_folder(write_tones(tmp_path / "data", {"Apus": 900.0, "Bubo": 1800.0}, 1.0, 16_000, 4), "in/data")

    def prepare(machine: str, *more: str) -> str:
        flags = ["--input", "s3://birds/in", "--output", "s3://birds/out", "--cloud.endpoint", s3.endpoint]
        flags += ["--model.checkpoint", "none", "--prepare.workers", "1", "--cloud.folder", str(tmp_path / machine)]
        assert main(["prepare", *flags, *more]) == 0
        return capsys.readouterr().out

    prepare("one", "--shard", "1/2")
    prepare("two", "--shard", "2/2")
    said = prepare("three")
    assert "8 recordings prepared in 2 parts" in said and "decoded" not in said
    assert "out/split.csv" in s3.stored()


def test_without_settings_what_goes_on_from_a_run_takes_those_of_the_newest_one(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"input": "s3://birds/in", "train.epochs": 3, "model.checkpoint": "none", "output": "s3://birds/old"}
    record = {"done": {"train": "f"}, "classes": ["robin"], "stages": {}, "weights_sha256": None, "format": FORMAT}
    s3.put("out/logs/2/run.json", json.dumps({**record, "settings": before}).encode())
    s3.put("out/logs/2/run.log", b"long")
    s3.put("in/data/robin/1.wav", b"sound")
    seen = list[Config]()

    def note(config: Config, *_: object) -> int:
        seen.append(config)
        assert content(config.data_folder) == {"robin/1.wav": b"sound"}
        return 0

    monkeypatch.setitem(cli.COMMANDS, "evaluate", replace(cli.COMMANDS["evaluate"], run=note))
    flags = ["--output", "s3://birds/out", "--cloud.endpoint", s3.endpoint, "--cloud.folder", str(tmp_path)]
    assert main(["evaluate", *flags]) == 0
    assert (seen[0].train.epochs, seen[0].flat()["output"]) == (3, "s3://birds/out")
    s3.put("in2/data/robin/1.wav", b"sound")
    assert main(["evaluate", *flags, "--input", "s3://birds/in2"]) == 0
    assert seen[1].train.epochs == Config().train.epochs, "other settings were given"


class Loud:
    """A model for which every window is of one class."""

    classes, front_end = ("robin", "wren"), VGGISH

    def scores(self, windows: Any) -> tuple[Any, Any]:
        return np.tile(np.array([0.9, 0.1], np.float32), (len(windows), 1)), np.zeros((len(windows), 2), np.float32)

    pooling = Pooling()

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        raise AssertionError

    def attend(self, embeddings: Any) -> Any:
        return np.zeros((len(embeddings), 2), np.float32)


@pytest.mark.parametrize("more", [(), ("--format", "csv"), ("--format", "csv", "--detect.one-table", "true")])
def test_recordings_from_s3_are_called_by_their_address(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("birdtune.pipeline.predict.scorer_in", lambda place: Loud())
    make(tmp_path / "model", {"weights": "w"})
    s3.put_folder(write_tones(tmp_path / "data", {"a": 900.0}, 2.0, 16_000, 1), "nights")
    s3.put("nights/b/cut.wav", b"no sound")
    out = tmp_path / "s3/birds" / ("tables" if more else "table.csv")
    flags = ["--cloud.endpoint", s3.endpoint, "--cloud.folder", str(tmp_path / "s3"), *more]
    flags += ["--out", f"s3://birds/{out.name}"]
    assert main(["predict", "s3://birds/nights", *flags, "--model", str(tmp_path / "model")]) == 0
    text = "".join(path.read_text() for path in ([out] if not more else [*out.rglob("*.csv"), *out.rglob("*.html")]))
    assert all(f"s3://birds/{key}" in text for key in s3.stored("nights/" if not more else "nights/a"))
    said = capsys.readouterr().out
    assert str(tmp_path / "s3") not in text + said and f"s3://birds/{out.name}: " in said


@pytest.mark.parametrize("place", ["out", "out/model/m"])
def test_a_place_for_models_within_the_output_is_refused_before_the_long_work(
    s3: S3, tmp_path: Path, place: str
) -> None:
    cloud = {"endpoint": s3.endpoint, "folder": str(tmp_path)}
    given = {"output": "s3://birds/out", "gate": {"publish_to": f"s3://birds/{place}"}, "cloud": cloud}
    with session.staged(Config.model_validate(given), Namespace(), QUIET, STOP, only_reads=False) as (config, _):
        with pytest.raises(SettingsError, match=f"--gate.publish-to s3://birds/{place}: lies in the output"):
            session.require_published(config)
        others = {"publish_to": "s3://birds/outside,/srv/models"}
        session.require_published(config.model_copy(update={"gate": config.gate.model_copy(update=others)}))


# ---- a start that fails -------------------------------------------------------------------------


def record_after(s3: S3, folder: Path, *more: str, command: str = "run") -> tuple[int, dict[str, Any]]:
    """The exit code of a start, and run.json in S3 behind it, where an earlier start had ended well."""
    s3.put("out/run.json", b'{"status": "done", "exit_code": 0, "started": "2026-01-01T00:00:00Z"}')
    flags = ["--output", "s3://birds/out", "--cloud.endpoint", s3.endpoint, "--cloud.folder", str(folder)]
    code = main([command, *flags, "--prepare.workers", "1", *more])
    return code, json.loads(s3.get("out/run.json"))


@pytest.mark.parametrize(
    ("more", "code", "error"),
    [
        (("--train.epochs", "many"), 42, "--train.epochs = 'many': expected a whole number"),
        (("--train.epoch", "3"), 2, "'--train.epoch' is not understood"),
        (("--input", "s3://nowhere/in"), 42, "there is no such bucket"),
        (("--data", "s3://birds/nothing"), 42, "s3://birds/nothing: nothing lies there"),
    ],
)
def test_a_start_that_fails_early_leaves_its_own_record(
    s3: S3, tmp_path: Path, more: tuple[str, ...], code: int, error: str
) -> None:
    ended, record = record_after(s3, tmp_path, *more)
    assert (ended, record["exit_code"], record["outcome"]) == (code, code, "failed") and error in record["error"]
    assert record["finished"] >= record["started"] > "2026-01-01" and record["version"] is None
    assert record["settings"] == {}, "nobody knows whether they are right"
    assert s3.stored("out/") == ["out/run.json"]  # no lease is left


def test_the_record_of_a_job_that_works_is_left_alone(s3: S3, tmp_path: Path) -> None:
    with lease.alone_at(storage_of(s3), OUTPUT, QUIET, STOP):
        ended, record = record_after(s3, tmp_path, "--train.epochs", "many")
    assert (ended, record["exit_code"]) == (42, 0)


def test_a_failed_start_leaves_what_could_not_be_published_in_place(s3: S3, tmp_path: Path) -> None:
    make(mirror_of(s3, tmp_path).output, {"run.json": "{}", "w": "1"})
    mirror_of(s3, tmp_path).publish()
    make(mirror_of(s3, tmp_path).output, {"w": "2"})
    flags = ["--output", "s3://birds/out", "--cloud.endpoint", s3.endpoint, "--cloud.folder", str(tmp_path)]
    assert main(["run", *flags, "--train.epochs", "many"]) == 42
    again = mirror_of(s3, tmp_path)
    again.fetch(STOP)
    assert (again.output / "w").read_text() == "2" and not list(again.output.parent.glob("*superseded*"))


def test_on_a_disk_a_failed_start_replaces_an_earlier_record_and_makes_none(tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ["--output", str(output), "--train.epochs", "many"]
    assert main(["run", *flags]) == 42 and not output.exists()
    make(output, {"run.json": '{"status": "done", "started": "2026-01-01T00:00:00Z"}'})
    assert main(["run", *flags]) == 42
    assert json.loads((output / "run.json").read_text())["exit_code"] == 42


def test_what_the_command_says_of_its_own_failure_stays(s3: S3, tmp_path: Path) -> None:
    s3.put("in/data/robin/1.wav", b"no sound")
    flags = ("--input", "s3://birds/in", "--model.checkpoint", "none")
    ended, record = record_after(s3, tmp_path, *flags, command="prepare")
    assert (ended, record["exit_code"]) == (42, 42) and "prepare" in record["stages"]


def test_session_tokens_and_who_pays_go_with_every_request(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of this hour")
    storage, sent = storage_of(s3, requester_pays=True), list[tuple[str, ...]]()
    names = ("x-amz-security-token", "x-amz-request-payer")
    storage.client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append(tuple(request.headers[name].decode() for name in names))
    )
    s3.put("in/1.wav", b"sound")
    fetch(storage, INPUT, tmp_path, QUIET, STOP)
    with lease.alone_at(storage, OUTPUT, QUIET, STOP):
        send(storage, OUTPUT.below("1.wav"), tmp_path / BUCKET / "in/1.wav")
    assert len(sent) > 5 and set(sent) == {("of this hour", "requester")}


def test_an_anonymous_reader_signs_nothing(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    s3.put("in/1.wav", b"sound", ACL="public-read")
    storage, signed = storage_of(s3, anonymous=True), list[bool]()
    storage.client.meta.events.register(
        "before-send.s3", lambda request, **_: signed.append("Authorization" in request.headers)
    )
    fetch(storage, INPUT, tmp_path, QUIET, STOP)
    assert content(tmp_path / BUCKET) == {"in/1.wav": b"sound"} and signed and not any(signed)


def test_the_region_is_that_of_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from birdtune.cloud.client import connect
    from birdtune.settings import CloudSettings

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv("AWS_REGION", raising=False)
        monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
        monkeypatch.setenv(name, "eu-north-1")
        assert connect(CloudSettings()).client.meta.region_name == "eu-north-1"
