"""birdtune.runtime.log: what a run reports to people and to machines."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from birdtune.errors import InputError, RetryableError
from birdtune.runtime import log
from birdtune.runtime.log import Journal, duration


def lines(folder: Path) -> list[str]:
    return (folder / "run.log").read_text("utf-8").splitlines()


def objects(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


# ---- the journal --------------------------------------------------------------------------------


def test_a_line_goes_to_the_terminal_and_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "logs")
    journal.say("hello")
    journal.close()
    assert capsys.readouterr().out == "hello\n"
    (line,) = lines(tmp_path / "logs")
    stamp, text = line.split(" ", 1)
    assert text == "hello"
    assert len(stamp) == len("2024-01-01T00:00:00Z")
    assert stamp[10] + stamp[-1] == "TZ"


def test_a_quiet_journal_writes_but_does_not_print(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, quiet=True)
    journal.say("hello")
    journal.close()
    assert capsys.readouterr().out == ""
    assert lines(tmp_path)[0].endswith("hello")


def test_an_event_is_one_json_object_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, quiet=True)
    journal.event("epoch", number=3, loss=0.5, place=Path("a\nb"), name="Grün \udcff")
    journal.event("end")
    journal.close()
    first, second = objects(tmp_path)
    assert (first["event"], first["number"], first["loss"], first["place"]) == ("epoch", 3, 0.5, "a\nb")
    assert second["event"] == "end"
    assert {"time", "event"} == set(second)


def test_events_can_be_read_by_strict_readers(tmp_path: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    journal = Journal(tmp_path, quiet=True)
    journal.event("epoch", loss=float("nan"), best=[1.0, {"worst": float("inf")}])
    journal.close()
    (text,) = (tmp_path / "events.jsonl").read_text("utf-8").splitlines()
    record = json.loads(text, parse_constant=refuse)
    assert record["loss"] is None
    assert record["best"] == [1.0, {"worst": None}]


def test_a_warning_is_said_and_is_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path)
    journal.warn("mind the gap")
    journal.warn("stop", word="warning", code="gap")
    journal.close()
    assert capsys.readouterr().out == "note: mind the gap\nwarning: stop\n"
    assert [event["text"] for event in objects(tmp_path)] == ["mind the gap", "stop"]
    assert objects(tmp_path)[1]["code"] == "gap"


def test_what_is_told_otherwise_is_in_the_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path)
    journal.log("failed: why")
    journal.close()
    assert capsys.readouterr().out == ""
    assert (tmp_path / "run.log").read_text().endswith(" failed: why\n")


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "one"}\n{"event": "tw')
    (tmp_path / "run.log").write_text("cut of")
    journal = Journal(tmp_path, quiet=True)
    journal.say("whole")
    journal.event("three", number=3)
    assert [record["number"] for record in journal.events("three")] == [3]
    assert journal.events("one") == [{"event": "one"}]
    journal.close()
    assert (tmp_path / "events.jsonl").read_text().splitlines()[:2] == ['{"event": "one"}', '{"event": "tw']
    assert lines(tmp_path)[0] == "cut of" and lines(tmp_path)[1].endswith(" whole")


def test_a_journal_without_a_folder_has_told_nothing() -> None:
    journal = Journal(quiet=True)
    journal.event("epoch")
    assert journal.events("epoch") == []


def test_a_second_run_continues_the_files(tmp_path: Path) -> None:
    for text in ("one", "two"):
        journal = Journal(tmp_path, quiet=True)
        journal.say(text)
        journal.event(text)
        journal.close()
    assert [line.split(" ", 1)[1] for line in lines(tmp_path)] == ["one", "two"]
    assert [record["event"] for record in objects(tmp_path)] == ["one", "two"]


def test_a_journal_can_move_and_go_on_after_closing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "1", quiet=True)
    journal.say("one")
    journal.write_to(tmp_path / "2")
    journal.say("two")
    journal.close()
    journal.say("nowhere")
    journal.event("nowhere")
    assert [len(lines(tmp_path / name)) for name in ("1", "2")] == [1, 1]


def test_a_terminal_that_lacks_a_letter_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Journal().say("Grün")
    assert raw.getvalue() == b"Gr\\xfcn\n"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file where a folder is needed"):
        Journal(tmp_path / "file" / "logs")


def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "whole"}\n{"event": "cu')
    (tmp_path / "run.log").write_text("")
    journal = Journal(tmp_path, quiet=True)
    journal.event("next")
    journal.say("first")
    journal.close()
    whole, cut, following = (tmp_path / "events.jsonl").read_text("utf-8").splitlines()
    assert (json.loads(whole)["event"], cut, json.loads(following)["event"]) == ("whole", '{"event": "cu', "next")
    assert len(lines(tmp_path)) == 1


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    for name in ("run.log", "events.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    journal = Journal(tmp_path, quiet=True)
    with pytest.raises(RetryableError, match=r"run\.log: the disk is full \(27 bytes needed"):
        journal.say("hello")
    journal.close()


def test_a_log_that_was_deleted_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "logs", quiet=True)
    shutil.rmtree(tmp_path / "logs")
    with pytest.raises(RetryableError, match=r"events\.jsonl: is gone.*Run again"):
        journal.event("epoch")
    journal.close()


def talk(streams: str) -> subprocess.CompletedProcess[str]:
    """A process that says two lines through a journal, with its streams as a shell is told."""
    script = (
        "import sys; from birdtune.runtime.log import Journal; journal = Journal(); journal.say('one'); "
        "journal.say('two'); sys.exit(0 if journal.stdout_error is None else 3)"
    )
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {streams}', sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(Path(log.__file__).parents[2])}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_work_goes_on_where_nobody_can_be_told() -> None:
    done = talk(">/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "note: standard output cannot be written (No space left on device)" in done.stderr
    assert (talk(">/dev/full 2>/dev/full").returncode, talk("").stdout) == (3, "one\ntwo\n")


# ---- progress -----------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    with Journal().progress("preparing", 100, "recordings") as progress:
        for _ in range(100):
            now += 1.0
            progress.advance(note="loss 1.0")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6, "one in fifteen seconds"
    assert printed[0] == "  preparing: 15 of 100 recordings, about 1 min 25 s left, loss 1.0"
    assert printed[-1].startswith("  preparing: 90 of 100 recordings, about 10 s left")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Journal().progress("preparing", 2, "recordings") as progress:
        progress.advance()
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    journal = Journal()
    assert journal.has_bar
    with journal.progress("preparing", 4, "recordings") as progress:
        progress.advance(4, "loss 1.0")
    assert "preparing" in screen.getvalue()
    assert "recordings" in screen.getvalue()
    assert screen.getvalue().endswith("\r"), "the line is free again"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"), (0.25, "0.2 s"), (1, "1 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (250, "4 min 10 s"),
        (3599.7, "1 h 00 min"), (11_100, "3 h 05 min"), (360_000, "100 h 00 min"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_who_follows_is_told_of_events_once_they_are_written_and_not_of_lines(tmp_path: Path) -> None:
    journal, heard = Journal(tmp_path, quiet=True), []
    journal.event("before")
    journal.follow(lambda kind, fields: heard.append((kind, fields, len(journal.events(kind)))))
    journal.say("a line")
    journal.event("epoch", epoch=3)
    journal.close()
    assert heard == [("epoch", {"epoch": 3}, 1)]
