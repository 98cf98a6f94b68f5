"""The TensorFlow 1 world: a TensorFlow 1 graph and checkpoint out.

    Classifier ─▶ FOLDER/model.ckpt.*, FOLDER/saved_model/1, FOLDER/train_id_list.pickle

Names, shapes and the order of operations are those of Google's VGGish training demo, which jibjib
followed, so that what reads jibjib's models reads these. Of `model/`, this file alone imports
TensorFlow; graphs live in `tf.Graph()`s of their own and leave the rest of the process in peace.
"""

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_slim as slim

from birdtune.audio.logmel import VGGISH
from birdtune.errors import ExportError, InputError, shown
from birdtune.models import classifier as classifiers
from birdtune.models import head_kinds, tf_checkpoint, vggish
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.models.registry import require_tensorflow_1
from birdtune.runtime import files

FEATURES = "vggish/input_features:0"  # [N, 96, 64] float32
EMBEDDING = "vggish/embedding:0"  # [N, 128]
LOGITS = "mymodel/logits/BiasAdd:0"  # [N, C]
PREDICTION = "mymodel/prediction:0"  # [N, C]
_HIDDEN_SCOPE = "fully_connected"  # of the first hidden layer; those behind it have a number as well


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from users that TensorFlow calls its old parts old; tf-slim and old servers need them."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def build_graph(
    backbone: LayerBackbone, *, embedding_activation: str, scores: str, hidden_units: int | str, n_classes: int
) -> None:
    """Add the classifier to the default graph, with tf-slim, under the names that jibjib's readers know.

    Args:
        backbone, embedding_activation: as `Backbone.network`.
        scores, n_classes: as `heads.build_head`.
        hidden_units: of a layer before the classes, or of several with commas; 0 = none.
    """
    zeros = tf.compat.v1.zeros_initializer()  # every weight is assigned next
    # Reference variables, not resource variables: TensorFlow 1 servers of any age read them.
    with slim.arg_scope([slim.conv2d, slim.fully_connected], weights_initializer=zeros):
        with tf.compat.v1.variable_scope("vggish", use_resource=False):
            net = _backbone_graph(backbone, embedding_activation)
        with tf.compat.v1.variable_scope("mymodel", use_resource=False):
            for name, width in head_kinds.hidden_layers(hidden_units).items() if hidden_units else ():
                net = slim.fully_connected(net, width, scope=_HIDDEN_SCOPE + name.removeprefix("hidden"))
            logits = slim.fully_connected(net, n_classes, activation_fn=None, scope="logits")
            score = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}[scores]
            score(logits, name="prediction")  # [N, C]


def _backbone_graph(backbone: LayerBackbone, embedding_activation: str) -> tf.Tensor:
    frames, bands = backbone.front_end.window_shape
    features = tf.compat.v1.placeholder(tf.float32, (None, frames, bands), name="input_features")
    net = tf.reshape(features, (-1, frames, bands, 1))
    for row in backbone.layers:
        scope, width = row.scope.removeprefix("vggish/"), row.width
        if row.kind == "conv":
            net = slim.conv2d(net, width, 3, scope=scope)
        else:
            net = slim.flatten(net)  # [N, 12288] before the first, nothing to do before the others
            is_linear = row.name == "fc2" and embedding_activation == "none"
            activation = None if is_linear else tf.nn.relu
            net = slim.fully_connected(net, width, activation_fn=activation, scope=scope)
        if row.pool:
            net = slim.max_pool2d(net, 2, 2, padding="SAME", scope=row.pool)
    return tf.identity(net, name="embedding")  # [N, 128]


def slim_variables(arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """`classifier.weights` under the names of the TensorFlow 1 graph."""
    scopes = {f"backbone/{row.name}": row.scope for row in vggish.LAYERS}
    scopes["head/logits"] = "mymodel/logits"
    endings = {"kernel": "weights", "bias": "biases"}
    split = {name: name.rsplit("/", 1) for name in arrays}
    return {f"{scopes.get(layer) or _hidden_scope(layer)}/{endings[kind]}": arrays[name]
            for name, (layer, kind) in split.items()}  # fmt: skip


def _hidden_scope(layer: str) -> str:
    """`head/hidden2` → its scope in the TensorFlow 1 graph."""
    return f"mymodel/{_HIDDEN_SCOPE}{layer.removeprefix('head/hidden')}"


def export_slim(classifier: classifiers.Classifier, folder: Path, *, feature_atol: float = 1e-4) -> None:
    """Write the classifier as TensorFlow 1 knows it, read it back, compare, and only then put it in place.

    In `folder`: `model.ckpt.*` (a V2 Saver checkpoint with its graph), `saved_model/1` (tag `serve`,
    signature `serving_default`: `inputs` [N, 96, 64] → `outputs` [N, C]), and `train_id_list.pickle`
    (list of class names, position = column, protocol 2 for readers in Python 2).

    Args:
        classifier: of any precision; the graph computes in float32.
        folder: made anew; an earlier export there is replaced.
        feature_atol: largest difference allowed in embeddings, logits and scores, relative to the largest
            value where that is above 1.

    Raises:
        ExportError: what was written does not compute what the classifier does.
        SettingsError: its backbone is not VGGish.
        InputError: other files stand in the folder, or it cannot be written.
        RetryableError: the disk is full.
    """
    head_kinds.require_tensorflow_1(classifier.head_name)
    require_tensorflow_1(classifier.backbone)
    _refuse_other_files(folder)
    # On the CPU on both sides: GPUs round their products (TF32) by more than the tolerance.
    with keras.device("cpu"):
        plain = classifiers.in_float32(classifier)
        arrays = slim_variables(classifiers.weights(plain))
        features = _trial_patches()
        scores, embeddings = plain.scores(features)
        outputs = {EMBEDDING: embeddings, LOGITS: plain.head(embeddings), PREDICTION: scores}
        wanted = {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}
    needed = 2 * sum(array.nbytes for array in arrays.values())  # a checkpoint and a SavedModel
    with (
        files.temporary_folder("slim") as room,
        files.new_folder(folder, what="the TensorFlow 1 model", needed=needed) as building,
    ):
        alias = room / "export"  # as checkpoint.read_checkpoint has: a plain name for any folder
        alias.symlink_to(building.resolve(), target_is_directory=True)
        with _quiet():
            _write(plain, arrays, alias)
            _compare(alias, features, wanted, feature_atol, folder)
        files.write_bytes(building / "train_id_list.pickle", pickle.dumps(list(plain.classes), protocol=2))


def _refuse_other_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: a file stands where a folder is needed. Give another place.")
    ours = re.compile(r"checkpoint|model\.ckpt\..*|saved_model|train_id_list\.pickle")
    if others := sorted(entry.name for entry in folder.iterdir() if not ours.fullmatch(entry.name)):
        raise InputError(
            f"{shown(folder)}: holds other files ({tf_checkpoint.listed(others)}), and an export replaces its "
            "folder. Give a new one."
        )


def _trial_patches() -> npt.NDArray[np.float32]:
    # As strong as real log-mel: mean and deviation of the VGGish test tone.
    noise = np.random.default_rng(0).normal(-3.43, 2.13, (3, *VGGISH.window_shape))
    return noise.astype(np.float32)


def _session(graph: tf.Graph) -> tf.compat.v1.Session:
    return tf.compat.v1.Session(graph=graph, config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}))


def _write(
    classifier: classifiers.Classifier, arrays: Mapping[str, npt.NDArray[np.float32]], folder: Path
) -> None:
    assert isinstance(classifier.backbone, LayerBackbone)  # `require_tensorflow_1`
    graph = tf.Graph()
    with graph.as_default(), _session(graph) as session:
        build_graph(
            classifier.backbone,
            embedding_activation=classifier.embedding_activation,
            scores=classifier.kind,
            hidden_units=classifier.hidden_units,
            n_classes=len(classifier.classes),
        )
        variables = tf.compat.v1.global_variables()
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        for variable in variables:
            # Feeding the initial value assigns it without storing 289 MB of constants in the graph.
            session.run(variable.initializer, {variable.initial_value: arrays[variable.op.name]})
        # Attributes younger than an old server are left out where they have their default.
        saver.save(session, str(folder / "model.ckpt"), strip_default_attrs=True)
        _write_saved_model(session, saver, folder / "saved_model" / "1")


def _write_saved_model(session: tf.compat.v1.Session, saver: tf.compat.v1.train.Saver, folder: Path) -> None:
    tensor = session.graph.get_tensor_by_name
    signature = tf.compat.v1.saved_model.predict_signature_def(
        inputs={"inputs": tensor(FEATURES)}, outputs={"outputs": tensor(PREDICTION)}
    )
    builder = tf.compat.v1.saved_model.Builder(str(folder))
    builder.add_meta_graph_and_variables(
        session,
        [tf.saved_model.SERVING],
        signature_def_map={tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
        saver=saver,
        strip_default_attrs=True,
    )
    builder.save()


def _compare(
    export: Path,
    features: npt.NDArray[np.float32],
    wanted: Mapping[str, npt.NDArray[np.float32]],
    atol: float,
    folder: Path,
) -> None:
    """Load both things written, each into a fresh graph, and compare what they compute."""
    for part in ("model.ckpt", "saved_model/1"):
        graph = tf.Graph()
        with graph.as_default(), _session(graph) as session:
            if part == "model.ckpt":
                saver = tf.compat.v1.train.import_meta_graph(str(export / "model.ckpt.meta"))
                saver.restore(session, str(export / "model.ckpt"))
            else:
                tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(export / part))
            found = session.run({name: name for name in wanted}, {FEATURES: features})
        for name, expected in wanted.items():
            difference = float(np.max(np.abs(found[name] - expected)))
            allowed = atol * max(1.0, float(np.max(np.abs(expected))))
            if not difference <= allowed:  # NaN is refused too
                raise ExportError(
                    f"{shown(folder)}/{part}: {name} differs from the trained model by {difference:.2g}, "
                    f"allowed are {allowed:.2g}. Nothing was put in place. Likely cause: a defect of "
                    "birdtune or of this TensorFlow; please report it with run.json."
                )
