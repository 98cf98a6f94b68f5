"""Same input, settings, machine and seed: the same weights, wherever and in whatever surroundings the job runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_command import ROOT, Straight, run
from helpers_compare import compare_results

pytestmark = pytest.mark.long

# Loaded by every Python that has its folder on the path, the workers' too.
_OTHER_ORDER = '''
import os

_listdir, _scandir = os.listdir, os.scandir


def listdir(*place):
    return sorted(_listdir(*place), reverse=True)


class scandir:
    def __init__(self, *place):
        with _scandir(*place) as entries:
            self._entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self.close()

    def close(self):
        self._entries = iter(())


os.listdir, os.scandir = listdir, scandir
'''


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Variables under which the system lists files the other way round, hashes and speaks otherwise."""
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_OTHER_ORDER)
    path = os.pathsep.join([str(folder), str(ROOT / "code")])
    return {"PYTHONPATH": path, "PYTHONHASHSEED": "4711", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}


def copy_backwards(source: Path, target: Path) -> Path:
    """A copy whose files are made in the opposite order, all of them now."""
    for path in sorted(source.rglob("*"), reverse=True):
        place = target / path.relative_to(source)
        (place if path.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copyfile(path, place)
    return target


def test_the_surroundings_are_others(surroundings: dict[str, str], tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "listed" / name).mkdir(parents=True)
    program = (
        "import os, sys; from pathlib import Path; place = sys.argv[1]\n"
        "print(os.listdir(place), [e.name for e in os.scandir(place)], next(os.walk(place))[1])\n"
        "print([p.name for p in Path(place).iterdir()], [p.name for p in Path(place).glob('*')], hash('a'))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "listed")], env=environment, text=True,
            capture_output=True, check=True,
        ).stdout
        for environment in ({**os.environ, "PYTHONHASHSEED": "1"}, {**os.environ, **surroundings})
    ]  # fmt: skip
    assert found[1].count("['c', 'b', 'a']") == 5
    assert found[0].split()[-1] != found[1].split()[-1]


def test_place_order_workers_hashes_and_language_change_nothing(
    straight: Straight, surroundings: dict[str, str], tmp_path: Path
) -> None:
    elsewhere = copy_backwards(straight.input, tmp_path / "another place" / "input")
    arguments = [
        argument for argument in straight.arguments if not argument.startswith(("--input", "--prepare.workers"))
    ]
    command = run(
        [*arguments, "--input=input", "--output=output", "--prepare.workers=1"],
        cwd=elsewhere.parent, environment=surroundings,
    )  # fmt: skip
    assert command.process.returncode == 0, command.text()
    findings = compare_results(straight.output, elsewhere.parent / "output")
    assert [finding for finding in findings if finding[1]] == []
