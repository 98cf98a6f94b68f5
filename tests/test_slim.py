"""TensorFlow 1 graphs and checkpoints out."""

import logging
import pickle
import pickletools
from pathlib import Path

import helpers_slim as made
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from birdtune.errors import ExportError, InputError
from birdtune.models import classifier as classifiers
from birdtune.models import tf1
from birdtune.models.registry import BACKBONES
from birdtune.models.tf_checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("in_one_process")

CLASSES = ("Aquila_ficta", "Noise_noise", "Parus_ficta", "Sitta_ficta")


def classifier(**changes):
    settings = {
        "backbone": BACKBONES["vggish-small"],
        "head": "linear",
        "scores": "softmax",
        "hidden_units": 0,
        "embedding_activation": "relu",
        "freeze": "none",
        "classes": CLASSES,
        "precision": "float32",
        "seed": 1,
    }
    return classifiers.build(**(settings | changes))


# --- export ---


def loaded(folder, kind):
    """A fresh session of what was exported: by the Saver's files, or as a server would."""
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        with tf1._quiet():
            if kind == "checkpoint":
                saver = tf.compat.v1.train.import_meta_graph(str(folder / "model.ckpt.meta"))
                saver.restore(session, str(folder / "model.ckpt"))
            else:
                tf.compat.v1.saved_model.load(session, ["serve"], str(folder / "saved_model" / "1"))
    return session


@pytest.mark.parametrize("kind", ["checkpoint", "saved model"])
@pytest.mark.parametrize(
    ("scores", "hidden_units", "activation", "precision"),
    [
        ("softmax", 0, "relu", "float32"),
        ("sigmoid", 100, "relu", "mixed_bfloat16"),
        ("sigmoid", 0, "none", "float32"),
        ("softmax", "7,6", "none", "mixed_float16"),
    ],
)
def test_the_export_computes_what_the_classifier_does(
    tmp_path, kind, scores, hidden_units, activation, precision
):
    settings = {
        "head": "mlp" if hidden_units else "linear",
        "scores": scores,
        "hidden_units": hidden_units,
        "embedding_activation": activation,
    }
    features = made.features(5, seed=9)
    tf1.export_slim(classifier(precision=precision, **settings), tmp_path / "out")

    expected, embeddings = classifier(**settings).scores(features)  # the same seed, in float32

    with loaded(tmp_path / "out", kind) as session:
        found = session.run(
            ["mymodel/prediction:0", "vggish/embedding:0"], {"vggish/input_features:0": features}
        )
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1], embeddings.numpy(), rtol=0, atol=1e-4)
    assert np.ptp(found[0], axis=0).max() > 0.01  # else any constant would pass


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a classifier such as jibjib's, and the classifier."""
    folder = tmp_path_factory.mktemp("slim") / "export"
    model = classifier(head="mlp", scores="sigmoid", hidden_units=100)
    tf1.export_slim(model, folder)
    return folder, model


def saved_graph(folder):
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((folder / "saved_model" / "1" / "saved_model.pb").read_bytes())
    return content.meta_graphs


def test_the_signature_is_jibjibs(exported):
    (graph,) = saved_graph(exported[0])

    assert list(graph.meta_info_def.tags) == ["serve"]
    assert list(graph.signature_def) == ["serving_default"]
    signature = graph.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert {name: info.name for name, info in signature.inputs.items()} == {
        "inputs": "vggish/input_features:0"
    }
    assert {name: info.name for name, info in signature.outputs.items()} == {
        "outputs": "mymodel/prediction:0"
    }
    for info, shape in ((signature.inputs["inputs"], [-1, 96, 64]), (signature.outputs["outputs"], [-1, 4])):
        assert info.dtype == tf.float32.as_datatype_enum
        assert [axis.size for axis in info.tensor_shape.dim] == shape


def test_the_graph_is_made_of_what_tensorflow_1_knows(exported):
    (graph,) = saved_graph(exported[0])
    nodes = graph.graph_def.node

    known = "Assign BiasAdd Const Conv2D Fill Identity MatMul MaxPool NoOp Placeholder PlaceholderWithDefault"
    known += " Relu Reshape RestoreV2 SaveV2 Sigmoid VariableV2"
    assert {node.op for node in nodes} <= set(known.split())
    assert not len(graph.graph_def.library.function)
    # These two came later; with their defaults they must not be written.
    assert not any("explicit_paddings" in node.attr or "index_type" in node.attr for node in nodes)
    assert graph.graph_def.versions.min_consumer <= 12


def test_the_prediction_is_a_sigmoid_or_a_softmax_by_kind(exported, tmp_path):
    tf1.export_slim(classifier(), tmp_path / "softmax")

    for folder, operation in ((exported[0], "Sigmoid"), (tmp_path / "softmax", "Softmax")):
        (graph,) = saved_graph(folder)
        assert {node.name: node.op for node in graph.graph_def.node}["mymodel/prediction"] == operation


def test_the_checkpoint_has_the_published_names_and_is_read_back(exported):
    folder, model = exported
    shapes = dict(tf.train.list_variables(str(folder / "model.ckpt")))

    head = {
        "mymodel/fully_connected/weights": [128, 100],
        "mymodel/fully_connected/biases": [100],
        "mymodel/logits/weights": [100, 4],
        "mymodel/logits/biases": [4],
    }
    backbone = {name: list(shape) for name, shape in BACKBONES["vggish-small"].variables().items()}
    assert shapes == backbone | head
    arrays = read_checkpoint(folder)
    np.testing.assert_array_equal(
        arrays["mymodel/logits/weights"], model.head.get_layer("logits").kernel.numpy()
    )
    np.testing.assert_array_equal(
        arrays["vggish/conv4/conv4_1/weights"], model.network.get_layer("conv4_1").kernel.numpy()
    )


def test_the_list_of_classes_is_one_that_python_2_reads(exported):
    content = (exported[0] / "train_id_list.pickle").read_bytes()

    assert pickle.loads(content) == list(CLASSES)
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(content)) <= 2


def test_no_path_of_this_machine_is_in_the_export(exported):
    folder, _ = exported

    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(folder).encode() not in content and str(Path.cwd()).encode() not in content
    assert 'model_checkpoint_path: "model.ckpt"' in (folder / "checkpoint").read_text()


def test_an_export_replaces_an_earlier_one_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "[1] Vögel *" / "out"
    tf1.export_slim(classifier(seed=1), folder)
    first = read_checkpoint(folder)

    tf1.export_slim(classifier(seed=2), folder)

    assert not np.array_equal(first["vggish/fc2/weights"], read_checkpoint(folder)["vggish/fc2/weights"])
    assert [entry.name for entry in folder.parent.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.odt").write_text("years of work")

    with pytest.raises(InputError, match=r"holds other files \(thesis\.odt\).*new one"):
        tf1.export_slim(classifier(), tmp_path)
    with pytest.raises(InputError, match="a file stands"):
        tf1.export_slim(classifier(), tmp_path / "thesis.odt")

    assert (tmp_path / "thesis.odt").read_text() == "years of work"


@pytest.mark.parametrize("fault", ["vggish/fc2/biases", "mymodel/logits/biases", "mymodel/logits/weights"])
def test_an_export_that_differs_is_not_put_in_place(tmp_path, monkeypatch, fault):
    model, right = classifier(), tf1.slim_variables

    def wrong(arrays):
        named = right(arrays)
        return named | {fault: named[fault] + np.float32(1e-2)}

    monkeypatch.setattr(tf1, "slim_variables", wrong)

    with pytest.raises(
        ExportError, match=r"model\.ckpt: (vggish|mymodel)/.* differs .* Nothing was put in place"
    ):
        tf1.export_slim(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_saved_model_that_differs_from_the_checkpoint_is_found(tmp_path, monkeypatch):
    write = tf1._write_saved_model

    def wrong(session, saver, folder):
        (bias,) = (v for v in tf.compat.v1.global_variables() if v.op.name == "mymodel/logits/biases")
        session.run(bias.initializer, {bias.initial_value: np.full(4, 0.5, np.float32) * np.arange(4)})
        write(session, saver, folder)

    monkeypatch.setattr(tf1, "_write_saved_model", wrong)

    with pytest.raises(ExportError, match=r"saved_model/1: mymodel/logits"):
        tf1.export_slim(classifier(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_of_nan_are_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "check_variables", lambda *_, **__: None)
    model = classifier()
    model.head.get_layer("logits").bias.assign([np.nan] * 4)

    with pytest.raises(ExportError, match="differs from the trained model by nan"):
        tf1.export_slim(model, tmp_path / "out")


def test_exporting_leaves_eager_tensorflow_as_it_was(exported):
    assert tf.executing_eagerly()
    assert tf.get_logger().level != logging.ERROR
    assert not tf.compat.v1.get_default_graph().get_operations()
    assert ".unfinished" not in " ".join(entry.name for entry in exported[0].parent.iterdir())
