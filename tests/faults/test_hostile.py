"""Everything that birdtune reads from outside is read or refused, whatever is in it: a short form of fuzz.py.

The targets are those of the fuzzer (helpers_targets.py). Here their seeds are damaged at random, the same
way in each run.
"""

import functools
import importlib
import json
import os
import random
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_targets import TARGETS, Target, attempt
from helpers_watch import Misdeed, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtune import cli

# Inputs a target; some take longer than others. With --long, ten times as many.
SLOW = {"command-line": 20, "job-yaml": 20, "record": 20, "state-json": 20}
USUAL = 50

_seeds: dict[str, list[bytes]] = {}


def seeds(name: str) -> list[bytes]:
    if name not in _seeds:
        _seeds[name] = TARGETS[name].seeds()
    return _seeds[name]


def damaged(target: Target, whole: list[bytes], draw: random.Random) -> bytes:
    """One of the seeds after some changes: bits, bytes, numbers, pieces moved, words put in, ends cut off."""
    data = bytearray(draw.choice(whole) if draw.random() < 0.95 else b"")
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 2:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 3:
                del data[at : at + draw.choice((1, 2, 8, 100))]
            case 4:
                other = draw.choice(whole)
                begin = draw.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + draw.randrange(60)]
            case 5 if target.words:
                data[at:at] = draw.choice(target.words)
            case 6:
                number = draw.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1))
                data[at : at + 4] = number.to_bytes(4, draw.choice(("little", "big")))
            case 7:
                del data[at:]
    return bytes(data)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder, in memory where that can be: most targets write files, and waiting for the disk takes longest."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


# Without tables: TensorFlow, which dies of some, takes seconds to load again. That is left to the fuzzer.
@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"tables"}))
def test_whatever_is_in_it_it_is_read_or_refused_in_words(name: str, room: Path, at_length: bool) -> None:
    examples = SLOW.get(name, USUAL) * (10 if at_length else 1)
    outcomes: list[bool] = []  # an exception of another kind than a refusal, or a deed, ends the test in `attempt`

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(st.randoms(use_true_random=False))
    def holds(draw: random.Random) -> None:
        folder = Path(tempfile.mkdtemp(dir=room))
        outcomes.append(attempt(TARGETS[name], damaged(TARGETS[name], seeds(name), draw), folder))
        shutil.rmtree(folder)

    holds()
    assert len(outcomes) == examples


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_taken(name: str, room: Path) -> None:
    # Else the damage above would be done to what is refused anyway.
    taken = []
    for number, seed in enumerate(seeds(name)):
        folder = room / f"{number}"
        folder.mkdir()
        taken.append(attempt(TARGETS[name], seed, folder))
    assert any(taken) or name == "model-json"  # beside which no graph lies
    assert not Path("it-ran").exists() and not (room / "it-ran").exists()


ODD_VALUES = (
    "null", "NaN", "1e999", "-1", '"nan"', '"\\ud800"', '"\\u001b[31m"', "[]", "{}", "true", "1" + "0" * 400,
    f'"{"y" * 5000}"',
)  # fmt: skip


def test_whatever_stands_in_one_field_of_a_served_model_it_is_taken_or_refused_in_words(room: Path) -> None:
    target = TARGETS["ancestor"]
    described, _, labels = seeds("ancestor")[0].partition(b"\0")
    whole = json.loads(described)
    taken = 0
    for place in _places(whole):
        for number, odd in enumerate(ODD_VALUES):
            changed = json.loads(described)
            inside = functools.reduce(lambda value, key: value[key], place[:-1], changed)
            inside[place[-1]] = "in its place"
            text = json.dumps(changed).replace('"in its place"', odd)
            folder = room / f"{'-'.join(map(str, place))}-{number}"
            folder.mkdir()
            taken += attempt(target, text.encode() + b"\0" + labels, folder)
    assert taken  # of what does not matter before its weights are read


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of a JSON text."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in pairs:
        yield (*above, key)
        yield from _places(inside, (*above, key))


# ---- through the command ------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "it has aliases"),
        (b"train: !!python/object/apply:os.system ['touch it-ran']\n", "could not determine a constructor"),
        (b"train: {epochs: 3, epochs: 4}\n", "'epochs' is given twice in the mapping that begins in line 1"),
        (b"train: {epochs: 3}\n\0", "is not plain YAML"),
        (b"{a: " * 3000, "nested too deeply"),
        (b"\xff\xfet\0", "is not plain YAML"),
        (b"train: {epochs: 1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1}\n", "holds a number of 45 digits"),
        (b'data: "\\ud800"\n', "job.yaml"),
        (None, "104,857,600 bytes are too many for settings"),
    ],
)
def test_settings_that_somebody_wrote_to_do_harm_are_one_line_and_42(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input" / "data").mkdir(parents=True)
    path = tmp_path / "input" / "job.yaml"
    path.write_bytes(content or b"")
    if content is None:
        os.truncate(path, 100 << 20)
    with watched(tmp_path):
        assert cli.main(["prepare"]) == 42
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err and len(err) < 1000
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    "value",
    ["", " ", "\udcff", "9" * 5000, "-1", "1e400", "nan", "0x10", "5;touch it-ran", "$(touch it-ran)", "\x1b[2J",
        "\u202e5",
     "5\n6", "null", "[5]", "{}", "\u0663\ud83d", "true"],
)  # fmt: skip
@pytest.mark.parametrize(
    "variable", ["BIRDTUNE_TRAIN__EPOCHS", "BIRDTUNE_AUDIO__MAX_HOURS", "BIRDTUNE_MODEL__BACKBONE"]
)
def test_odd_values_of_variables_are_one_line_and_42(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, variable: value})  # more than a real one would take
    with watched(tmp_path):
        assert cli.main(["prepare"]) == 42
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and len(err) < 1000
    assert (variable in err) or "no such folder" in err
    assert not any(character in err for character in "\x1b\u202e")


@pytest.mark.parametrize("name", ["map.tgz", "map.tar", "map.pickle", "map.json"])
def test_a_label_map_inside_of_an_archive_is_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input/data/A").mkdir(parents=True)
    (tmp_path / "bird_id_map.json").write_text('{"A": 1}')
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        tar.add("bird_id_map.json")
    with watched(tmp_path):
        assert cli.main(["prepare", "--labels.map", name]) == 42
    assert re.search("ends in one of|is no pickle of plain data|is not a whole", capsys.readouterr().err)


def test_the_watch_notices_what_must_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    room.mkdir()
    for deed in (
        lambda: os.system("true"),
        lambda: (tmp_path / "out").write_text("x"),
        lambda: (room / ".." / "out").write_text("x"),
        lambda: (tmp_path / "folder").mkdir(),
        lambda: (tmp_path / "link").symlink_to(room),
        lambda: exec("pass"),
    ):
        with pytest.raises(Misdeed), watched(room):
            deed()
    with watched(room):
        (room / "in").write_text("x")
        (room / "folder").mkdir()
        (tmp_path / "out").read_text()
    (tmp_path / "loaded_late.py").write_text("exec('pass')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with watched(room):
        importlib.import_module("loaded_late")
