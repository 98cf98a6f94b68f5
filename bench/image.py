"""What the image for CPUs weighs, and what of it the job uses.

the packages of requirements.txt ─▶ installed bytes; every command of the job, watched ─▶ packages never loaded
docker build -f Dockerfile.cpu   ─▶ the image's size, where there is a Docker engine
"""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from bench.frames import make_clips
from bench.harness import ROOT, Line, Result, Settings, as_users_have_it

IMAGE = "birdtune:bench"
# Written to a folder that every Python of the job looks into first: what it has loaded, told at its end.
_WATCHER = """
import atexit, json, os, sys, uuid

def tell():
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    with open(os.path.join(os.environ["BENCH_LOADED"], uuid.uuid4().hex), "w") as told:
        json.dump([file for file in files if file], told)

atexit.register(tell)
"""


def measure(settings: Settings) -> Result:
    """The packages always; the image itself, and what was left out of it, only where Docker is."""
    image = None if settings.quick else _image_bytes()
    sizes = _package_bytes() if image is None else _package_bytes_in_image()
    used = _used_packages(settings)
    unused = {name: sizes[name] for name in sizes if name not in used}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    told = ", ".join(
        f"{name} {_mb(size)}" for name, size in sorted(unused.items(), key=lambda item: -item[1])
    )
    lines = [
        Line("the image for CPUs", "not measured: no Docker engine" if image is None else _mb(image)),
        Line(
            "its packages, installed", _mb(sum(sizes.values())),
            note=f"the largest: {', '.join(f'{name} {_mb(sizes[name])}' for name in largest[:5])}",
        ),
        Line(
            "packages that no command loads", _mb(sum(unused.values())),
            "run, tune, predict, embed, export --format slim",
            target="none", reached=None if image is None else not unused,
            note=f"{'of the lock, without what the image leaves out' if image is None else 'of the image'}: {told}",
        ),
    ]  # fmt: skip
    return Result("image", lines, {"packages": sizes, "loaded": sorted(used), "image": image})


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 5e5 else f"{size / 1e6:.1f} MB"


def _locked() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line.split("==")[0] for line in lines if "==" in line]


def _package_bytes() -> dict[str, int]:
    """Bytes on the disk of each locked package, of the files that its own list names."""
    found = {}
    for name in _locked():
        files = metadata.files(name) or []
        found[name] = sum(
            path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file()
        )
    return found


# Prints name → bytes of all packages that Python finds.
_SIZES = """
import json, re
from importlib import metadata
from pathlib import Path

sizes = {}
for package in metadata.distributions():
    files = [Path(str(file.locate())) for file in package.files or []]
    sizes[re.sub("[-_.]+", "-", package.name).lower()] = sum(f.stat().st_size for f in files if f.is_file())
print(json.dumps(sizes))
"""


def _package_bytes_in_image() -> dict[str, int]:
    told = _docker("run", "--rm", "--network", "none", "--entrypoint", "python", IMAGE, "-c", _SIZES)
    if told is None:
        raise RuntimeError(f"{IMAGE}: Python did not tell its packages")
    sizes: dict[str, int] = json.loads(told)
    return {name: size for name, size in sizes.items() if name in _locked()}


def _used_packages(settings: Settings) -> set[str]:
    """The packages of which some command has loaded a module."""
    told = settings.folder / "loaded"
    watcher = settings.folder / "watcher"
    told.mkdir()
    watcher.mkdir()
    (watcher / "sitecustomize.py").write_text(_WATCHER, "utf-8")
    for arguments in _commands(settings):
        subprocess.run(
            [sys.executable, "-m", "birdtune", *arguments],
            env=as_users_have_it({"PYTHONPATH": f"{watcher}:{ROOT / 'code'}", "BENCH_LOADED": str(told)}),
            stdout=subprocess.DEVNULL,
            check=True,
        )
    files = {Path(file).resolve() for path in told.iterdir() for file in json.loads(path.read_text("utf-8"))}
    owner = defaultdict[Path, str](str)
    for name in _locked():
        for file in metadata.files(name) or []:
            owner[Path(str(file.locate())).resolve()] = name
    return {owner[file] for file in files} - {""}


def _commands(settings: Settings) -> list[list[str]]:
    data, output = settings.folder / "data", settings.folder / "output"
    make_clips(data, 80, 22_050, 1, settings.seed, seconds=2.0)
    small = ["--model.backbone", "vggish-small", "--model.checkpoint", "none", "--train.epochs", "1"]
    run = ["run", "--data", str(data), "--output", str(output), *small]
    if settings.quick:
        return [run]
    again = [*run, "--audio.resampler", "resampy", "--output", str(settings.folder / "resampy")]
    new = str(next(data.iterdir()))
    return [
        run,
        again,
        ["tune", "--trials", "2", "--data", str(data), "--output", str(settings.folder / "tuned"), *small],
        ["predict", new, "--output", str(output), "--out", str(settings.folder / "predictions.csv")],
        ["embed", new, "--output", str(output), "--out", str(settings.folder / "embeddings.npz")],
        ["export", "--format", "slim", "--data", str(data), "--output", str(output), *small],
    ]


def _image_bytes() -> int | None:
    if shutil.which("docker") is None or _docker("info") is None:
        return None
    # There need not be a bridge, and what is built here is public.
    made_of = ("--network", "host", "--file", str(ROOT / "Dockerfile.cpu"), str(ROOT))
    if _docker("build", "--quiet", "--tag", IMAGE, *made_of) is None:
        return None
    size = _docker("image", "inspect", "--format", "{{.Size}}", IMAGE)
    return None if size is None else int(size)


def _docker(*arguments: str) -> str | None:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
