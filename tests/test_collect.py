"""`collect csv` and the downloader, against a server on loopback; no test reaches a network."""

import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from helpers_collect import Site, endless, half, reasons, rows, run, serving, sound, status
from helpers_s3 import BUCKET, CREDENTIALS, s3_server
from test_layout import inspect

from birdtune.collect import web
from birdtune.collect.item import PASSING, REASONS, Budget, BudgetSpentError, RefusedError, safe_name
from birdtune.runtime.files import read_csv
from birdtune.settings import CollectSettings

Captured = pytest.CaptureFixture[str]
OUT = Path("output/collected")
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files |= {f"/{name}.wav": sound(k) for k, name in enumerate("abc")}
        yield site


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_LONGEST_PAUSE_S", 2.0)


def write_list(site: Site, *lines: str, header: str = "url,label") -> str:
    Path("list.csv").write_text("\n".join([header, *(re.sub("^@", site.address, line) for line in lines)]) + "\n")
    return "list.csv"


def three(site: Site) -> str:
    return write_list(site, "@/a.wav,Crow", "@/b.wav,Owl", "@/c.wav,Owl", "@/c.wav,Crow")


# ---- what arrives -------------------------------------------------------------------------------


def test_what_a_list_names_is_there_with_its_labels_and_a_run_reads_it(site: Site, capsys: Captured) -> None:
    assert run("csv", three(site)) == 0
    assert {path.name for path in OUT.iterdir()} == {"a.wav", "b.wav", "c.wav", "labels.csv", "collected.csv"}
    assert (OUT / "b.wav").read_bytes() == site.files["/b.wav"]
    row = rows(OUT)["b.wav"]
    assert (row["status"], row["url"]) == ("collected", f"{site.address}/b.wav")
    assert row["sha256"] == hashlib.sha256(site.files["/b.wav"]).hexdigest()
    said = capsys.readouterr().out
    assert "3 of 3 recordings" in said and "run --data output/collected" in said
    Path("data").symlink_to(OUT)
    dataset = inspect(Path(), model={"output": "sigmoid"}, split={"val_fraction": 0, "test_fraction": 0})
    assert {one.name: one.classes for one in dataset.recordings} == {
        "a.wav": ("Crow",), "b.wav": ("Owl",), "c.wav": ("Owl", "Crow"),
    }  # fmt: skip
    assert {problem.problem for problem in dataset.problems} == {"metadata"}


def test_a_second_call_fetches_only_what_lacks(site: Site) -> None:
    lost = site.files.pop("/b.wav")
    assert run("csv", three(site)) == 0
    assert reasons(OUT) == {"b.wav": "not-found"} and not (OUT / "b.wav").exists()
    (OUT / "a.wav").unlink()
    site.files["/b.wav"] = lost
    assert run("csv", three(site)) == 0
    assert (OUT / "a.wav").exists() and site.asked_for("/a.wav") == 2
    assert site.asked_for("/b.wav") == site.asked_for("/c.wav") == 1  # what failed for good is left alone
    assert run("csv", three(site), "--retry") == 0
    assert reasons(OUT) == {} and site.asked_for("/b.wav") == 2


def test_recordings_that_arrived_before_a_kill_are_not_fetched_again(site: Site) -> None:
    assert run("csv", three(site)) == 0
    text = (OUT / "collected.csv").read_text().splitlines()
    (OUT / "collected.csv").write_text("\n".join(text[:2]) + "\n")  # as it was written last
    (OUT / ".unfinished-0123").write_bytes(b"half")
    site.seen.clear()
    assert run("csv", three(site)) == 0
    assert site.seen == [] and not (OUT / ".unfinished-0123").exists()
    assert {row["status"] for row in rows(OUT).values()} == {"collected"}


def test_a_dry_run_fetches_and_writes_nothing(site: Site, capsys: Captured) -> None:
    assert run("csv", three(site), "--dry-run") == 0
    assert site.seen == [] and not OUT.exists()
    assert "3 recordings planned, 0 of them there already" in capsys.readouterr().out


def test_nothing_is_written_into_a_folder_with_other_files(site: Site, capsys: Captured) -> None:
    Path("mine").mkdir()
    Path("mine/labels.csv").write_text("recording,label\n")
    assert run("csv", three(site), "--to", "mine") == 42
    assert "is not empty" in capsys.readouterr().err and site.seen == []
    assert Path("mine/labels.csv").read_text() == "recording,label\n"


def test_authors_and_licences_are_kept_of_what_is_there(site: Site) -> None:
    header = "url,recording,label,author,licence,source,secondary_labels"
    lines = [
        "@/a.wav,x.wav,Crow,=Anna,CC BY 4.0,https://e.org/1,\"Owl, Jay\"", "@/none.wav,y.wav,Crow,Bert,CC0,,",
    ]
    assert run("csv", write_list(site, *lines, header=header)) == 0
    assert rows(OUT, "attribution.csv") == {
        "x.wav": {"recording": "x.wav", "author": "=Anna", "licence": "CC BY 4.0", "source": "https://e.org/1"}
    }
    assert rows(OUT, "labels.csv")["x.wav"]["secondary_labels"] == "Owl,Jay"


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [("../../etc/passwd.wav", "etc/passwd.wav"), ("/abs/a.wav", "abs/a.wav"), ("..\\..\\a.wav", "a.wav"),
     ("-rf.wav", "rf.wav"), (".hidden.wav", "hidden.wav"), ("a\x1b[2J\n.wav", "a__2J_.wav"),
     ("a/./b//c.wav", "a/b/c.wav"),
     ("Zaunkönig 1.wav", "Zaunkönig 1.wav"), ("..", ""), ("a:b?*|<>.wav", "a_b_____.wav"), ("con\0.wav", "con_.wav")],
)  # fmt: skip
def test_no_name_leaves_the_folder(text: str, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize("letter", ["x", "ö", "\U00020000"])
def test_long_names_are_cut_and_keep_their_ending(letter: str) -> None:
    name = safe_name(f"{letter * 500}.wav")
    assert name.endswith(f"{letter}.wav") and len(name.encode()) <= 200


def test_names_of_a_hostile_list_stay_in_the_folder(site: Site) -> None:
    site.files["/%2E%2E%2F%2E%2E%2Fx.wav"] = sound(9)
    lines = ["@/a.wav,../../../a.wav", "@/b.wav,/tmp/b.wav", "@/%2e%2e%2f%2e%2e%2fx.wav,"]
    assert run("csv", write_list(site, *lines, header="url,recording")) == 0
    found = {path.relative_to(OUT).as_posix() for path in OUT.rglob("*.wav")}
    assert found == {"a.wav", "tmp/b.wav", "x.wav"} == {str(path.relative_to(OUT)) for path in Path().rglob("*.wav")}


def test_a_link_in_the_folder_leads_nothing_out_of_it(site: Site) -> None:
    assert run("csv", write_list(site, "@/a.wav,", header="url,recording")) == 0
    Path("elsewhere").mkdir()
    (OUT / "out").symlink_to("../../elsewhere")
    assert run("csv", write_list(site, "@/a.wav,a.wav", "@/b.wav,out/b.wav", header="url,recording")) == 0
    assert reasons(OUT) == {"out/b.wav": "invalid"} and not list(Path("elsewhere").iterdir())


def test_two_addresses_of_one_name_are_two_files(site: Site) -> None:
    site.files["/other/a.wav"] = sound(7)
    assert run("csv", write_list(site, "@/a.wav,Crow", "@/other/a.wav,Owl")) == 0
    names = sorted(rows(OUT))
    assert len(names) == 2 and all(name.startswith("a-") and name.endswith(".wav") for name in names)
    assert {(OUT / name).read_bytes() for name in names} == {site.files["/a.wav"], site.files["/other/a.wav"]}


def test_rows_that_are_none_are_counted_and_the_others_fetched(site: Site) -> None:
    lines = [
        "@/a.wav,,", "file:///etc/x.wav,,", "ftp://e.org/y.wav,,", "nonsense,,", "@/download,,", "http://[/z.wav,,",
        "@/b.wav,,12",
    ]
    assert run("csv", write_list(site, *lines, header="url,label,sha256")) == 0
    assert set(reasons(OUT).values()) == {"invalid"} and len(reasons(OUT)) == 6
    assert [url for url, _ in site.seen] == ["/a.wav"]


@pytest.mark.parametrize(("text", "said"), [("adress\nx\n", "has adress"), ("url\n", "has no row")])
def test_a_list_without_addresses_is_42(capsys: Captured, text: str, said: str) -> None:
    Path("list.csv").write_text(text)
    assert run("csv", "list.csv") == 42
    assert said in capsys.readouterr().err


# ---- what goes wrong ----------------------------------------------------------------------------


def test_each_reason_says_what_to_do() -> None:
    assert all(REASONS.values()) and REASONS.keys() > PASSING


@pytest.mark.parametrize(
    ("code", "reason", "ended", "requests"),
    [(403, "forbidden", 42, 1), (401, "forbidden", 42, 1), (404, "not-found", 42, 1), (410, "not-found", 42, 1),
     (418, "failed", 42, 1), (429, "rate-limited", 75, 5), (500, "server", 75, 5), (503, "server", 75, 5)],
)  # fmt: skip
def test_statuses_have_reasons_and_those_that_pass_are_tried_again(
    site: Site, code: int, reason: str, ended: int, requests: int
) -> None:
    site.always["/a.wav"] = status(code)
    assert run("csv", write_list(site, "@/a.wav,Crow")) == ended
    assert reasons(OUT) == {"a.wav": reason} and site.asked_for("/a.wav") == requests
    assert rows(OUT)["a.wav"]["detail"] == f"HTTP {code}"


def test_a_busy_server_gets_the_pause_it_asks_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(web.Pace, "sleep", lambda self, seconds: pauses.append(round(seconds)))
    site.faults["/a.wav"] = [status(429, Retry_After="2"), status(503, Retry_After="1")]
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0
    assert site.asked_for("/a.wav") == 3 and {2, 1} <= set(pauses)


def test_a_server_that_asks_for_hours_is_left_alone_with_all_its_files(site: Site) -> None:
    site.always["/a.wav"] = status(429, Retry_After="7200")
    assert run("csv", three(site), connections=1) == 75
    assert [url for url, _ in site.seen] == ["/a.wav"]
    assert set(reasons(OUT).values()) == {"rate-limited"} and "7200 s" in rows(OUT)["a.wav"]["detail"]


@pytest.mark.parametrize("value", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_an_odd_retry_after_is_no_pause(site: Site, value: str) -> None:
    site.faults["/a.wav"] = [status(429, Retry_After=value)]
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0


def test_half_a_body_is_completed_from_where_it_broke(site: Site) -> None:
    site.faults["/a.wav"] = [half]
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0
    size = len(site.files["/a.wav"])
    assert [wanted for _, wanted in site.seen] == ["", f"bytes={size // 2}-"]
    assert (OUT / "a.wav").read_bytes() == site.files["/a.wav"]


def test_a_body_that_changed_meanwhile_is_fetched_anew(site: Site) -> None:
    def whole(request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        status(200, Content_Length=str(len(content)))(request, content)
        request.wfile.write(content)

    site.faults["/a.wav"] = [half, whole]  # as of `If-Range` and another ETag
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0
    assert (OUT / "a.wav").read_bytes() == site.files["/a.wav"]


def test_another_part_than_was_asked_for_is_not_put_behind_the_first(site: Site) -> None:
    def wrong(request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        status(206, Content_Range=f"bytes 3-9/{len(content)}", Content_Length="7")(request, content)
        request.wfile.write(content[3:10])

    site.faults["/a.wav"] = [half, wrong]
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0
    assert (OUT / "a.wav").read_bytes() == site.files["/a.wav"]


def test_bodies_that_always_break_leave_no_file(site: Site) -> None:
    site.always["/a.wav"] = half
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 75
    assert reasons(OUT) == {"a.wav": "cut-off"} and [path.name for path in OUT.iterdir()] == ["collected.csv"]


def test_a_silent_server_is_given_up(site: Site) -> None:
    site.always["/a.wav"] = site.hang
    assert run("csv", write_list(site, "@/a.wav,Crow"), timeout_s=0.1) == 75
    assert reasons(OUT) == {"a.wav": "timeout"}


def test_a_server_that_is_away_ends_the_call_early(site: Site) -> None:
    lines = [f"http://127.0.0.1:9/{k}.wav,Crow" for k in range(40)]
    assert run("csv", write_list(site, *lines), connections=1) == 75
    assert set(reasons(OUT).values()) == {"network", "waiting"}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.wav", "//", "gopher://x/"])
def test_redirects_lead_to_http_alone(site: Site, target: str) -> None:
    site.always["/a.wav"] = status(302, Location=target)
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 42
    assert reasons(OUT)["a.wav"] in ("forbidden", "failed")


def test_redirects_are_followed_and_not_for_ever(site: Site) -> None:
    site.faults["/a.wav"] = [status(302, Location="/b.wav")]
    site.always["/c.wav"] = status(301, Location="/c.wav")
    assert run("csv", write_list(site, "@/a.wav,Crow", "@/c.wav,Crow")) == 0
    assert (OUT / "a.wav").read_bytes() == site.files["/b.wav"]
    assert reasons(OUT) == {"c.wav": "failed"} and site.asked_for("/c.wav") == 6


def test_no_redirect_leads_from_https_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def request(self: object, method: str, url: str, **how: object) -> urllib3.HTTPResponse:
        asked.append(url)
        return urllib3.HTTPResponse(b"", {"Location": "http://e.org/a.wav"}, status=302)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    stop, settings = threading.Event(), CollectSettings(pause_s=0)
    downloader = web.Downloader(settings, web.Pace(0, stop), stop, None)
    with pytest.raises(RefusedError, match="forbidden: it leads from https to http"):
        downloader.fetch("https://e.org/a.wav", io.BytesIO(), 99)
    assert asked == ["https://e.org/a.wav"]


@pytest.mark.parametrize("content", [b"<!doctype html><title>Login</title>", b"", b"PK\x03\x04" + bytes(99)])
def test_what_is_no_recording_is_not_kept(site: Site, content: bytes) -> None:
    site.files["/a.wav"] = content
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 42
    assert reasons(OUT) == {"a.wav": "not-audio"} and not (OUT / "a.wav").exists()


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_checksum_that_differs_is_refused(site: Site, kind: str) -> None:
    right = [hashlib.new(kind, site.files[f"/{name}.wav"]).hexdigest() for name in "ab"]
    lines = [f"@/a.wav,{right[0].upper()}", f"@/b.wav,{right[0]}"]
    assert run("csv", write_list(site, *lines, header=f"url,{kind}")) == 0
    assert reasons(OUT) == {"b.wav": "checksum"} and (OUT / "a.wav").exists()


def test_passwords_and_queries_are_not_written_down(site: Site, capsys: Captured) -> None:
    address = site.address.replace("http://", "http://anna:secret1@")
    site.always["/b.wav"] = status(403)
    lines = [f"{address}/a.wav?signature=secret2,Crow", f"{address}/b.wav?signature=secret2,Crow"]
    assert run("csv", write_list(site, *lines)) == 0
    said = "".join(capsys.readouterr()) + "".join(path.read_text() for path in Path("output").rglob("*.csv"))
    assert "secret" not in said and f"{site.address}/a.wav" in said
    assert site.logins == {"Basic YW5uYTpzZWNyZXQx"}


# ---- bounds -------------------------------------------------------------------------------------


def test_an_endless_body_is_cut_at_the_limit_of_a_file(site: Site) -> None:
    site.always["/a.wav"] = endless
    assert run("csv", write_list(site, "@/a.wav,Crow"), max_file_mb=0.5) == 42
    assert reasons(OUT) == {"a.wav": "too-large"} and [path.name for path in OUT.iterdir()] == ["collected.csv"]


def test_the_limit_of_all_ends_the_call_and_keeps_what_is_whole(site: Site, capsys: Captured) -> None:
    size = len(site.files["/a.wav"])
    assert run("csv", three(site), connections=1, max_gb=2.5 * size / 1e9) == 42
    assert "--collect.max-gb is reached, with 1 recording left" in capsys.readouterr().err
    assert {path.name for path in OUT.glob("*.wav")} == {"a.wav", "b.wav"}
    assert run("csv", three(site), connections=1, max_gb=2.5 * size / 1e9) == 42  # of both calls together
    assert run("csv", three(site), max_gb=3.5 * size / 1e9) == 0
    assert site.asked_for("/a.wav") == 1


def test_the_budget_counts_what_is_there() -> None:
    budget = Budget(10, 4)
    budget.take(6)
    with pytest.raises(BudgetSpentError):
        budget.take(1)


def test_requests_to_a_host_keep_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(web.Pace, "sleep", lambda self, seconds: slept.append(seconds))
    monkeypatch.setattr(web.time, "monotonic", lambda: 100.0)
    pace = web.Pace(0.5, threading.Event())
    for host in ("a", "a", "b", "a"):
        pace.wait(host)
    assert slept == [0.0, 0.5, 0.0, 1.0]


# ---- being stopped ------------------------------------------------------------------------------


def test_sigterm_ends_with_143_and_keeps_what_is_whole(site: Site) -> None:
    site.always["/b.wav"] = site.hang
    three(site)
    command = [sys.executable, "-m", "birdtune", "collect", "csv", "list.csv", "--collect.connections", "1",
               "--collect.pause-s", "0", "--collect.timeout-s", "2"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "code")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 60
        while not site.asked_for("/b.wav"):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (143, "birdtune: stopped by SIGTERM; run again to continue\n")
    assert [path.name for path in OUT.glob("*.wav")] == ["a.wav"] and not list(OUT.glob(".unfinished*"))
    assert set(rows(OUT)) == {"a.wav", "b.wav", "c.wav"} and rows(OUT)["a.wav"]["status"] == "collected"
    del site.always["/b.wav"]
    assert run("csv", "list.csv") == 0
    assert site.asked_for("/a.wav") == 1


def test_another_job_in_the_output_is_75(site: Site, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from birdtune.runtime import lock
    from birdtune.runtime.log import Journal

    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    with lock.alone_in(Path("output"), Journal(quiet=True)):
        assert run("csv", three(site)) == 75
    assert site.seen == []


# ---- S3 -----------------------------------------------------------------------------------------


def test_prefixes_and_objects_in_s3_are_collected(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as s3:
        monkeypatch.setenv("BIRDTUNE_CLOUD__ENDPOINT", s3.endpoint)
        monkeypatch.setenv("BIRDTUNE_CLOUD__PATH_STYLE", "true")
        for k, key in enumerate(("owls/1.wav", "owls/deep/2.wav", "x/crow.wav", "big/b.wav")):
            s3.put(key, sound(k, 1.0 if k < 3 else 40.0))
        s3.put("owls/notes.txt", b"windy")
        lines = [
            f"s3://{BUCKET}/owls/,Owl,night", f"s3://{BUCKET}/x/crow.wav,Crow,", f"s3://{BUCKET}/none.wav,Crow,",
            f"s3://{BUCKET}/big/b.wav,Crow,", "@/a.wav,Crow,",
        ]
        assert run("csv", write_list(site, *lines, header="url,label,recording"), max_file_mb=0.5) == 0
    labels = [(row["recording"], row["label"]) for row in read_csv(OUT / "labels.csv")]
    assert labels == [("a.wav", "Crow"), ("crow.wav", "Crow"), ("night/1.wav", "Owl"), ("night/deep/2.wav", "Owl")]
    assert (OUT / "night/deep/2.wav").read_bytes() == sound(1)
    assert reasons(OUT) == {"none.wav": "not-found", "b.wav": "too-large"}


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["csv"], ["radio"], ["csv", "a.csv", "b.csv"], ["csv", "a.csv", "--to", "s3://b/c"]]
)
def test_what_is_not_understood_is_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert not OUT.exists()


def test_the_plan_of_a_folder_is_that_of_all_calls(site: Site) -> None:
    assert run("csv", write_list(site, "@/a.wav,Crow")) == 0
    assert run("csv", write_list(site, "@/b.wav,Owl")) == 0
    assert set(rows(OUT)) == set(rows(OUT, "labels.csv")) == {"a.wav", "b.wav"}
    assert json.dumps(sorted(path.name for path in OUT.iterdir())).count(".wav") == 2
