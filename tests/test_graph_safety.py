"""birdtune.models.graph_safety: a SavedModel that could do more than compute is not loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from birdtune.audio.logmel import VGGISH
from birdtune.errors import CheckpointError
from birdtune.evaluation.calibration import Calibration
from birdtune.models import saved_model_backbone
from birdtune.models.graph_safety import ALLOWED, SAVING, read_graph, require_numbers_only
from birdtune.serving.verify import FORMAT, open_model

FACTS = {
    "format": FORMAT, "classes": ["a"], "front_end": {**VGGISH.row(), "digest": VGGISH.digest},
    "calibration": Calibration("softmax").row(), "thresholds": None,
}  # fmt: skip
PATCHES = tf.TensorSpec([None, 96, 64], tf.float32, name="inputs")


def saved(folder: Path, act: Callable[[Any], Any], **more: Any) -> Path:
    """A model with a variable, whose function does something on the way."""
    module = tf.Module()
    module.weight = tf.Variable(2.0)

    def features(inputs: Any) -> dict[str, Any]:
        done = act(inputs)
        with tf.control_dependencies([done] if done is not None else []):
            return {"scores": module.weight * inputs[:, 0], "embeddings": inputs[:, 1]}

    module.features = tf.function(features, input_signature=[PATCHES], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.features}, **more)
    (folder / "model.json").write_text(json.dumps(FACTS))
    return folder


def written(target: Path) -> dict[str, Callable[[Any], Any]]:
    name = str(target)
    save = tf.raw_ops.SaveV2
    return {
        "WriteFile": lambda _: tf.io.write_file(name, "x"),
        "ReadFile": lambda _: tf.strings.length(tf.io.read_file(name)),
        "MatchingFiles": lambda _: tf.io.matching_files(name),
        "EagerPyFunc": lambda x: tf.py_function(lambda y: y, [x], tf.float32),
        "PyFunc": lambda x: tf.numpy_function(lambda y: y, [x], tf.float32),
        "PrintV2": lambda x: tf.print(x, output_stream=f"file://{name}"),
        "SaveV2": lambda x: save(prefix=name, tensor_names=["x"], shape_and_slices=[""], tensors=[x]),
        "RestoreV2": lambda _: tf.raw_ops.RestoreV2(
            prefix=name, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0],
        "DebugIdentityV2": lambda x: tf.raw_ops.DebugIdentityV2(input=x, debug_urls=[f"file://{name}"]),
        "TextLineDataset": lambda _: tf.data.TextLineDataset(name).reduce(0, lambda n, _: n + 1),
        # In a branch of a branch, where only the library of functions has it.
        "WriteFile in a branch": lambda x: tf.cond(
            tf.size(x) > 5,
            lambda: tf.cond(tf.size(x) > 7, lambda: _one(tf.io.write_file(name, "x")), lambda: tf.constant(1)),
            lambda: tf.constant(2),
        ),
    }


def operations(folder: Path) -> set[str]:
    """The operations in the functions of a SavedModel."""
    (graph,) = read_graph(folder).meta_graphs
    return {node.op for function in graph.graph_def.library.function for node in function.node_def}


def _one(done: Any) -> Any:
    with tf.control_dependencies([done]):
        return tf.constant(1)


@pytest.mark.parametrize("name", written(Path("x")))
def test_a_model_that_could_do_more_than_compute_is_refused_before_it_is_loaded(name: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    folder = saved(tmp_path / "1", written(target)[name])
    with pytest.raises(CheckpointError, match=rf"was not loaded.*\b{name.split(' ')[0]}\b.*birdtune exported") as told:
        open_model(folder)
    assert "tmp" in str(told.value) and not target.exists()


def test_of_a_backbone_that_is_refused_it_is_said_what_fits(tmp_path: Path) -> None:
    folder = saved(tmp_path / "1", written(tmp_path / "touched")["WriteFile"])
    with pytest.raises(CheckpointError, match=r"WriteFile\. .*Save it again with the function from the wav") as told:
        saved_model_backbone.look(folder, None)
    assert "birdtune exported" not in str(told.value)


def saved_as_in_tensorflow_1(folder: Path, target: Path, called_by: str) -> Path:
    """A model without an object graph, in which something calls a function that writes a file."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:

        @tf.function(autograph=False)
        def writes() -> Any:
            tf.raw_ops.SaveV2(prefix=str(target), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.ones(2)])
            return tf.constant(0.0)

        inputs = v1.placeholder(tf.float32, (None, 96, 64), name="inputs")
        done = writes()
        kept = {"initialisation": {"main_op": done.op}}.get(called_by, {})
        with tf.control_dependencies([done] if called_by == "control" else []):
            scores = tf.reduce_mean(inputs, 2) + (done if called_by == "signature" else 0.0)
        signature = v1.saved_model.predict_signature_def({"inputs": inputs}, {"scores": scores})
        builder = v1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, **kept)
        builder.save()
    return changed(folder, lambda graph: _name_restore_op(graph, done.op.name) if called_by == "restoring" else None)


def _name_restore_op(graph: Any, name: str) -> None:
    graph.saver_def.restore_op_name = name
    graph.saver_def.save_tensor_name = f"{name}:0"


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    """A SavedModel whose first graph was edited."""
    from tensorflow.core.protobuf import saved_model_pb2

    found = saved_model_pb2.SavedModel()
    found.ParseFromString((folder / "saved_model.pb").read_bytes())
    change(found.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(found.SerializeToString())
    (folder / "model.json").write_text(json.dumps(FACTS))
    return folder


@pytest.mark.parametrize("called_by", ["signature", "control", "initialisation", "restoring"])
def test_a_function_that_the_nodes_of_a_graph_call_is_followed(called_by: str, tmp_path: Path) -> None:
    folder = saved_as_in_tensorflow_1(tmp_path / "1", tmp_path / "touched", called_by)
    with pytest.raises(CheckpointError, match=r"was not loaded.*: SaveV2\. .*birdtune exported"):
        open_model(folder)  # as `predict` and `embed` do
    with pytest.raises(CheckpointError, match=r"was not loaded.*: SaveV2\. "):
        saved_model_backbone.look(folder, None)
    assert not list(tmp_path.glob("touched*"))


def _by_name_from_an_object(graph: Any) -> None:
    node = graph.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = _that_saves(graph).signature.name


def _in_the_place_of_another(graph: Any) -> None:
    _that_saves(graph).attr["api_implements"].s = b"one"


def _from_another_node(graph: Any) -> None:
    graph.graph_def.node.add(name="other", op="NoOp", input=[f"^{graph.saver_def.restore_op_name}"])


def _as_an_attribute_of_a_call(graph: Any) -> None:
    call = graph.graph_def.node.add(name="other", op="PartitionedCall")
    function = next(one for one in graph.graph_def.library.function if one is not _that_saves(graph))
    call.attr["f"].func.name = function.signature.name
    call.attr["f"].func.attr["g"].func.name = _that_saves(graph).signature.name


def _without_an_object_graph(graph: Any) -> None:
    graph.ClearField("object_graph_def")


def _that_saves(graph: Any) -> Any:
    functions = graph.graph_def.library.function
    return next(one for one in functions if any(node.op == "RestoreV2" for node in one.node_def))


@pytest.mark.parametrize(
    "call",
    [
        _by_name_from_an_object, _in_the_place_of_another, _from_another_node, _as_an_attribute_of_a_call,
        _without_an_object_graph,
    ],
)  # fmt: skip
def test_what_restores_variables_is_refused_where_something_else_can_call_it(
    call: Callable[[Any], None], tmp_path: Path
) -> None:
    folder = changed(saved(tmp_path / "1", lambda _: None), call)
    with pytest.raises(CheckpointError, match="RestoreV2"):
        require_numbers_only(folder)


def test_what_restores_variables_is_refused_beside_a_second_graph_as_tensorflow_then_runs_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "1", lambda _: None)
    found = read_graph(folder)
    found.meta_graphs.add().CopyFrom(found.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(found.SerializeToString())
    with pytest.raises(CheckpointError, match="RestoreV2"):
        require_numbers_only(folder)


def test_a_table_that_is_filled_from_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\nb\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ), 0,
    )  # fmt: skip
    module = tf.Module()
    module.table = table
    module.find = tf.function(table.lookup, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "1"))
    with pytest.raises(CheckpointError, match="InitializeTableFromTextFileV2"):
        require_numbers_only(tmp_path / "1")


def test_a_model_that_computes_is_let_through_and_so_is_what_saves_its_variables(tmp_path: Path) -> None:
    folder = saved(tmp_path / "1", lambda _: None)
    require_numbers_only(folder)  # raises CheckpointError for what it refuses
    assert SAVING & operations(folder), "what saves variables is there, and was let through"


@pytest.mark.parametrize("kind", ["convolution", "recurrent"])
def test_a_plain_export_of_keras_is_let_through(kind: str, tmp_path: Path) -> None:
    layers = tf.keras.layers
    middle = {
        "convolution": [
            layers.Reshape((96, 64, 1)), layers.SeparableConv2D(4, 3, padding="same"), layers.BatchNormalization(),
            layers.Activation("swish"), layers.MaxPooling2D(), layers.GlobalAveragePooling2D(), layers.Dropout(0.3),
        ],
        "recurrent": [layers.Bidirectional(layers.GRU(3, return_sequences=True)), layers.LSTM(2)],
    }[kind]  # fmt: skip
    model = tf.keras.Sequential([layers.Input((96, 64)), *middle, layers.LayerNormalization(), layers.Dense(3)])
    model.export(str(tmp_path / "1"), verbose=False)
    require_numbers_only(tmp_path / "1")  # raises CheckpointError for what it refuses
    assert {"convolution": "DepthwiseConv2dNative", "recurrent": "While"}[kind] in operations(tmp_path / "1")


@pytest.mark.parametrize(("module", "is_plain"), [(b"ML\xefR add_v1", True), (b"ML\xefR custom_call_v1", False)])
def test_a_program_of_jax_is_let_through_unless_it_calls_custom_code(
    module: bytes, is_plain: bool, tmp_path: Path
) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = saved(tmp_path / "1", lambda _: None)
    found = saved_model_pb2.SavedModel()
    found.ParseFromString((folder / "saved_model.pb").read_bytes())
    node = found.meta_graphs[0].graph_def.library.function[0].node_def.add(name="jax", op="XlaCallModule")
    node.attr["module"].s = module
    (folder / "saved_model.pb").write_bytes(found.SerializeToString())
    if is_plain:
        require_numbers_only(folder)
        return
    with pytest.raises(CheckpointError, match="XlaCallModule"):
        require_numbers_only(folder)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xff", b"\x00" * 64])
def test_a_graph_that_is_missing_or_damaged_is_refused_with_its_name(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    (tmp_path / "saved_model.pbtxt").write_text("")  # which TensorFlow would take instead
    with pytest.raises(CheckpointError, match=r"saved_model\.pb"):
        require_numbers_only(tmp_path)


def test_two_functions_of_one_name_hide_nothing(tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = saved(tmp_path / "1", written(tmp_path / "x")["WriteFile"])
    found = saved_model_pb2.SavedModel()
    found.ParseFromString((folder / "saved_model.pb").read_bytes())
    library = found.meta_graphs[0].graph_def.library.function
    for function in list(library):
        library.add().signature.name = function.signature.name
    (folder / "saved_model.pb").write_bytes(found.SerializeToString())
    with pytest.raises(CheckpointError, match="WriteFile"):
        require_numbers_only(folder)


def test_what_is_allowed_exists_and_takes_and_gives_no_text() -> None:
    """Files, processes and the network have names; an operation without text cannot be told which."""
    for name in sorted(ALLOWED):
        operation = op_def_registry.get(name)
        assert operation is not None, name
        arguments = [*operation.input_arg, *operation.output_arg]
        assert not any(argument.type == tf.string.as_datatype_enum for argument in arguments), name
