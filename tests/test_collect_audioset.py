"""`collect audioset` with made lists in AudioSet's shapes and a program that answers as yt-dlp does.

Nothing reaches YouTube: the program is a script that this file writes, first on PATH.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers_collect import reasons, rows, run
from test_layout import inspect

from birdtune.collect import audioset, youtube
from birdtune.collect.item import Item
from birdtune.runtime.files import read_csv

Captured = pytest.CaptureFixture[str]
OUT = Path("output/collected")
pytestmark = pytest.mark.usefixtures("alone")

# As ontology.json has them.
ONTOLOGY = [
    {"id": id_, "name": name, "description": "", "citation_uri": "", "positive_examples": [], "child_ids": below,
     "restrictions": []}
    for id_, name, below in [
        ("/m/015p6", "Bird", ["/m/020bb7", "/m/09d5_"]),
        ("/m/020bb7", "Bird vocalization, bird call, bird song", ["/m/07pggtn"]),
        ("/m/07pggtn", "Chirp, tweet", []), ("/m/09d5_", "Owl", ["/m/07r_25d"]), ("/m/07r_25d", "Hoot", ["/m/09d5_"]),
        ("/m/09x0r", "Speech", []), ("/t/1", "Twin", []), ("/t/2", "Twin", []),
    ]
]  # fmt: skip

# What it does for a video stands in videos.json: seconds of sound, or a message and an exit code.
YT_DLP = """#!{python} -SE
import json, os, random, sys, time, wave
arguments = sys.argv[1:]
video = arguments[-1].rpartition("=")[2]
root = os.environ["FAKE_YT_DLP"]
with open(root + "/calls", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
does = json.load(open(root + "/videos.json")).get(video, {{"seconds": 10}})
if "message" in does:
    sys.stderr.write("WARNING: [youtube] No title found in player responses\\n")
    sys.stderr.write("ERROR: [youtube] " + video + ": " + does["message"] + "\\n")
    sys.exit(does.get("code", 1))
if does.get("hangs"):
    time.sleep(10)
    open(root + "/survived", "w")
start, end = map(float, arguments[arguments.index("--download-sections") + 1][1:].split("-"))
name = arguments[arguments.index("--output") + 1].replace("%(ext)s", arguments[arguments.index("--audio-format") + 1])
if does.get("text"):
    open(name, "w").write("no sound")
    sys.exit(0)
with wave.open(name, "wb") as file:
    file.setnchannels(2); file.setsampwidth(2); file.setframerate(8000)
    file.writeframes(random.Random(video + str(start)).randbytes(int(does["seconds"] * 8000) * 4))
    if does.get("floods"):
        for _ in range(300):
            file.writeframes(bytes(1 << 18)); time.sleep(0.01)
        open(root + "/survived", "w")
"""


class Videos:
    """The stand-in for yt-dlp, and the lists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        for name, text in (("yt-dlp", YT_DLP.format(python=sys.executable)), ("ffmpeg", "#!/bin/sh\n")):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        self.are({})

    def are(self, what: dict[str, dict[str, Any]]) -> None:
        (self.root / "videos.json").write_text(json.dumps(what))

    @property
    def calls(self) -> list[str]:
        """The videos that were asked for."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)[-1].rpartition("=")[2] for line in lines]


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Videos:
    made = Videos(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{made.root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_YT_DLP", str(made.root))
    Path("ontology.json").write_text(json.dumps(ONTOLOGY))
    return made


def video(number: int, of: str = "v") -> str:
    """An id as YouTube has them, some with a hyphen first."""
    return f"{'-' if number % 2 else '_'}{of}{number:09d}"[:11]


def write_list(*rows: tuple[str, str], name: str = "eval.csv", seconds: str = "30.000, 40.000") -> None:
    """A list of segments: video, labels."""
    head = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=20371\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    Path(name).write_text(head + "".join(f'{video}, {seconds}, "{labels}"\n' for video, labels in rows))


def owls(n: int) -> list[tuple[str, str]]:
    return [(video(k), "/m/07r_25d,/m/09x0r") for k in range(n)]


def collect(*arguments: str, n: int = 2, categories: tuple[str, ...] = ("Owl",), **settings: Any) -> int:
    return run("audioset", "--ontology", "ontology.json", "--segments", "eval.csv", "--per-class", str(n),
               "--categories", *categories, *arguments, **settings)  # fmt: skip


# ---- what arrives -------------------------------------------------------------------------------


def test_segments_of_a_category_and_all_below_it_arrive_with_all_their_labels(videos: Videos, capsys: Captured) -> None:
    write_list(*owls(3), (video(7), "/m/07pggtn,/x/new"), (video(8), "/m/09x0r"))
    assert collect(n=3, categories=("Owl", "bird vocalization, bird call, bird song")) == 0
    names = {f"Y{video(k)}_30s_40s.flac" for k in (0, 1, 2, 7)}
    assert {path.name for path in OUT.glob("*.flac")} == names
    labels = [(row["recording"], row["label"]) for row in read_csv(OUT / "labels.csv")]
    assert labels.count((f"Y{video(0)}_30s_40s.flac", "Speech")) == 1
    assert {label for name, label in labels if name.startswith(f"Y{video(7)}")} == {"Chirp, tweet", "/x/new"}
    facts = soundfile.info(OUT / f"Y{video(1)}_30s_40s.flac")
    assert (facts.frames, facts.samplerate, facts.channels, facts.subtype) == (80_000, 8000, 2, "PCM_16")
    row = rows(OUT)[f"Y{video(1)}_30s_40s.flac"]
    assert (row["segment"], row["url"]) == ("30-40 s", f"https://www.youtube.com/watch?v={video(1)}")
    assert "AudioSet" in rows(OUT, "attribution.csv")[f"Y{video(1)}_30s_40s.flac"]["licence"]
    assert "4 of 4 recordings" in capsys.readouterr().out


def test_a_run_reads_them_one_source_a_video(videos: Videos) -> None:
    write_list(*owls(4), *((video(k, "w"), "/m/07pggtn") for k in range(4)))
    with Path("eval.csv").open("a") as file:
        file.write(f'{video(0)}, 50.000, 60.000, "/m/07r_25d"\n')
    assert collect(n=9, categories=("Bird",)) == 0
    Path("data").symlink_to(OUT)
    dataset = inspect(Path(), model={"output": "sigmoid"})
    assert dataset.classes == ("Chirp, tweet", "Hoot", "Speech") and len(dataset.recordings) == 9
    of_one = {place.group for name, place in dataset.places.items() if video(0) in name and "v" in name}
    assert len(of_one) == 1 and len({place.group for place in dataset.places.values()}) == 8


def test_waves_are_written_where_they_are_asked_for_and_cut_to_the_segment(videos: Videos) -> None:
    write_list(*owls(1))
    videos.are({video(0): {"seconds": 10.5}})
    assert collect("--format", "wav") == 0
    facts = soundfile.info(OUT / f"Y{video(0)}_30s_40s.wav")
    assert (facts.frames, facts.format, facts.subtype) == (80_000, "WAV", "PCM_16")


def test_a_second_call_fetches_only_what_lacks(videos: Videos) -> None:
    write_list(*owls(6))
    assert collect(n=3) == 0
    before = videos.calls
    assert collect(n=3) == 0 and videos.calls == before
    next(OUT.glob("*.flac")).unlink()
    assert collect(n=4) == 0
    assert len(videos.calls) == len(before) + 2 and set(before) < set(videos.calls)
    assert len(list(OUT.glob("*.flac"))) == 4


# ---- the plan -----------------------------------------------------------------------------------


def plan(rows: list[tuple[str, str]], categories: list[str], n: int, seed: int = 1) -> set[str]:
    write_list(*rows)
    ontology = audioset.Ontology(Path("ontology.json"))
    wanted = [ontology.category(text) for text in categories]
    segments, _ = audioset.read_segments([Path("eval.csv")], frozenset().union(*(one.ids for one in wanted)))
    return {item.name for item in audioset.Listing(ontology, wanted, segments, n, seed, "flac").plan(())}


def test_the_seed_draws_and_more_segments_hold_the_fewer(videos: Videos) -> None:
    many = owls(200)
    first = plan(many, ["Owl"], 10)
    assert first == plan(many[::-1], ["Owl"], 10) < plan(many, ["Owl"], 20)
    assert first != plan(many, ["Owl"], 10, seed=2) and len(first) == 10


def test_a_segment_of_two_categories_counts_for_both(videos: Videos) -> None:
    both = [(video(k, "b"), "/m/07r_25d,/m/09x0r") for k in range(3)]
    more = [(video(k, "s"), "/m/09x0r") for k in range(50)]
    found = plan([*both, *more], ["Speech", "Owl"], 5)
    assert len(found) == 5 and {f"Y{name}_30s_40s.flac" for name, _ in both} < found


def test_a_dry_run_shows_the_plan_and_calls_nothing(videos: Videos, capsys: Captured) -> None:
    write_list(*owls(6), (video(9), "/m/07pggtn"))
    assert collect("--dry-run", n=4, categories=("Owl", "/m/07pggtn")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["category", "listed", "planned", "there", "failed"]
    assert lines[1].split() == ["Owl", "6", "4", "0", "0"] and lines[2].split()[-4:] == ["1", "1", "0", "0"]
    assert lines[3].strip() == "5 segments, 0.01 h"
    assert videos.calls == [] and not OUT.exists()


@pytest.mark.parametrize(
    ("category", "said"),
    [("Owls", "no such category (did you mean Owl?)"), ("twin", "several are called so: /t/1, /t/2"), ("", "no such")],
)
def test_categories_that_are_none_are_42(videos: Videos, capsys: Captured, category: str, said: str) -> None:
    write_list(*owls(1))
    assert collect(categories=(category,)) == 42
    assert said in capsys.readouterr().err and videos.calls == []


@pytest.mark.parametrize("text", ["{}", "[1]", "no", '[{"id": "x"}]', "[" * 100_000])
def test_a_file_that_is_no_ontology_is_42(videos: Videos, capsys: Captured, text: str) -> None:
    Path("ontology.json").write_text(text)
    write_list(*owls(1))
    assert collect() == 42
    assert "is no ontology of AudioSet" in capsys.readouterr().err


def test_rows_that_are_no_segments_are_counted_and_reach_no_command_line(videos: Videos, capsys: Captured) -> None:
    write_list(*owls(1), ("--exec=rm", "/m/09d5_"), ("../../../../x", "/m/09d5_"), ("short", "/m/09d5_"))
    with Path("eval.csv").open("a") as file:
        file.write(f'{video(5)}, 40.000, 30.000, "/m/09d5_"\n{video(6)}, nan, 30, "/m/09d5_"\n{video(7)}, 1\n')
    assert collect(n=9) == 0
    assert videos.calls == [video(0)] and "6 of 7 rows are no segments, the first is row 5" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "said"), [("a,b\n", "has no segments"), ("", "has no segments")])
def test_a_list_without_segments_is_42(videos: Videos, capsys: Captured, text: str, said: str) -> None:
    Path("eval.csv").write_text(text)
    assert collect() == 42
    assert said in capsys.readouterr().err


def test_categories_without_segments_are_42(videos: Videos, capsys: Captured) -> None:
    write_list((video(0), "/m/09x0r"))
    assert collect() == 42
    assert "no segment of these lists" in capsys.readouterr().err


# ---- what goes wrong ----------------------------------------------------------------------------

MESSAGES = {
    "Private video. Sign in if you've been granted access to this video. Use --cookies": "private",
    "Video unavailable. This video is private": "private",
    "Video unavailable. This video has been removed by the uploader": "removed",
    "Video unavailable. This video is no longer available because the YouTube account associated with this video has "
    "been terminated.": "removed",
    "Video unavailable": "removed",
    "This video is not available": "removed",
    "Video unavailable. The uploader has not made this video available in your country": "region",
    "Video unavailable. This video contains content from SME, who has blocked it in your country on copyright grounds":
        "region",
    "Video unavailable. This video contains content from UMG, who has blocked it on copyright grounds": "copyright",
    "Sign in to confirm your age. This video may be inappropriate for some users. Use --cookies-from-browser": "age",
    "Join this channel to get access to members-only content like this video": "private",
    "Requested format is not available. Use --list-formats for a list of available formats": "no-sound",
    "Something new": "failed",
}  # fmt: skip
PASSES = {
    "Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser": "rate-limited",
    "Unable to download API page: HTTP Error 429: Too Many Requests": "rate-limited",
    "This content isn't available, try again later. Your session has been rate-limited by YouTube": "rate-limited",
    "unable to download video data: HTTP Error 403: Forbidden": "server",
    "Unable to download webpage: [Errno -3] Temporary failure in name resolution": "network",
    "Unable to download webpage: The read operation timed out": "timeout",
}  # fmt: skip


def test_what_yt_dlp_says_for_good_has_a_reason_and_another_segment_stands_in(videos: Videos, capsys: Captured) -> None:
    gone = {video(k, "g"): {"message": message} for k, message in enumerate(MESSAGES)}
    videos.are(gone)
    write_list(*((name, "/m/09d5_") for name in gone), *owls(4))
    assert collect(n=4) == 0
    assert len(list(OUT.glob("*.flac"))) == 4
    expected = {f"Y{name}_30s_40s.flac": reason for name, reason in zip(gone, MESSAGES.values(), strict=True)}
    found = reasons(OUT)
    assert found and found == {name: expected[name] for name in found}
    assert f"4 of {4 + len(found)} recordings" in capsys.readouterr().out
    n_calls = len(videos.calls)
    assert collect(n=4) == 0 and len(videos.calls) == n_calls
    assert collect("--retry", n=17) == 0
    assert reasons(OUT) == expected
    detail = rows(OUT)[f"Y{video(0, 'g')}_30s_40s.flac"]["detail"]
    assert detail.startswith("Private video. Sign in")


@pytest.mark.parametrize(("message", "reason"), PASSES.items())
def test_what_passes_is_75_and_tried_again_by_the_next_call(videos: Videos, message: str, reason: str) -> None:
    write_list(*owls(2))
    videos.are({video(0): {"message": message}})
    assert collect() == 75
    assert reasons(OUT) == {f"Y{video(0)}_30s_40s.flac": reason}
    videos.are({})
    assert collect() == 0
    assert reasons(OUT) == {} and videos.calls.count(video(1)) == 1


def test_videos_that_end_early_are_too_short(videos: Videos) -> None:
    write_list(*owls(3))
    videos.are({video(0): {"seconds": 8.9}, video(1): {"seconds": 9.5}, video(2): {"text": True}})
    assert collect(n=3) == 0
    assert reasons(OUT) == {f"Y{video(0)}_30s_40s.flac": "too-short", f"Y{video(2)}_30s_40s.flac": "not-audio"}
    assert rows(OUT)[f"Y{video(0)}_30s_40s.flac"]["detail"] == "8.9 of 10 s"
    assert not list(OUT.glob(".unfinished*"))


def test_a_program_that_floods_the_disk_is_ended_at_the_limit(videos: Videos) -> None:
    write_list(*owls(1))
    videos.are({video(0): {"seconds": 1, "floods": True}})
    assert collect(max_file_mb=3) == 42
    assert reasons(OUT) == {f"Y{video(0)}_30s_40s.flac": "too-large"} and not (videos.root / "survived").exists()
    assert [path.name for path in OUT.iterdir()] == ["collected.csv"]


def test_the_limit_of_all_ends_the_call(videos: Videos, capsys: Captured) -> None:
    write_list(*owls(5))
    assert collect(n=5, max_gb=0.0007, connections=1) == 42  # a clip is 0.32 MB on its way
    assert "--collect.max-gb is reached" in capsys.readouterr().err and len(list(OUT.glob("*.flac"))) == 2


def test_a_program_that_hangs_is_given_up(videos: Videos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(youtube, "_LONGEST_S", 0.5)
    write_list(*owls(1))
    videos.are({video(0): {"hangs": True, "seconds": 1}})
    assert collect() == 75
    assert set(reasons(OUT).values()) == {"timeout"} and not (videos.root / "survived").exists()


def test_sigterm_ends_the_programs_too_and_is_143(videos: Videos) -> None:
    write_list(*owls(2))
    videos.are({name: {"hangs": True, "seconds": 1} for name, _ in owls(2)})
    command = [sys.executable, "-m", "birdtune", "collect", "audioset", "--ontology", "ontology.json", "--segments",
               "eval.csv", "--per-class", "2", "--categories", "Owl", "--collect.pause-s", "0"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "code")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as job:
        deadline = time.monotonic() + 60
        while len(videos.calls) < 2:
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=30)
    assert (job.returncode, err) == (143, "birdtune: stopped by SIGTERM; run again to continue\n")
    root = os.fsencode(str(videos.root / "bin/yt-dlp"))
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if root in _content(path)]
    assert [path.name for path in OUT.iterdir()] == ["collected.csv"]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("lacks", "said"), [("yt-dlp", "extras collect"), ("ffmpeg", "apt install ffmpeg")])
def test_programs_that_are_not_there_are_named(
    videos: Videos, capsys: Captured, monkeypatch: pytest.MonkeyPatch, lacks: str, said: str
) -> None:
    (videos.root / "bin" / lacks).unlink()
    monkeypatch.setenv("PATH", str(videos.root / "bin"))
    monkeypatch.setattr(youtube.sys, "executable", "/nowhere/python")
    write_list(*owls(1))
    assert collect() == 42
    assert said in capsys.readouterr().err and not OUT.exists()


def test_the_real_program_understands_how_it_is_called() -> None:
    yt_dlp = pytest.importorskip("yt_dlp", reason="the extra collect is not installed")
    item = Item("x.flac", "https://www.youtube.com/watch?v=--PJHxphWEs", segment_s=(30.0, 40.5))
    found = yt_dlp.parse_options(youtube.command("yt-dlp", item, 20.0)[1:])
    assert found.urls == [item.url] and found.ydl_opts["download_ranges"].ranges == [[30.0, 40.5]]
    assert found.ydl_opts["postprocessors"][0]["preferredcodec"] == "wav"


@pytest.mark.parametrize("lacks", ["--ontology", "--segments", "--categories", "--per-class"])
def test_arguments_that_are_missing_are_2(videos: Videos, capsys: Captured, lacks: str) -> None:
    given = {"--ontology": "o", "--segments": "s", "--categories": "c", "--per-class": "3"}
    arguments = [part for name, value in given.items() if name != lacks for part in (name, value)]
    assert run("audioset", *arguments) == 2
    assert f"{lacks} is missing" in capsys.readouterr().err
