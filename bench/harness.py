"""How things are measured here: candidates that take turns, medians with their spread, results as JSON.

    candidates ─▶ interleaved ─▶ seconds ─▶ Measure ─▶ Line ─▶ Result ─▶ results/<part>.json

A part is a module bench/<part>.py with a function `measure(settings) -> Result`. Candidates that would
disturb each other in one process (the threads of torch beside TensorFlow's) are each a `Child`.
"""

import contextlib
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# In the order of RESULTS.md; a part counts once its module is there.
ORDER = (
    "frames", "unchanged", "step", "epochs", "frozen", "predict", "checkpoint", "start", "memory", "image",
    "linear", "scale", "gpu", "backbone_speed", "jobs", "jobs_birdnet", "detect",
    "learn_backbones", "learn_blocks", "learn_heads", "learn_sequences", "learn_ensemble", "learn_jobs",
    "learn_unknown", "learn_elsewhere", "learn_unseen", "learn_unbalanced", "learn_smote", "learn_weak",
    "learn_soundscapes", "learn_soundscapes_few", "learn_soundscapes_doubtful", "learn_review", "learn_noisy",
    "learn_finetuned", "learn_augmented", "learn_robust", "learn_robust_trained", "learn_short", "sources",
)  # fmt: skip
PARTS = tuple(part for part in ORDER if (ROOT / "bench" / f"{part}.py").exists())
# These take real sound and weights, which a clone does not have: measured by `python bench/learning.py`.
_ON_BACKBONES = ("backbone_speed", "jobs", "jobs_birdnet", "detect", "sources")
ON_REAL_SOUND = tuple(part for part in PARTS if part.startswith("learn_") or part in _ON_BACKBONES)

# Threads of the candidate before may spin for a moment after its turn; the next one shall not pay for that.
_REST_S = 0.05
# What a reader must know to judge the figures. Missing ones (peers that are not installed) are left out.
_PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "tf-slim", "torch", "librosa", "resampy", "numba", "numpy",
             "scipy", "soxr", "soundfile")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a part is told: `quick` for its tiniest form (tests), a seed, an empty folder for what it writes."""

    quick: bool
    seed: int
    folder: Path


@dataclass(frozen=True)
class Measure:
    """The values of one candidate, one a round; seconds unless `unit` says otherwise."""

    name: str
    values: Sequence[float]
    per: str = ""  # what one value stands for, e.g. "window"
    note: str = ""
    unit: str = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half; of fewer than four values, all of them."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median if self.median else 0.0

    def text(self) -> str:
        """As it stands in the table, e.g. `4.31 ms a clip ± 2 %`."""
        return f"{figure(self.median, self.unit)}{f' a {self.per}' if self.per else ''} ± {self.spread:.0%}"


@dataclass(frozen=True)
class Line:
    """One line of RESULTS.md: what was measured, beside what, and whether it reached what was set."""

    what: str
    figure: str
    beside: str = ""
    ratio: float | None = None
    target: str = ""
    reached: bool | None = None  # None: there is nothing to reach, or it could not be judged
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What a part has found."""

    part: str
    lines: list[Line]
    details: dict[str, Any] = field(default_factory=dict)  # the raw values
    command: str = ""


def figure(value: float, unit: str = "s") -> str:
    """Three digits, and seconds in the unit that suits them: 0.00431 → 4.31 ms."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e-3, "ms")):
            if abs(value) >= factor:
                return f"{_digits(value / factor)} {name}"
        return f"{_digits(value * 1e6)} µs"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def judged(
    what: str,
    ours: Measure,
    theirs: Measure | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    inverse: bool = False,
    note: str = "",
) -> Line:
    """A line that compares two medians, theirs / ours: how many times faster we are.

    Args:
        theirs: None where the peer is not installed.
        at_least, at_most: what the ratio is to reach.
        inverse: the ratio is ours / theirs: how many times longer we take than the least there is.
    """
    target = f"≥ {at_least:g}×" if at_least is not None else f"≤ {at_most:g}×" if at_most is not None else ""
    if theirs is None:
        return Line(what, ours.text(), "not installed", None, target, None, note)
    ratio = ours.median / theirs.median if inverse else theirs.median / ours.median
    reached = ratio >= at_least if at_least is not None else ratio <= at_most if at_most is not None else None
    return Line(what, ours.text(), f"{theirs.name}: {theirs.text()}", ratio, target, reached, note)


# ---- taking turns -------------------------------------------------------------------------------


class Child:
    """A candidate in a process of its own, which waits while the others have their turn.

    Args:
        maker: "bench.frames:librosa_way", a function that is given `arguments`, prepares everything and
            returns what is to be timed: a function of no arguments, whose value (JSON) `value` holds; or a
            pair, of which the first is called before each turn, outside the time.
        cores: how many cores it may use; the libraries' threads are limited likewise.
    """

    def __init__(
        self,
        maker: str,
        *arguments: Any,
        cores: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.value: Any = None
        given = as_users_have_it({})
        if cores is not None:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
            given |= {name: str(cores) for name in names}
        paths = [str(ROOT), str(ROOT / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]
        given |= {"PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.child", maker, json.dumps(arguments), str(cores or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=given,
        )
        self._hear()  # it is ready

    def __call__(self) -> float:
        """One turn. Returns its seconds, measured within the process."""
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        heard = self._hear()
        self.value = heard["value"]
        return float(heard["seconds"])

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._process.args}: ended with {self._process.wait()}; its reason stands above"
            )
        heard: dict[str, Any] = json.loads(line)
        return heard

    def close(self) -> None:
        """Let the process end."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Noting(Child):
    """A child whose values are kept, one a turn, those of warming up first."""

    def __init__(self, maker: str, *arguments: Any, **how: Any) -> None:
        self.values: list[Any] = []
        super().__init__(maker, *arguments, **how)

    def __call__(self) -> float:
        """One turn. Returns its seconds."""
        seconds = super().__call__()
        self.values.append(self.value)
        return seconds


class Here:
    """Stands in for a `Noting` in this process: for the tiniest form, which takes less time than loading libraries."""

    def __init__(self, maker: str, *arguments: Any) -> None:
        module, function = maker.split(":")
        made = getattr(importlib.import_module(module), function)(*arguments)
        self._before, self._turn = made if isinstance(made, tuple) else (lambda: None, made)
        self.value: Any = None
        self.values: list[Any] = []

    def __call__(self) -> float:
        """One turn. Returns its seconds."""
        self._before()
        began = time.perf_counter()
        self.value = self._turn()
        self.values.append(self.value)
        return time.perf_counter() - began


def candidate(stack: contextlib.ExitStack, settings: Settings, maker: str, *arguments: Any) -> Noting | Here:
    """A candidate in a process of its own until the stack is left; in the tiniest form in this one."""
    if settings.quick:
        return Here(maker, *arguments)
    return stack.enter_context(Noting(maker, *arguments))


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmups: int = 1,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Time candidates in turns, so that drift of the machine hits all of them alike.

    Args:
        candidates: name → what is timed; a `Child` measures itself. The order turns by one each round.
        warmups: rounds before, which do not count.
        before: called with the name before each turn, outside the time (to empty a folder, say).

    Returns:
        name → seconds, one a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(warmups + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if before is not None:
                before(name)
            took = _turn(candidates[name])
            if number >= warmups:
                seconds[name].append(took)
            time.sleep(_REST_S)
    return seconds


def _turn(candidate: Callable[[], object]) -> float:
    if isinstance(candidate, Child | Here):
        return candidate()
    gc.collect()
    began = time.perf_counter()
    candidate()
    return time.perf_counter() - began


def is_installed(package: str) -> bool:
    """Whether a peer can be imported."""
    return util.find_spec(package) is not None


def birdtune(*arguments: str, cores: int | None = None, module: str = "birdtune") -> Callable[[], float]:
    """The real command in a fresh process, as a candidate.

    Args:
        module: another one that stands in for `python -m birdtune`.

    Raises:
        RuntimeError: it did not end with 0; what it said stands in the error's text.
    """

    def run() -> float:
        everywhere = sorted(os.sched_getaffinity(0))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=as_users_have_it({"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}", "TF_CPP_MIN_LOG_LEVEL": "2"}),
            preexec_fn=(lambda: os.sched_setaffinity(0, everywhere[:cores])) if cores is not None else None,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: ended with {done.returncode}: {done.stderr[-2000:]}")
        return took

    return run


def as_users_have_it(changes: Mapping[str, str]) -> dict[str, str]:
    """This process' environment with changes, without what makes every start of Python slower than a user's."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | dict(
        changes
    )


# ---- what is kept -------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"machine": machine(), "versions": versions, "commit": commit()}


def machine() -> str:
    """Processor, cores, memory and system in one line."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?"
    )
    family = {key: value for key in ("cpu family", "model\t") if (value := _cpu(key))}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in _cpu("flags").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    told = ", ".join(f"{key.strip()} {value}" for key, value in family.items())
    return (
        f"{processor} ({told}; {', '.join(flags)}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, "
        f"{platform.system()} {platform.release().split('-')[0]}"
    )


def _cpu(key: str) -> str:
    return next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith(key)), ""
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []


def commit() -> str:
    """The commit that was measured, with a + if files differed from it; "" outside a clone."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    # The results themselves change while parts are measured one by one.
    changed = git("status", "--porcelain", "--", ".", ":!bench/results", ":!bench/RESULTS.md")
    return f"{git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"


def run_part(part: str, settings: Settings) -> dict[str, Any]:
    """Measure a part. Returns its result with the surroundings, as it is kept in results/<part>.json."""
    module = importlib.import_module(f"bench.{part}")
    began = time.perf_counter()
    result: Result = module.measure(settings)
    took = time.perf_counter() - began
    kept = asdict(result) | {
        "seconds": round(took, 1),
        "date": time.strftime("%Y-%m-%d"),
        "quick": settings.quick,
    }
    return surroundings() | kept
