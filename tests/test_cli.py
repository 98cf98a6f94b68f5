"""The command line: what it understands, what it says of the rest, and with which code it ends."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import birdtune
from birdtune import cli
from birdtune.config import Config, options
from birdtune.errors import ExportError, InputError, Interrupted, RetryableError
from birdtune.pipeline import run as job
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts

ROOT = Path(__file__).parents[1]
Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Config, str]]]:
    """Instead of running, each job notes its settings and how far it was to go."""
    started: list[tuple[Config, str]] = []

    def note(config: Config, journal: Journal, interrupts: Interrupts, *, until: str = "report", **_: Any) -> int:
        started.append((config, until))
        return 0

    monkeypatch.setattr(job, "run", note)
    yield started


def refused(capsys: Captured, *arguments: str, code: int = 2) -> str:
    """Run a command line that ends with `code` and one line on stderr; that line."""
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("birdtune: error: ")
    assert err.endswith("\n") and err.count("\n") == 1
    return err


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(ROOT / "code"), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=paths | environment, check=False
    )


# ---- help and version ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--version",), ("version",), ("run", "--version"), ("check", "--version")])
def test_the_version_is_reported(capsys: Captured, arguments: tuple[str, ...]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"birdtune {birdtune.__version__}\n"


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("help",), ("run", "--help"), ("--data", "x", "-h")])
def test_the_general_help_lists_every_command_with_a_line(capsys: Captured, arguments: tuple[str, ...]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"\n  {name:<10}{command.help}\n" in out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_has_help_of_its_own_with_all_settings(capsys: Captured, name: str) -> None:
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert cli.COMMANDS[name].help.split(";")[0][:40] in out
    for option in options():
        assert option.flag in out
    assert cli.main(["help", name]) == 0
    assert capsys.readouterr().out == out


def test_help_shows_type_unit_default_and_meaning_of_each_setting(capsys: Captured) -> None:
    cli.main(["--help"])
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in options():
        kind = f"{option.type} {option.unit}".strip()
        kinds = {kind, option.unit if option.type in ("text", "path") else kind}
        assert any(f"{option.flag} {kind} ({option.default_text}) {option.help}" in out for kind in kinds), option
    assert "--train.batch-size int windows (32) windows a step" in out
    assert "--train.jit true|false (true)" in out
    assert "--data path (INPUT/data) folder of class folders" in out


def test_help_fits_the_page_and_needs_no_letters_that_a_terminal_may_lack(capsys: Captured) -> None:
    cli.main(["--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 110
    assert out.isascii()


def test_help_names_the_exit_codes(capsys: Captured) -> None:
    cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(code in out for code in ("0 done", "2 usage", "42 ", "75 ", "143/130", "1 a defect"))


def test_every_setting_and_command_has_one_line_of_help() -> None:
    for option in options():
        assert option.help and "\n" not in option.help and option.help[-1] != "."
    for command in cli.COMMANDS.values():
        assert command.help and "\n" not in command.help


# ---- what is understood -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "until"),
    [
        ((), "report"),
        (("run",), "report"),
        (("prepare",), "prepare"),
        (("train",), "train"),
        (("evaluate",), "evaluate"),
        (("export",), "export"),
        (("report",), "report"),
    ],
)
def test_each_stage_is_a_command_and_the_job_is_the_default(
    jobs: list[tuple[Config, str]], arguments: tuple[str, ...], until: str
) -> None:
    assert cli.main(arguments) == 0
    assert [reached for _, reached in jobs] == [until]


@pytest.mark.parametrize(
    "flags",
    [
        ["--train.epochs", "3", "--train.batch-size", "8"],
        ["--train.epochs=3", "--train.batch-size=8"],
        ["--train.epochs=3", "--train.batch_size=8"],
        ["--train.epochs", "9", "--train.epochs", "3", "--train.batch_size", "8"],
    ],
)
def test_flags_may_be_joined_or_not_and_spelt_with_underscores(
    jobs: list[tuple[Config, str]], flags: list[str]
) -> None:
    cli.main(flags)
    assert (jobs[0][0].train.epochs, jobs[0][0].train.batch_size) == (3, 8)


def test_values_may_begin_with_a_dash_when_joined(jobs: list[tuple[Config, str]]) -> None:
    cli.main(["--split.group-regex=-x", "--output=-o"])
    assert (jobs[0][0].split.group_regex, jobs[0][0].output) == ("-x", Path("-o"))


def test_flag_beats_environment_beats_yaml(
    jobs: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("input").mkdir()
    Path("input/job.yaml").write_text("train: {epochs: 3, seed: 3, keep-checkpoints: 3}\n")
    monkeypatch.setenv("BIRDTUNE_TRAIN__EPOCHS", "4")
    monkeypatch.setenv("BIRDTUNE_TRAIN__SEED", "4")
    cli.main(["--train.epochs", "5"])
    train = jobs[0][0].train
    assert (train.epochs, train.seed, train.keep_checkpoints) == (5, 4, 3)


def test_demo_makes_its_own_input_and_minds_no_job_yaml(
    jobs: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("input").mkdir()
    Path("input/job.yaml").write_text("split: {file: folds.csv}\ntrain: {epochs: 3}\n")
    made = type("Made", (), {"clips": 1, "seconds": 1.0, "classes": ["A"], "sources": 1, "broken": {}})
    monkeypatch.setattr("birdtune.pipeline.demo.make_data", lambda folder, **_: folder.mkdir(parents=True) or made)
    assert cli.main(["demo", "--output", "o"]) == 0
    config = jobs[0][0]
    assert (config.input, config.data, config.split.file) == (Path("o/demo-input"), None, None)
    assert (config.model.checkpoint, config.train.epochs) == ("none", cli.DEMO_SETTINGS["train.epochs"])


def test_run_on_the_input_of_a_demo_is_the_same_job(
    jobs: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = type("Made", (), {"clips": 1, "seconds": 1.0, "classes": ["A"], "sources": 1, "broken": {}})
    monkeypatch.setattr("birdtune.pipeline.demo.make_data", lambda folder, **_: folder.mkdir(parents=True) or made)
    cli.main(["demo", "--output", "o", "--train.seed", "5"])
    again = capsys.readouterr().out.splitlines()[-1].split("entrypoint.sh ")[1].split()
    assert cli.main(again) == 0
    assert jobs[1][0] == jobs[0][0]
    assert jobs[1][0].train.seed == 5


def test_a_flag_beats_the_settings_of_the_demo(
    jobs: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = type("Made", (), {"clips": 1, "seconds": 1.0, "classes": ["A"], "sources": 1, "broken": {}})
    monkeypatch.setattr("birdtune.pipeline.demo.make_data", lambda folder, **_: folder.mkdir(parents=True) or made)
    cli.main(["demo", "--train.epochs", "2"])
    assert jobs[0][0].train.epochs == 2


# ---- what is not --------------------------------------------------------------------------------


def test_an_unknown_command_is_reported_with_the_nearest_and_all(capsys: Captured) -> None:
    line = refused(capsys, "chekc")
    assert "there is no command 'chekc' (did you mean check?)" in line
    assert all(name in line for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train.epoch", "3"], "(did you mean --train.epochs?)"),
        (["--epochs=3"], "(did you mean --train.epochs?)"),
        (["check", "--outptu", "x"], "(did you mean --output?)"),
        (["embed", "a.wav", "--outt", "x"], "(did you mean --out?)"),
        (["embed", "a.wav", "--patches", "x"], "'--patches' is not understood"),
        (["predict", "a.wav", "--out", "x.csv", "--patches", "./x.csv"], "--out and --patches are one file"),
        (["predict", "a.wav", "--window", "long"], "argument --window: invalid float value: 'long'"),
        (["export", "--fromat", "slim"], "(did you mean --format?)"),
        (["--bogus"], "'--bogus' is not understood. `./entrypoint.sh run --help`"),
        (["--train.epochs"], "argument --train.epochs: expected one argument"),
        (["export", "--format", "torch"], "invalid choice: 'torch'"),
        (["embed"], "no files are named"),
        (["test"], "./entrypoint.sh test"),
        (["demo", "--input", "x"], "leave out --input"),
        (["demo", "--data", "x"], "leave out --data"),
    ],
)
def test_an_unknown_flag_or_value_is_usage_and_says_what_was_meant(
    capsys: Captured, arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_command_after_flags_is_said_to_come_first(capsys: Captured) -> None:
    assert "the command comes first: `./entrypoint.sh check ...`" in refused(capsys, "--output", "o", "check")


def test_a_folder_without_its_flag_is_recognised(capsys: Captured) -> None:
    Path("sounds").mkdir()
    for arguments in (["sounds"], ["run", "sounds"]):
        assert "a folder is given with --input sounds or --data sounds" in refused(capsys, *arguments)
    assert "--input" not in refused(capsys, "run", "nothing")


def test_a_wrong_value_is_42_before_anything_is_made(capsys: Captured) -> None:
    line = refused(capsys, "--train.epochs", "0", code=42)
    assert "--train.epochs = '0'" in line
    assert list(Path().iterdir()) == []


def test_an_unknown_name_in_environment_or_yaml_is_42(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("input").mkdir()
    Path("input/job.yaml").write_text("train: {epoch: 3}\n")
    assert "(did you mean train.epochs?)" in refused(capsys, code=42)
    monkeypatch.setenv("BIRDTUNE_TRAIN__EPOCH", "3")
    assert "(did you mean BIRDTUNE_TRAIN__EPOCHS?)" in refused(capsys, code=42)


def test_hostile_text_in_arguments_is_shown_harmless(capsys: Captured) -> None:
    for arguments in (["\x1b[2J"], ["--\x1b[2J"], ["run", "\x1b[2J\n"], ["--data", "\x1b\n", "--output", "\x1b\n"]):
        assert cli.main(arguments) in (2, 42)
        err = capsys.readouterr().err
        assert "\x1b" not in err and err.count("\n") == 1


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (InputError("x.wav: is odd"), 42, "birdtune: error: x.wav: is odd\n"),
        (RetryableError("no room"), 75, "birdtune: error: no room\n"),
        (ExportError("differs"), 1, "birdtune: error: differs\n"),
        (Interrupted(15), 143, "birdtune: stopped by SIGTERM; run again to continue\n"),
        (Interrupted(2), 130, "birdtune: stopped by SIGINT; run again to continue\n"),
    ],
)
def test_each_fault_ends_with_its_code_and_one_line(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int, line: str
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise fault

    monkeypatch.setattr(job, "run", fail)
    assert cli.main([]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("command", "function"), [("predict", "scorer_in"), ("embed", "_embedder")])
def test_where_nothing_is_kept_the_message_does_not_say_to_continue(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, function: str
) -> None:
    from birdtune.pipeline import embed as embedding
    from birdtune.pipeline import predict as prediction

    def stop(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(prediction if command == "predict" else embedding, function, stop)
    out = tmp_path / "x"
    assert cli.main([command, "a.wav", "--model", "m", "--out", str(out)]) == 130
    assert capsys.readouterr().err == f"birdtune: stopped by SIGINT; {out} was not written, and nothing is kept\n"


@pytest.mark.parametrize(
    ("command", "out", "ending"),
    [("predict", "night.Table.1.selections.txt", ".csv"), ("predict", "x.xlsx", ".csv"), ("embed", "x.csv", ".npz"),
     ("augment", "x.svg", ".png")],
)  # fmt: skip
def test_an_ending_of_another_format_is_refused_before_any_work(
    capsys: Captured, tmp_path: Path, command: str, out: str, ending: str
) -> None:
    files = ["a.wav"] if command != "augment" else []
    assert cli.main([command, *files, "--out", str(tmp_path / out)]) == 2
    err = capsys.readouterr().err
    assert out in err and f"ends in {ending}" in err and not list(tmp_path.iterdir())


def test_a_list_that_is_not_there_is_named(capsys: Captured, tmp_path: Path) -> None:
    assert cli.main(["predict", "--list", str(tmp_path / "none.txt")]) == 42
    assert "--list" in capsys.readouterr().err


def test_a_defect_shows_its_traceback_and_owns_up(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise KeyError("of our making")

    monkeypatch.setattr(job, "run", fail)
    assert cli.main([]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "KeyError: 'of our making'" in err
    assert f"this is a defect of birdtune {birdtune.__version__}, not of your data" in err


def test_the_module_is_the_command_and_hands_on_its_code() -> None:
    done = python("-m", "birdtune", "chekc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean check?" in done.stderr


def test_whoever_listens_may_go_away() -> None:
    # More than a pipe holds, so that the reader's end is met for certain.
    script = (
        "import sys; from birdtune.runtime.log import Journal\n"
        "journal = Journal()\n"
        "for _ in range(20_000): journal.say('a line that nobody reads')\n"
        "sys.stderr.write('worked on')"
    )
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -n 1', sys.executable, script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "code"), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line that nobody reads\n", "worked on")


def test_help_to_a_reader_that_is_gone_ends_in_peace() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "birdtune", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT / "code")},
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_of_ascii_only_gets_escapes(tmp_path: Path) -> None:
    done = python("-m", "birdtune", "check", "--data", "Vögel", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 42
    assert "V\\xf6gel" in done.stdout
    assert "Traceback" not in done.stderr
