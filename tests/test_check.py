"""`check`: all that is wrong at once, what the job will cost, and nothing that takes long twice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_input
import numpy as np
import pytest
from makers import quiet

from birdtune import cli
from birdtune.audio.logmel import VGGISH
from birdtune.data import dataset as gather
from birdtune.errors import RetryableError
from birdtune.models import registry
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import check as checks
from birdtune.pipeline import costs
from birdtune.runtime.configure import load
from birdtune.runtime.log import duration
from birdtune.runtime.signals import Interrupts

pytestmark = pytest.mark.usefixtures("in_one_process", "alone")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input folder, and an output folder which knows its recordings already."""
    folder = tmp_path_factory.mktemp("known")
    helpers_input.write_good(folder / "input" / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["check", "--model.checkpoint", "none"]) == 0
    return folder


@pytest.fixture
def place(known: Path, tmp_path: Path) -> Path:
    """A folder to stand in, with an output of its own that knows the recordings."""
    shutil.copytree(known / "output", tmp_path / "output")
    return known / "input"


def checked(capsys: Captured, *arguments: str, code: int = 0) -> str:
    assert cli.main(["check", *arguments]) == code
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == ("The job can run." if code == 0 else "The job cannot run until this is mended.")
    return out


def wrongs(out: str) -> list[str]:
    return [line.removeprefix("wrong: ") for line in out.splitlines() if line.startswith("wrong: ")]


def test_good_data_is_reported_class_by_class(capsys: Captured, place: Path) -> None:
    lines = checked(capsys, "--input", str(place), "--model.checkpoint", "none").splitlines()
    assert "18 files found, 18 usable: 3 classes, 0.01 h of sound" in lines
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert rows["class"] == ["recordings", "sources", "minutes", "train", "val", "test"]
    for name in helpers_input.CLASSES:
        assert rows[name][:3] == ["6", "6", "0.1"]
        assert sum(map(int, rows[name][3:])) == 6
    assert lines[lines.index("18 recordings of 18 source recordings:") + 1] == "  18 are each their own source"
    assert "checkpoint: none, training from scratch" in lines
    assert "backbone: VGGish, 16,000 Hz, windows of 0.975 s, embeddings of 128 numbers" in lines
    assert "  trained on: no recordings but those of this model and its base models" in lines
    assert "note: No label map: classes have no external ids." in lines


def test_how_sources_were_found_is_reported(capsys: Captured, tmp_path: Path) -> None:
    for rec in range(4):
        for k in range(3):
            name = f"0.{950 - k}_{k + 1}_SITE{rec:02}_20230501_050000_{3 * k}.0s_{3 * k + 3}.0s.wav"
            label = "Aves_a" if rec % 2 else "Aves_b"
            helpers_input.write_tone(tmp_path / "input" / "data" / label / name, 10 * rec + k)
    lines = checked(capsys, "--model.checkpoint", "none").splitlines()
    at = lines.index("12 recordings of 4 source recordings:")
    assert lines[at + 1] == (
        "  12 by date and time: 4 source recordings (e.g. "
        "Aves_a/0.948_3_SITE01_20230501_050000_6.0s_9.0s.wav and Aves_a/0.949_2_SITE01_20230501_050000_3.0s_6.0s.wav "
        "are SITE01_20230501_050000)"
    )
    assert lines[at + 2].startswith("note: ")


def test_a_class_of_any_name_and_a_crowd_of_classes_fit_the_table(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_MOST_CLASSES", 2)
    names = ("A" * 60, "B", "C")
    helpers_input.write_good(tmp_path / "input" / "data", names, recordings=2)
    lines = checked(capsys, "--model.checkpoint", "none").splitlines()
    table = [line for line in lines if line.startswith(("  class", "  A", "  B", "  C"))]
    assert len({len(line) for line in table}) == 1 and len(table) == 3
    assert "  ... and 1 more classes" in lines


def test_it_leaves_the_input_as_it_was_and_makes_no_model(capsys: Captured, place: Path, tmp_path: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in place.rglob("*"))
    checked(capsys, "--input", str(place), "--model.checkpoint", "none")
    assert sorted(path.stat().st_mtime_ns for path in place.rglob("*")) == before
    made = {path.relative_to(tmp_path / "output").as_posix() for path in (tmp_path / "output").rglob("*")}
    assert made == {".lock", "cache", "cache/ledger.json", "problems.csv", "sources.csv"}


def test_what_was_decoded_once_is_not_decoded_again(
    capsys: Captured, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heard(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("birdtune.data.file_index.examine", heard)
    monkeypatch.setattr("birdtune.data.file_index.file_sha256", heard)
    checked(capsys, "--input", str(place), "--model.checkpoint", "none")


def test_everything_that_is_wrong_is_reported_at_once(capsys: Captured, known: Path, tmp_path: Path) -> None:
    (tmp_path / "output").touch()  # a file where the folder should be
    (tmp_path / "map.json").write_text("[1, 2]")
    out = checked(
        capsys, "--data", str(known / "input/data"), "--model.freeze", "conv9", "--labels.map", "map.json",
        "--model.checkpoint", "nowhere.ckpt", code=42,
    )  # fmt: skip
    told = wrongs(out)
    assert len(told) == 4
    assert told[0].startswith("output: is a file where a folder is needed")
    assert told[1].startswith("model.freeze: conv9 is not known. Choose one of none, conv, all-but-head, conv1")
    assert told[2].startswith("map.json: holds a list; expected a mapping")
    assert told[3].startswith("nowhere.ckpt: there is no VGGish checkpoint")
    # and the recordings are told all the same
    assert "18 usable: 3 classes" in out
    assert "problems.csv" not in out


def test_a_broken_pattern_is_reported_once(capsys: Captured, place: Path) -> None:
    told = wrongs(
        checked(capsys, "--input", str(place), "--model.checkpoint", "none", "--split.group-regex", "(", code=42)
    )
    assert len(told) == 1
    assert told[0].startswith("--split.group-regex '(': is no regular expression")


def test_no_input_is_one_fault_and_no_list_of_problems(capsys: Captured) -> None:
    out = checked(capsys, "--model.checkpoint", "none", code=42)
    assert len(wrongs(out)) == 1
    assert wrongs(out)[0].startswith("input/data: there is no such folder")
    assert "--input" in wrongs(out)[0] and "--data" in wrongs(out)[0]
    assert "problems.csv" not in out


def test_problems_are_grouped_counted_and_explained(capsys: Captured, known: Path, tmp_path: Path) -> None:
    shutil.copytree(known / "input", tmp_path / "input")
    for number in range(5):
        (tmp_path / f"input/data/Apus_apus/note{number}.txt").touch()
    out = checked(capsys, "--model.checkpoint", "none")
    assert "23 files found, 18 usable" in out
    assert "5 not used: metadata. Nothing: it is no recording" in out
    assert "  Apus_apus/note0.txt: an empty text\n" in out
    assert "  ... and 2 more\n" in out
    assert f"with what to do: {Path('output/problems.csv')}" in out


# ---- costs --------------------------------------------------------------------------------------


def test_time_memory_and_disk_are_estimated(capsys: Captured, place: Path) -> None:
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", "--train.epochs", "7")
    estimates = out[out.index("estimates:") :]
    assert all(f"\n  {what}" in estimates for what in ("prepare", "train", "memory", "disk"))
    assert "for 7 epochs" in estimates
    # One and a half seconds hold one window; 12 recordings of 18 are trained on.
    assert "\n  train   24 windows" in estimates


def test_windows_are_counted_as_they_will_be_cut(capsys: Captured, place: Path) -> None:
    # 149 frames: at a hop of 10 frames, windows start at 0, 10, ... 50 and 53.
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", "--train.hop-s", "0.1")
    assert "\n  train   84 windows" in out


def test_the_full_network_costs_more_than_the_small_one(capsys: Captured, place: Path) -> None:
    def gigabytes(backbone: str, what: str) -> float:
        out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", "--model.backbone", backbone)
        line = next(line for line in out.splitlines() if line.startswith(f"  {what}"))
        return float(line.split()[1])

    weights = BACKBONES["vggish"].weight_count() * 4 / 1e9
    assert gigabytes("vggish", "disk") == pytest.approx(12 * weights, rel=0.2)  # ten in checkpoints, two exported
    assert gigabytes("vggish-small", "disk") < 0.5
    assert gigabytes("vggish", "memory") > gigabytes("vggish-small", "memory") + 4 * weights


def test_what_frozen_layers_make_is_reported_as_far_as_it_is_kept(capsys: Captured, place: Path) -> None:
    def told(*arguments: str) -> str:
        arguments = ("--model.checkpoint", "none", "--train.precision", "float32", *arguments)
        out = checked(capsys, "--input", str(place), *arguments)
        lines = [line.strip() for line in out.splitlines()]
        return next((line.split(" for the")[0] for line in lines if "for the outputs of the frozen" in line), "")

    assert told() == ""
    # 24 windows of training and 6 of validation, 128 numbers each; behind the convolutions 12,288.
    assert told("--model.freeze", "all-but-head") == "and 15 kB"
    assert told("--model.freeze", "conv") == "and 1.5 MB"
    assert told("--model.freeze", "conv", "--train.jitter-s", "0.03") == "and 295 kB"
    assert told("--model.freeze", "conv", "--train.cache-gb", "0.0012") == "and 1.2 MB"
    assert told("--model.freeze", "conv1") == ""


def test_frozen_layers_are_counted_once_where_what_they_make_is_kept_and_each_epoch_where_it_is_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BACKBONES["vggish-small"]
    # One second a window.
    monkeypatch.setattr(costs, "matmul_flops", lambda: backbone.window_flops() / backbone.step_efficiency)
    monkeypatch.setattr(costs, "has_gpu", lambda: False)

    def told(freeze: str, **train: float) -> str:
        given = {f"train.{name.replace('_', '-')}": value for name, value in train.items()}
        where = {"input": place, "model.checkpoint": "none", "model.freeze": freeze, "train.precision": "float32"}
        config = load({**where, "model.backbone": "vggish-small", "train.epochs": 10, **given}, {})
        dataset = gather.inspect(config, backbone.front_end, quiet(), Interrupts(), writable=True, faults=[])
        return costs.training_time(config, backbone, dataset)

    # 24 windows are trained on and 6 validate: 24 * 3 + 6 seconds; 4 to compile.
    assert "24 windows, about 1 min 18 s an epoch, at most 13 min 04 s for 10 epochs" in told("none")
    assert "24 windows, under a second an epoch, at most 4 s" in told("all-but-head")  # `embed` has the rest
    assert "about 30 s an epoch, at most 5 min 04 s" in told("all-but-head", cache_gb=0)
    moved = told("all-but-head", jitter_s=0.03)
    assert "about 6 s once for the frozen layers, then about 24 s an epoch, at most 4 min 10 s" in moved
    share = backbone.cut(backbone.frozen_layers("conv")).frozen_flops / backbone.window_flops()
    assert f"about {duration(30 * share)} once" in told("conv")
    assert f"at most {duration(4 + 30 * share + 10 * 78 * (1 - share))}" in told("conv")


def test_too_little_disk_is_a_fault_with_the_sizes(
    capsys: Captured, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "free_bytes", lambda _: 1_000_000_000)
    # Room may be made while the settings stay: as for `run`, that passes.
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", code=75)
    assert len(wrongs(out)) == 1
    assert "GB needed, 1.0 GB free" in wrongs(out)[0] and "--train.keep-checkpoints" in wrongs(out)[0]
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "missing", code=42)
    assert "missing: there is no VGGish checkpoint" in wrongs(out)[0] and "--train.keep-checkpoints" in wrongs(out)[1]


def test_frames_that_are_made_take_no_more_disk(place: Path) -> None:
    config = load({"input": place, "model.checkpoint": "none"}, {})
    dataset = gather.inspect(config, VGGISH, quiet(), Interrupts(), writable=True, faults=[])
    assert costs.disk_bytes(config, dataset, weights=0) == pytest.approx(18 * 1.5 * 12_800)
    gather.prepare(config, VGGISH, quiet(), Interrupts())
    assert costs.disk_bytes(config, dataset, weights=0) == 0


def test_too_little_memory_is_a_fault_with_the_way_out(
    capsys: Captured, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "memory_there", lambda: 1e9)
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", code=42)
    assert "1.0 GB are there" in wrongs(out)[0] and "--train.batch-size" in wrongs(out)[0]


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read(path: Path, *arguments: str) -> str:
        return "1000000000\n" if str(path) == "/sys/fs/cgroup/memory.max" else real(path, *arguments)

    monkeypatch.setattr(Path, "read_text", read)
    assert costs.memory_there() == 1e9


# ---- the checkpoint -----------------------------------------------------------------------------


def test_a_good_checkpoint_is_read_once_and_again_when_it_changed(
    capsys: Captured, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def note(path: Path) -> dict[str, object]:
        read.append(path)
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    shapes = BACKBONES["vggish-small"].variables()
    monkeypatch.setattr(registry, "read_weights", lambda backbone, path: note(path))
    path = tmp_path / "some.ckpt"
    path.write_bytes(b"1")
    arguments = ("--input", str(place), "--model.checkpoint", "some.ckpt", "--model.backbone", "vggish-small")
    for _ in range(2):
        assert "checkpoint: some.ckpt is whole and fits" in checked(capsys, *arguments)
    assert len(read) == 1
    path.write_bytes(b"22")
    checked(capsys, *arguments)
    assert len(read) == 2
    # What fits one network says nothing of another.
    assert "does not fit this network" in wrongs(checked(capsys, *arguments[:4], code=42))[0]


# ---- what it may not do -------------------------------------------------------------------------


def test_it_ends_well_where_nothing_may_be_written(
    capsys: Captured, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "output")

    def full(folder: Path) -> None:
        raise RetryableError(f"{folder}: the disk is full")

    monkeypatch.setattr(checks, "try_to_write", full)
    out = checked(capsys, "--input", str(place), "--model.checkpoint", "none", code=75)
    assert wrongs(out) == ["output: the disk is full"]
    assert "18 usable" in out
    assert not (tmp_path / "output").exists()


def test_without_a_checkpoint_to_read_tensorflow_is_not_loaded(place: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from birdtune.cli import main\n"
        f"code = main(['check', '--input', {str(place)!r}, '--model.checkpoint', 'none'])\n"
        "sys.exit(code or bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
