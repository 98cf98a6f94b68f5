"""Coverage-guided fuzzing of everything that birdtune reads from outside.

    pip install --require-hashes -r requirements-fuzz.txt      (into .venv; the tests do not need it)
    python tests/faults/fuzz.py all --seconds 60
    python tests/faults/fuzz.py pickle --runs 100000

Prints how many inputs each target was given and what was found; ends 1 if anything was. Besides an
exception that is none of birdtune's, a finding is: a program started, a file changed outside of the
target's folder (both told by the interpreter's audit events), some seconds for one input, some hundred
megabytes of memory, or the death of the process. The input that does it is kept, and can be given again:

    python tests/faults/fuzz.py pickle --input FILE
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW_S = 20  # on a machine that does other things as well
MEMORY_MB = 900  # numpy, libsndfile and the fuzzer's own tables take 300
LARGEST_BYTES = 1 << 14


def main() -> int:
    """Fuzz one target or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--input", type=Path, help="give the target this one input only")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.target, options.inside, options.seconds, options.runs)
        return 0
    names = target_names()
    if options.target != "all" and options.target not in names:
        parser.error(f"there is no target {options.target!r}. Targets: all, {', '.join(names)}")
    if options.input:
        return give(options.target, options.input)
    total = found = 0
    print(f"{'target':<14}{'inputs':>10}{'seconds':>9}  finding", flush=True)
    for name in names if options.target == "all" else [options.target]:
        began = time.monotonic()
        n_inputs, finding = run(name, options)
        total, found = total + n_inputs, found + bool(finding)
        print(f"{name:<14}{n_inputs:>10,}{time.monotonic() - began:>9.0f}  {finding or 'none'}", flush=True)
    print(f"{'all':<14}{total:>10,}{'':>9}  {found or 'none'}")
    return 1 if found else 0


def target_names() -> list[str]:
    """All targets; asked of another process, for this one must stay light."""
    command = [sys.executable, "-c", "import helpers_targets; print(*helpers_targets.TARGETS)"]
    return subprocess.run(
        command, env=environment(), check=True, capture_output=True, text=True
    ).stdout.split()


def environment() -> dict[str, str]:
    """For a process that finds birdtune and the targets."""
    paths = os.pathsep.join([str(ROOT / "code"), str(Path(__file__).parent)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BIRDTUNE_")}
    return {
        **kept,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def in_memory() -> str | None:
    """A folder on no disk, where there is one: most targets write files, and waiting for the disk takes longest."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(name: str, options: argparse.Namespace) -> tuple[int, str]:
    """Fuzz a target in a process of its own. Returns how many inputs, and the finding or nothing."""
    with tempfile.TemporaryDirectory(prefix="birdtune-fuzz-", dir=in_memory()) as folder:
        command = [
            sys.executable, __file__, name, "--inside", folder,
            "--seconds", str(options.seconds), "--runs", str(options.runs),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, errors="replace")
        said = done.stdout + done.stderr
        counts = re.findall(r"stat::number_of_executed_units: (\d+)", said) or re.findall(
            r"^#(\d+)\s", said, re.M
        )
        n_inputs = int(counts[-1]) if counts else 0
        if done.returncode == 0 and n_inputs:
            return n_inputs, ""
        options.keep.mkdir(parents=True, exist_ok=True)
        kept = [
            shutil.copy(path, options.keep / f"{name}-{path.name}") for path in Path(folder).glob("found-*")
        ]
        (options.keep / f"{name}.log").write_text(said)
        lines = re.findall(
            r"^\s*(?:\w+\.)*\w+(?:Error|Misdeed|Exception|Interrupt)\b.*$|==\d+==\s*ERROR: .*", said, re.M
        )
        last = [line.strip() for line in lines if "libFuzzer: fuzz target" not in line]
        return n_inputs, f"{(last or [f'exit status {done.returncode}'])[0][:160]} {' '.join(map(str, kept))}"


def fuzz(name: str, folder: Path, seconds: int, runs: int) -> None:
    """Inside that process: hand over to the fuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(
        include=["birdtune", "yaml", "tarfile", "pickletools", "csv", "zipfile", "json"]
    ):
        import helpers_targets as targets

    target = targets.TARGETS[name]
    corpus, room = folder / "corpus", folder / "room"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
        clean(room)
        targets.attempt(
            target, seed, room
        )  # what is loaded or made once is loaded and made before the count begins
    words = folder / "words"
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    )

    def once(data: bytes) -> None:
        clean(room)
        targets.attempt(target, data, room)

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-runs={runs}", f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LARGEST_BYTES}", *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={folder}/found-", "-print_final_stats=1", "-seed=1",
        str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, once)
    atheris.Fuzz()


def clean(room: Path) -> None:
    """An empty folder."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()


def give(name: str, path: Path) -> int:
    """One input to a target, in this process, with its traceback."""
    sys.path[:0] = [str(ROOT / "code"), str(Path(__file__).parent)]
    import helpers_targets as targets

    with tempfile.TemporaryDirectory(prefix="birdtune-fuzz-") as room:
        taken = targets.attempt(targets.TARGETS[name], path.read_bytes(), Path(room))
    print("taken" if taken else "refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
