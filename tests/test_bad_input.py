"""Bad input through the real command: the right code, one clear line, a row in problems.csv, no traceback.

One small job with hostile names and broken files is driven from its first start, over two stops by
SIGTERM, to its end; what it leaves is looked at from all sides.
"""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import helpers_input
import numpy as np
import pytest

from birdtune import cli
from birdtune.data.scan import PROBLEMS

pytestmark = pytest.mark.usefixtures("in_one_process", "alone")

CODE = Path(cli.__file__).parents[1]
A, B, C = helpers_input.CLASSES
Captured = pytest.CaptureFixture[str]

# As user 0, rights are not asked for: these two capabilities go. Anybody else has none.
WITHOUT_CAPABILITIES = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if os.geteuid() == 0
    else []
)


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(CODE), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "2", "HOME": "/nonexistent"}


def refused(capsys: Captured, *arguments: str, code: int = 42) -> str:
    """Run a command that ends with `code` and one line on stderr; that line."""
    assert cli.main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("birdtune: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("birdtune: error: ")


def prepare(capsys: Captured, *arguments: str, code: int = 42) -> str:
    return refused(capsys, "prepare", *arguments, code=code)


def wrongs(capsys: Captured, *arguments: str) -> list[str]:
    """What `check` finds wrong."""
    assert cli.main(["check", *arguments]) == 42
    out, err = capsys.readouterr()
    assert err == ""
    return [line.removeprefix("wrong: ") for line in out.splitlines() if line.startswith("wrong: ")]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good input folder, and an output folder in which it is prepared."""
    folder = tmp_path_factory.mktemp("known")
    helpers_input.write_good(folder / "input" / "data", recordings=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["prepare"]) == 0
    return folder


@pytest.fixture
def good(known: Path, tmp_path: Path) -> Path:
    """A folder to stand in: good input, prepared output."""
    shutil.copytree(known / "output", tmp_path / "output")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "data").symlink_to(known / "input" / "data")
    return tmp_path


# ---- folders ------------------------------------------------------------------------------------


def test_no_input_folder_says_where_one_is_expected_and_how_to_give_it(capsys: Captured) -> None:
    line = prepare(capsys)
    assert line.startswith("input/data: there is no such folder")
    assert all(way in line for way in ("--input", "--data", "/model/input"))


def test_no_data_folder_in_the_input_is_the_same(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    assert prepare(capsys).startswith("input/data: there is no such folder")


def test_a_data_folder_without_class_folders_shows_what_one_looks_like(capsys: Captured, tmp_path: Path) -> None:
    helpers_input.write_tone(tmp_path / "input/data/one.wav", 1)
    line = prepare(capsys)
    assert line.startswith("input/data: holds no class folders")
    assert "input/data/Turdus_merula/one.wav" in line


def test_an_empty_data_folder_and_a_file_in_its_place_are_told_apart(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "input/data").mkdir(parents=True)
    assert "holds no class folders" in prepare(capsys)
    (tmp_path / "file").touch()
    assert prepare(capsys, "--data", "file").startswith("file: is a file; expected a folder")
    assert prepare(capsys, "--input", "file").startswith("file: is a file; expected a folder, for file/data, with")


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_a_file_is_said_to_be_one(capsys: Captured, good: Path, output: str) -> None:
    (good / "file").touch()
    line = prepare(capsys, "--output", output)
    assert line.startswith("file: is a file where a folder is needed") and "--output" in line
    assert ("for file/below" in line) == (output == "file/below")


@pytest.mark.parametrize(("given", "said"), [("none", "there is no such folder"), ("file", "is a file; expected a")])
def test_a_background_folder_that_is_none_is_told_by_its_setting(
    capsys: Captured, good: Path, given: str, said: str
) -> None:
    (good / "file").touch()
    line = prepare(capsys, "--background", given)
    assert line.startswith(f"{given}: {said}") and f"{given}/night.wav" in line
    assert "as --background;" in line and "--data" not in line


@pytest.mark.parametrize("setting", ["--labels.map", "--split.file", "--train.sample-weights"])
def test_a_table_that_is_none_is_told_by_its_setting_before_any_sound_is_heard(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    helpers_input.write_good(tmp_path / "input/data", recordings=1)
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr("birdtune.data.frames.run_tasks", lambda *_, **__: pytest.fail("something was decoded"))
    for given, said in (("none.csv", "there is no such file; expected a"), ("folder.csv", "is a folder; expected a")):
        assert prepare(capsys, setting, given).startswith(f"{setting} {given}: {said}")


@pytest.mark.parametrize("arguments", [["predict", "x.wav"], ["embed", "x.wav"], ["augment"]])
def test_a_place_where_nothing_can_be_written_is_told_before_anything_is_computed(
    capsys: Captured, good: Path, arguments: list[str]
) -> None:
    (good / "file").touch()
    (good / "folder").mkdir()
    for given, said in (("folder", "is a folder; expected the name of a file"), ("file/x", "file is a file where a")):
        assert cli.main([*arguments, "--out", given]) == 42
        assert capsys.readouterr().err.startswith(f"birdtune: error: --out {given}: {said}")


def test_names_too_long_for_the_system_are_no_defect(capsys: Captured, good: Path) -> None:
    long = "a" * 300
    assert "File name too long" in prepare(capsys, "--output", long)
    assert "File name too long" in prepare(capsys, "--data", long)
    assert "File name too long" in prepare(capsys, "--input", long)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no usable recording at all"),
        ({f"{A}/letter.txt": b"x", f"{B}/broken.wav": b"x" * 99}, "no usable recording at all"),
        ({f"{A}/one.wav": None, f"{B}/broken.wav": b"x" * 99}, f'only one class with usable recordings ("{A}")'),
    ],
)
def test_fewer_than_two_usable_classes_are_refused_with_the_reasons(
    capsys: Captured, tmp_path: Path, files: dict[str, bytes | None], said: str
) -> None:
    for name in (A, B):
        (tmp_path / "input/data" / name).mkdir(parents=True)
    for name, content in files.items():
        path = tmp_path / "input/data" / name
        if content is None:
            helpers_input.write_tone(path, 1)
        else:
            path.write_bytes(content)
    line = prepare(capsys)
    assert line.startswith("input/data: ") and said in line and "at least two classes" in line
    unusable = {name for name, content in files.items() if content is not None}
    assert helpers_input.problems(tmp_path / "output").keys() == unusable
    if unusable:
        assert "not-audio" in line
    assert json.loads((tmp_path / "output/run.json").read_text())["exit_code"] == 42


# ---- files of the user ---------------------------------------------------------------------------


class _Trap:
    """What unpickles to the making of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_a_program_in_it_is_refused_and_not_run(
    capsys: Captured, good: Path, protocol: int
) -> None:
    trap = good / "trap"
    (good / "input/bird_id_map.pickle").write_bytes(pickle.dumps({A: _Trap(trap)}, protocol))
    for line in (prepare(capsys), *wrongs(capsys, "--model.checkpoint", "none")):
        assert line.startswith("input/bird_id_map.pickle: is no pickle of plain data (it names ")
        assert "JSON" in line
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bird_id_map.pickle", pickle.dumps({A: 1})[:-4], "is no pickle of plain data"),
        ("bird_id_map.pickle", b"", "is no pickle of plain data"),
        ("bird_id_map.pickle", pickle.dumps([A, B]), "holds a list; expected a mapping"),
        ("bird_id_map.pickle", pickle.dumps({A: 1.5}), "does not map"),
        ("bird_id_map.json", b'{"Apus_apus": 1', r"is not a whole \.json file"),
        ("bird_id_map.json", b"\xff\xfe", r"is not a whole \.json file"),
        ("bird_id_map.json", b'{"Apus_apus": null}', "does not map a class name"),
        ("bird_id_map.yaml", b"a: [", r"is not a whole \.yaml file"),
        ("bird_id_map.yaml", b"!!python/object/apply:os.mkdir ['trap']", r"is not a whole \.yaml file"),
        ("bird_id_map.csv", b"name\nApus_apus\n", "has one column; expected two"),
        ("bird_id_map.csv", b"name,id\nApus_apus,1\nApus_apus,2\n", "row 3: the class Apus_apus"),
    ],
)
def test_a_damaged_label_map_is_named_with_what_is_wrong(
    capsys: Captured, good: Path, name: str, content: bytes, said: str
) -> None:
    (good / "input" / name).write_bytes(content)
    line = prepare(capsys)
    assert line.startswith(f"input/{name}")
    assert re.search(said, line)
    assert not (good / "trap").exists()


def test_two_label_maps_or_a_missing_one_are_not_guessed_about(capsys: Captured, good: Path) -> None:
    assert prepare(capsys, "--labels.map", "none.json").startswith("--labels.map none.json: there is no such")
    for ending in ("json", "csv"):
        (good / f"input/bird_id_map.{ending}").touch()
    assert "input: holds several label maps (bird_id_map.json, bird_id_map.csv)" in prepare(capsys)


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        (None, [], "--split.file split.csv: there is no such file; expected a CSV `recording,split`"),
        (b"", [], "expected `recording,split`"),
        (b"\xff\xfe\x00", [], "is UTF-16 that breaks off"),
        (b"name,side\nrec0.wav,test\n", [], "its columns are name, side; expected `recording,split`"),
        (b"recording,split\nApus_apus/rec0.wav,exam\n", [], "row 2: the split 'exam'; expected train, val or test"),
        (b"recording,split\nApus_apus/rec0.wav,train,x\n", [], "row 2: has more cells than the header"),
        (b"recording,split\na.wav,test\na.wav,train\n", [], "a.wav stands there twice, on two sides"),
        (b"recording,split\nnowhere.wav,train\n", [], "lists none of the recordings that were found"),
        (b"recording,fold\nApus_apus/rec0.wav,one\n", [], "a fold must be a whole number"),
        (b"recording,fold\nApus_apus/rec0.wav,1\n", [], "has folds (1): say which one is test, --split.test-fold 1"),
        (b"recording,fold\nApus_apus/rec0.wav,1\n", ["--split.test-fold", "9"], "has the folds 1."),
        (b"recording,split\nApus_apus/rec0.wav,test\nBubo_bubo/rec0.wav,test\n", [], "no recording for training"),
    ],
)
def test_a_split_file_that_cannot_be_obeyed_is_refused(
    capsys: Captured, good: Path, content: bytes | None, flags: list[str], said: str
) -> None:
    if content is not None:
        (good / "split.csv").write_bytes(content)
    assert said in prepare(capsys, "--split.file", "split.csv", *flags)


def test_recordings_that_a_split_file_does_not_list_are_left_out_with_a_row(capsys: Captured, good: Path) -> None:
    names = [f"{label}/rec{number}.wav" for label in (A, B) for number in range(4)]
    rows = [f"{name},{'test' if 'rec3' in name else 'train'}" for name in names]
    (good / "split.csv").write_text("\n".join(["recording,split", *rows]))
    assert cli.main(["prepare", "--split.file", "split.csv"]) == 0
    assert "4 of 12 files not used: 4 not-in-split" in capsys.readouterr().out
    assert {row["problem"] for row in helpers_input.problems(good / "output").values()} == {"not-in-split"}


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--model.freeze", "conv9", "model.freeze: conv9 is not known. Choose one of none, conv, all-but-head"),
        ("--split.group-regex", "(", "--split.group-regex '(': is no regular expression"),
        ("--train.epochs", "0", "--train.epochs = '0'"),
        ("--model.checkpoint", "nowhere.ckpt", "https://storage.googleapis.com/audioset/vggish_model.ckpt"),
    ],
)
def test_a_wrong_setting_is_told_before_any_sound_is_heard(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, said: str
) -> None:
    helpers_input.write_good(tmp_path / "input/data", recordings=1)

    def heard(*_: object, **__: object) -> None:
        raise AssertionError("decoded before the setting was looked at")

    monkeypatch.setattr("birdtune.data.frames.run_tasks", heard)
    settings = {"--model.checkpoint": "none", flag: value}
    assert said in refused(capsys, "run", *(part for pair in settings.items() for part in pair))


def test_without_a_checkpoint_it_is_said_where_to_get_one_and_how_to_go_without(capsys: Captured, good: Path) -> None:
    line = refused(capsys, "run")
    assert line.startswith("input/vggish_model.ckpt: there is no VGGish checkpoint")
    assert "https://storage.googleapis.com/audioset/vggish_model.ckpt" in line
    assert "--model.checkpoint none" in line
    assert wrongs(capsys) == [line.strip()]


def test_checkpoints_that_are_none_or_of_another_network_are_named(capsys: Captured, good: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    (good / "garbage.ckpt").write_bytes(os.urandom(5000))
    (good / "empty.ckpt").touch()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, variable in (("other", "resnet/conv1/kernel"), ("narrow", "vggish/conv1/weights")):
            tf.compat.v1.Variable(np.zeros((3, 3, 1, 5), np.float32), name=variable)
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(good / f"{name}.ckpt"), write_meta_graph=False)
    for name, said in (
        ("garbage.ckpt", "is not a TensorFlow checkpoint"),
        ("empty.ckpt", "is not a TensorFlow checkpoint"),
        ("other.ckpt", "is a checkpoint of another network: no variable in it is named vggish/"),
        ("narrow.ckpt", "vggish/conv1/weights is [3, 3, 1, 5], not [3, 3, 1, 64]"),
        ("input", "holds no TensorFlow checkpoint"),
    ):
        (line,) = wrongs(capsys, "--model.checkpoint", name)
        assert line.startswith(f"--model.checkpoint {name}: ")
        assert said in line
    assert "resnet/conv1/kernel" in wrongs(capsys, "--model.checkpoint", "other.ckpt")[0]


# ---- rights -------------------------------------------------------------------------------------


def without_rights(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command as a user to whom the rights of files apply."""
    if WITHOUT_CAPABILITIES and shutil.which("setpriv") is None:
        pytest.skip("user 0 may do everything, and there is no setpriv to take that away")
    command = [*WITHOUT_CAPABILITIES, sys.executable, "-m", "birdtune", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def locked() -> Iterator[list[Path]]:
    """Paths from which all rights but those to look are taken, until the test is over."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.chmod(0o700)


def test_unreadable_files_and_a_read_only_input_are_lived_with(tmp_path: Path, locked: list[Path]) -> None:
    data = tmp_path / "input/data"
    helpers_input.write_good(data, recordings=2)
    locked += [data / A / "rec0.wav", data / C, data / A, data, data.parent]
    for path, mode in zip(locked, (0, 0, 0o555, 0o555, 0o555), strict=True):
        path.chmod(mode)
    done = without_rights("check", "--model.checkpoint", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    for path in locked[:2]:
        path.chmod(0o700)
    rows = helpers_input.problems(tmp_path / "output")
    assert {name: row["problem"] for name, row in rows.items()} == {f"{A}/rec0.wav": "unreadable", C: "unreadable"}
    assert "Permission denied" in rows[C]["detail"] and "chmod" in rows[C]["advice"]


def test_a_read_only_output_is_told_with_the_user_and_the_way_out(tmp_path: Path, locked: list[Path]) -> None:
    helpers_input.write_good(tmp_path / "input/data", recordings=1)
    (tmp_path / "output").mkdir()
    locked.append(tmp_path / "output")
    (tmp_path / "output").chmod(0o555)
    for output in ("output", "output/below"):
        done = without_rights("run", "--model.checkpoint", "none", "--output", output)
        assert (done.returncode, done.stderr.count("\n")) == (42, 1)
        assert f"(uid {os.geteuid()})" in done.stderr and "--user" in done.stderr
    done = without_rights("check", "--model.checkpoint", "none")
    assert done.returncode == 42
    assert "wrong: output: cannot be written (Permission denied)" in done.stdout and "3 usable" in done.stdout


def test_input_files_that_cannot_be_read_are_named(tmp_path: Path, locked: list[Path]) -> None:
    helpers_input.write_good(tmp_path / "input/data", recordings=1)
    for name, arguments in (
        ("input/job.yaml", ()),
        ("input/bird_id_map.json", ()),
        ("split.csv", ("--split.file", "split.csv")),
        ("input/data", ()),
    ):
        path = tmp_path / name
        path.touch()
        path.chmod(0)
        done = without_rights("prepare", *arguments)
        path.chmod(0o700)
        assert (done.returncode, done.stderr.count("\n")) == (42, 1)
        assert f"{name}: cannot be" in done.stderr and "Permission denied" in done.stderr
        if path.is_file():
            path.unlink()


# ---- one whole job ------------------------------------------------------------------------------

# Names below a class folder may not hold a slash; a folder in between puts one in.
HOSTILE = "<script>alert(1)<"
HOSTILE_FILES = (
    "script>/x.wav",
    "<img src=x onerror=alert(2)>.wav",
    "'\"&amp;.wav",
    "=cmd|' !A0.wav",
    "new\nline.wav",
    "\x1b[2J\u202egnp.wav",
    "Vo\u0308gel \U0001f426.wav",
    os.fsdecode(b"latin-1-\xf6.wav"),
)
SETTINGS = (
    "--model.backbone", "vggish-small", "--model.checkpoint", "none", "--train.precision", "float32",
    "--train.batch-size", "4", "--train.early-stopping-patience", "0", "--train.jit", "false",
    "--evaluate.bootstrap", "20", "--audio.max-hours", "0.001",
)  # fmt: skip


@dataclass
class Job:
    """A job that was stopped in prepare and in train, and went on each time."""

    folder: Path
    expected: dict[str, str]  # recording → problem code
    codes: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    records: list[dict[str, object]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def start(self, *, stop_at: str | None) -> None:
        """Run the command; send SIGTERM when a line begins with `stop_at`."""
        command = [sys.executable, "-m", "birdtune", "run", "--train.epochs", "4", *SETTINGS]
        with subprocess.Popen(
            command, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if stop_at is not None and line.startswith(stop_at):
                    process.send_signal(signal.SIGTERM)
                    stop_at = None
        self.codes.append(process.returncode)
        self.outputs.append("".join(lines))
        self.records.append(json.loads((self.output / "run.json").read_text("utf-8")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    data = folder / "input" / "data"
    helpers_input.write_good(data, (A, B))
    job = Job(folder, helpers_input.write_bad(data))
    for number, name in enumerate(HOSTILE_FILES):
        path = data / HOSTILE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        helpers_input.write_tone(folder / "plain.wav", 200 + number).rename(path)
    (data / HOSTILE / "<b>not sound<").mkdir()
    (data / HOSTILE / "<b>not sound<" / "b>.wav").write_text("<b>not sound</b>")
    job.expected[f"{HOSTILE}/<b>not sound</b>.wav"] = "not-audio"
    job.start(stop_at="prepare: ")
    job.start(stop_at="  epoch   1 of 4")
    job.start(stop_at=None)
    return job


def metrics(job: Job) -> dict[str, dict[str, object]]:
    found = json.loads((job.output / "reports/1/metrics.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def test_sigterm_in_prepare_and_in_train_is_143_and_the_next_start_goes_on_to_the_end(finished: Job) -> None:
    assert finished.codes == [143, 143, 0], finished.outputs
    in_prepare, in_train, whole = finished.outputs
    assert "birdtune: stopped by SIGTERM; run again to continue" in in_prepare
    assert "birdtune: stopped by SIGTERM; run again to continue" in in_train
    assert "version 1: going on" in whole
    assert re.search(r"resuming before epoch [2-4]", whole)
    assert "  epoch   1 of 4" not in whole


def test_the_record_of_a_stopped_job_says_so(finished: Job) -> None:
    in_prepare, in_train, whole = finished.records
    assert (in_prepare["status"], in_prepare["exit_code"], in_prepare["stage"]) == ("interrupted", 143, "prepare")
    assert (in_train["status"], in_train["exit_code"], in_train["stage"]) == ("interrupted", 143, "train")
    assert (whole["status"], whole["exit_code"], whole["stage"]) == ("done", 0, "done")


def test_no_start_shows_a_traceback_or_lets_a_name_command_the_terminal(finished: Job) -> None:
    for output in finished.outputs:
        assert "Traceback" not in output
        assert "\x1b" not in output and "\u202e" not in output


def test_the_record_of_a_finished_job_holds_what_scripts_rely_on(finished: Job) -> None:
    record = finished.records[-1]
    assert record["version"] == 1
    stages = record["stages"]
    assert isinstance(stages, dict)
    assert set(stages) == {"prepare", "train", "evaluate", "export", "report"}
    assert all(seconds > 0 for seconds in stages.values())
    assert re.fullmatch("[0-9a-f]{64}", str(record["weights_sha256"]))


def test_the_figures_hold_what_scripts_rely_on_with_the_baseline_beside(finished: Job) -> None:
    test = metrics(finished)["test"]
    clip = test["clip"]
    assert isinstance(clip, dict)
    assert 0 <= clip["accuracy"] <= 1
    assert 0 <= clip["macro_ap"] <= 1
    baseline = test["majority_baseline"]
    assert isinstance(baseline, float) and 0 < baseline < 1
    assert f"majority baseline {baseline:.3f}" in finished.outputs[-1]


def test_every_bad_file_has_its_row_with_reason_and_advice(finished: Job) -> None:
    for folder in ("output", "output/reports/1"):
        rows = helpers_input.problems(finished.folder / folder)
        assert {name: row["problem"] for name, row in rows.items()} == finished.expected
        for name, row in rows.items():
            assert row["used"] == ("yes" if name in helpers_input.USED else "no")
            assert row["detail"] and row["advice"] == PROBLEMS[row["problem"]]


def test_the_books_balance(finished: Job) -> None:
    events = [json.loads(line) for line in (finished.output / "logs/1/events.jsonl").read_text("utf-8").splitlines()]
    books = [event for event in events if event["event"] == "dataset"][-1]
    left_out = Counter(problem for name, problem in finished.expected.items() if name not in helpers_input.USED)
    assert books["left_out"] == left_out
    assert books["found"] == books["used"] + left_out.total()
    # Two classes of six and one of hostile names; one copy of rec0 serves.
    assert books["used"] == 6 + 6 + len(helpers_input.USED) + len(HOSTILE_FILES)
    assert books["train"] + books["val"] + books["test"] == books["used"]


def test_hostile_names_are_text_in_the_report(finished: Job) -> None:
    page = (finished.output / "reports/1/report.html").read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;" in page
    for attack in ("<script>alert", "<img src=x", "<b>not sound"):
        assert attack not in page
    assert "\x1b" not in page and "\u202e" not in page


def test_hostile_names_stay_one_cell_in_every_table(finished: Job) -> None:
    names = {path.name for path in (finished.output / "reports/1").glob("*.csv")}
    assert {"classes.csv", "problems.csv", "per_class.csv", "predictions.csv", "confusion.csv"} <= names
    split = (finished.output / "split.csv").read_bytes().decode("utf-8")
    assert "new\\nline.wav" in split and "\\x1b[2J" in split and "latin-1-\\udcf6.wav" in split
    for table in (finished.output / "reports/1").glob("*.csv"):
        assert "\x1b" not in table.read_bytes().decode("utf-8")


def test_the_report_names_the_empty_class_and_the_model_its_classes(finished: Job) -> None:
    assert "Empty_class" in finished.outputs[-1]
    model = json.loads((finished.output / "model/birdtune/1/model.json").read_text("utf-8"))
    assert model["classes"] == [HOSTILE, A, B]


def test_a_second_run_has_nothing_to_do_and_does_not_load_tensorflow(finished: Job) -> None:
    script = (
        "import sys; from birdtune.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(code or bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    report = finished.output / "reports/1/report.html"
    before = report.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--train.epochs", "4", *SETTINGS],
        cwd=finished.folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do: report of version 1 is current" in done.stdout
    assert report.stat().st_mtime_ns == before
    record = json.loads((finished.output / "run.json").read_text("utf-8"))
    assert (record["status"], record["version"], record["exit_code"]) == ("done", 1, 0)
    assert record["weights_sha256"] == finished.records[-1]["weights_sha256"]


def test_check_finds_the_same_problems_without_having_heard_the_files(
    capsys: Captured, finished: Job, tmp_path: Path
) -> None:
    arguments = ["--input", str(finished.folder / "input"), "--output", str(tmp_path / "out"), *SETTINGS]
    assert cli.main(["check", *arguments]) == 0
    out = capsys.readouterr().out
    rows = helpers_input.problems(tmp_path / "out")
    assert {name: row["problem"] for name, row in rows.items()} == finished.expected
    for problem in set(finished.expected.values()):
        assert f": {problem}. {PROBLEMS[problem]}" in out
    assert "\x1b" not in out and "\u202e" not in out
