"""The house as a whole: who may import whom, what loads TensorFlow, and that the documentation is true."""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "code" / "birdtune"

# A package imports only packages that stand before it, inside functions too.
FLOORS = (
    "errors", "options", "settings", "config", "runtime", "audio", "data", "evaluation", "models", "training",
    "serving", "reporting", "tuning", "cloud", "collect", "pipeline", "cli", "__main__",
)  # fmt: skip

# The files that may load TensorFlow or Keras when they are imported. All others may be imported by anybody.
HEAVY = frozenset(
    {
        "models.front_end_graph", "models.graph_network", "models.keras_network", "models.probe", "models.tflite_graph",
        "models.tflite_operations",
        "models.network", "models.sequence_heads", "models.heads", "models.losses", "models.classifier", "models.tf1",
        "training.devices", "training.tensorboard", "training.convolution", "training.first_weights", "training.inputs",
        "training.optimizer", "training.step", "training.loop", "training.scoring", "training.ood_fit",
        "serving.graph", "serving.export", "serving.window_graph", "serving.tflite_file", "serving.onnx_file",
        "serving.keras_file", "serving.keras_operations", "training.train", "training.trained",
        "pipeline.label_check",
        "pipeline.rare_class_ablation", "pipeline.stages", "pipeline.evaluate", "pipeline.published_classes",
        "training.embeddings", "training.probes", "training.cross_fit", "training.ensemble",
        "tuning.compare", "tuning.unseen", "tuning.class_embedding", "tuning.trials", "tuning.tune",
        "pipeline.precision", "pipeline.predict", "pipeline.embed", "pipeline.slim",
    }
)  # fmt: skip


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text("utf-8"))


@cache
def modules() -> list[str]:
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts) for path in found if path.name != "__init__")


def names_of(node: ast.AST) -> list[str]:
    """Full names that an import statement brings: packages, and what is taken out of them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, "imports are absolute"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@cache
def imported(module: str, *, in_functions: bool) -> set[str]:
    """Names of everything that a file imports."""
    nodes = ast.walk(tree(module)) if in_functions else at_import(tree(module))
    return {name for node in nodes for name in names_of(node)}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a file that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def own(names: set[str]) -> set[str]:
    """Those of the names that are files of the house."""
    return {name.removeprefix("birdtune.") for name in names if name.startswith("birdtune.")} & set(modules())


def is_heavy(name: str) -> bool:
    return name.split(".")[0] in ("tensorflow", "keras", "tf_slim", "tensorflow_serving")


# ---- imports ------------------------------------------------------------------------------------


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[0])


def test_a_package_imports_only_packages_that_stand_before_it() -> None:
    upwards = [
        (module, name)
        for module in modules()
        for name in own(imported(module, in_functions=True))
        if floor(name) > floor(module)
    ]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    above = {module: own(imported(module, in_functions=True)) for module in modules()}
    order = list(graphlib.TopologicalSorter(above).static_order())  # raises CycleError
    assert sorted(order) == modules()


def test_importing_a_package_runs_nothing() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text("utf-8")).body
        assert all(isinstance(node, ast.Assign | ast.Expr) for node in body), path


def test_only_the_files_that_compute_load_tensorflow_or_keras() -> None:
    at_once = {module: own(imported(module, in_functions=False)) for module in modules()}
    loads = {module for module in modules() if any(map(is_heavy, imported(module, in_functions=False)))}
    for module in graphlib.TopologicalSorter(at_once).static_order():
        if at_once[module] & loads:
            loads.add(module)
    assert sorted(loads) == sorted(HEAVY)


def test_the_network_is_written_with_keras_alone() -> None:
    for name in ("network", "heads", "sequence_heads", "losses", "classifier", "growth", "vggish", "yamnet"):
        names = {name.split(".")[0] for name in imported(f"models.{name}", in_functions=True)}
        assert not names & {"tensorflow", "tf_slim"}, name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--help"], ["--version"], ["nonsense"], ["check"], ["predict", "."]]
)
def test_what_answers_at_once_does_not_load_tensorflow(tmp_path: Path, arguments: list[str]) -> None:
    script = (
        "import sys; from birdtune.cli import main; main(sys.argv[1:])\n"
        "sys.exit(bool({'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0


def test_what_decodes_is_loaded_quickly() -> None:
    # scipy's import takes as long as a hundred clips.
    script = (
        "import sys, birdtune.data.frames\n"
        "print(*({'scipy', 'numba', 'sklearn', 'tensorflow'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"\n")


# ---- style --------------------------------------------------------------------------------------


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every node of every file, with the module it is of."""
    return ((module, node) for module in modules() for node in ast.walk(tree(module)))


def test_each_file_says_what_enters_and_leaves() -> None:
    assert [module for module in modules() if not ast.get_docstring(tree(module))] == []


def test_no_fault_is_swallowed_unseen() -> None:
    for module, node in nodes():
        if not isinstance(node, ast.ExceptHandler):
            continue
        where = f"{module}, line {node.lineno}"
        assert node.type is not None, f"{where}: a bare except"
        caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
        if caught & {"Exception", "BaseException"}:
            assert not all(isinstance(step, ast.Pass | ast.Continue) for step in node.body), where


def test_only_the_journal_and_the_command_line_print() -> None:
    prints = {
        module
        for module, node in nodes()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    # A fresh process that verifies an export answers on its own standard output.
    assert prints <= {"runtime.log", "cli", "serving.verify"}


def test_no_file_touches_the_import_path_or_is_a_star_import() -> None:
    for module in modules():
        assert "sys.path" not in path_of(module).read_text("utf-8"), module
        assert not any(name.endswith(".*") for name in imported(module, in_functions=True)), module
