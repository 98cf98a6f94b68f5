"""The TensorFlow 1 world: VGGish checkpoints in, a TensorFlow 1 graph and checkpoint out.

    V1 file | V2 prefix | folder | .tgz ─▶ {"vggish/conv1/weights": array, …}
    Classifier ─▶ FOLDER/model.ckpt.*, FOLDER/saved_model/1, FOLDER/train_id_list.pickle

Names, shapes and the order of operations are those of Google's VGGish training demo, which jibjib
followed, so that what reads jibjib's models reads these. Of `model/`, this file alone imports
TensorFlow; graphs live in `tf.Graph()`s of their own and leave the rest of the process in peace.
"""

import contextlib
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_slim as slim

from birdtune import files
from birdtune.errors import CheckpointError, ExportError, InputError, PassingError, shown
from birdtune.model import architecture, archive, vggish
from birdtune.model import classifier as classifiers

FEATURES = "vggish/input_features:0"  # [N, 96, 64] float32
EMBEDDING = "vggish/embedding:0"  # [N, 128]
LOGITS = "mymodel/logits/BiasAdd:0"  # [N, C]
PREDICTION = "mymodel/prediction:0"  # [N, C]

WHERE_TO_GET = (
    "Google's weights are at https://storage.googleapis.com/audioset/vggish_model.ckpt (289 MB); "
    "or train from scratch with `--model.checkpoint none`."
)

# Weights of the network and of jibjib's head; an optimiser's slots end in another word.
_WANTED = re.compile(r"(vggish|mymodel)/(.+/)?(weights|biases)")
# Both checkpoint versions are, or begin with, a sorted string table; these eight bytes end one.
_TABLE_END = bytes.fromhex("57fb808b247547db")
_V2_PART = re.compile(r"(?P<prefix>.*)\.(index|meta|data-\d{5}-of-\d{5})", re.DOTALL)
# A table's own bookkeeping, beyond the numbers in it.
_FORMAT_BYTES = 1 << 20


# --- checkpoints in ---


def read_checkpoint(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The network's weights in a TensorFlow checkpoint, by name; an optimiser's slots are passed over.

    Args:
        path: a file of a V1 Saver; the prefix (or any one file) of a V2 checkpoint; a folder that holds
            one of these; or a .tgz of such a folder, as jibjib publishes.

    Returns:
        float32 arrays "vggish/…/weights", "vggish/…/biases", and "mymodel/…" where there is a head.
        Whether they fit a network is `vggish.load_trunk`'s to say.

    Raises:
        CheckpointError: absent, unreadable, damaged, ambiguous, unsafe, or without VGGish in it.
        PassingError: no room to unpack an archive.
    """
    with tempfile.TemporaryDirectory(prefix="birdtune-checkpoint-") as room_name:
        room = Path(room_name)
        with _read_faults(path):
            if path.is_file() and archive.is_archive(path):
                archive.unpack(path, room / "archive")
                parts = _parts(_only_checkpoint(room / "archive", path, recursive=True), path)
            elif path.is_dir():
                parts = _parts(_only_checkpoint(path, path, recursive=False), path)
            else:
                parts = _parts(path, path)
            # TensorFlow takes its argument for a pattern and for UTF-8, and a user's folder may be named
            # "[2024] Vögel": it gets links with plain names.
            for suffix, part in parts.items():
                (room / f"model.ckpt{suffix}").symlink_to(part.resolve())
            n_bytes = sum(part.stat().st_size for part in parts.values())
        return _read(room / "model.ckpt", n_bytes, path)


@contextlib.contextmanager
def _read_faults(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading into birdtune's words."""
    try:
        yield
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or type(fault).__name__
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(reason)}). Check the path and its rights."
        ) from fault


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
        return file.read() == _TABLE_END


def _parts(path: Path, source: Path) -> dict[str, Path]:
    """The files of the checkpoint at `path`, by what follows the prefix: one file if it is of V1."""
    if path.is_file() and _V2_PART.fullmatch(path.name) is None:
        if not _is_table(path):
            raise CheckpointError(
                f"{shown(source)}: is not a TensorFlow checkpoint, or its end is missing. Likely cause: a "
                f"download that stopped, or another file under this name. {WHERE_TO_GET}"
            )
        return {"": path}
    match = _V2_PART.fullmatch(path.name)
    prefix = path.with_name(match["prefix"]) if match else path
    siblings = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    parts = {file.name.removeprefix(prefix.name): file for file in siblings if _belongs(file, prefix)}
    if not parts:
        raise CheckpointError(f"{shown(source)}: there is no checkpoint here. {WHERE_TO_GET}")
    for kind in (".index", ".data-"):
        if not any(suffix.startswith(kind) for suffix in parts):
            raise CheckpointError(
                f"{shown(source)}: {shown(prefix.name)}{kind}… is missing beside "
                f"{', '.join(shown(part.name) for part in parts.values())}. A checkpoint of this kind is "
                "several files; copy all of them."
            )
    return parts


def _belongs(file: Path, prefix: Path) -> bool:
    match = _V2_PART.fullmatch(file.name)
    return match is not None and match["prefix"] == prefix.name and file.suffix != ".meta" and file.is_file()


def _only_checkpoint(folder: Path, source: Path, *, recursive: bool) -> Path:
    """The checkpoint in a folder; among several, the one that TensorFlow's `checkpoint` file names."""
    entries = sorted(entry for entry in folder.glob("**/*" if recursive else "*") if entry.is_file())
    tables = [entry for entry in entries if not _V2_PART.fullmatch(entry.name) and _is_table(entry)]
    found = tables + [entry.with_suffix("") for entry in entries if entry.suffix == ".index"]
    if not found:
        raise CheckpointError(f"{shown(source)}: holds no TensorFlow checkpoint. {WHERE_TO_GET}")
    named = {_named_in_state(entry) for entry in entries if entry.name == "checkpoint"}
    chosen = found if len(found) == 1 else [entry for entry in found if entry in named]
    if len(chosen) != 1:
        names = vggish.listed([str(entry.relative_to(folder)) for entry in found])
        raise CheckpointError(f"{shown(source)}: holds {len(found)} checkpoints ({names}). Give one of them.")
    return chosen[0]


def _named_in_state(state: Path) -> Path | None:
    match = re.search(r'^model_checkpoint_path:\s*"(.*)"', state.read_text("utf-8", "replace"), re.MULTILINE)
    # Often the absolute path of the machine that trained: only the name can be meant here.
    return state.parent / PurePosixPath(match[1]).name if match else None


def _read(prefix: Path, n_bytes: int, source: Path) -> dict[str, npt.NDArray[np.float32]]:
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
        types: dict[str, tf.DType] = reader.get_variable_to_dtype_map()
        wanted = [name for name in sorted(shapes) if _WANTED.fullmatch(name) and types[name].is_floating]
        if not any(name.startswith("vggish/") for name in wanted):
            raise CheckpointError(
                f"{shown(source)}: is a checkpoint of another network: no variable in it is named "
                f"vggish/…/weights. It holds {vggish.listed(shapes) or 'nothing'}. {WHERE_TO_GET}"
            )
        # Said before it is read: a damaged shape could ask for all the memory there is.
        needed = sum(int(np.prod(shapes[name], dtype=np.float64)) * types[name].size for name in wanted)
        if needed > n_bytes + _FORMAT_BYTES:
            raise CheckpointError(
                f"{shown(source)}: holds {n_bytes / 1e6:.1f} MB, but its variables take {needed / 1e6:.1f} "
                "MB. Likely cause: a download or copy that stopped; get it again."
            )
        return {name: np.asarray(reader.get_tensor(name), np.float32) for name in wanted}
    except CheckpointError:
        raise
    except Exception as fault:  # whatever it is (OpError, IndexError, ValueError …), the file is the cause
        raise CheckpointError(
            f"{shown(source)}: the checkpoint is damaged: TensorFlow cannot read what it lists. Likely "
            "cause: a download or copy that went wrong; get it again."
        ) from fault


# --- graphs out ---


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
    backbone: str, *, embedding_activation: str, head: str, hidden_units: int, n_classes: int
) -> None:
    """Add the classifier to the default graph, with tf-slim, under the names that jibjib's readers know.

    Args:
        backbone, embedding_activation: as `vggish.build_trunk`.
        head, hidden_units, n_classes: as `heads.build_head`.
    """
    zeros = tf.compat.v1.zeros_initializer()  # every weight is assigned next
    # Reference variables, not resource variables: TensorFlow 1 servers of any age read them.
    with slim.arg_scope([slim.conv2d, slim.fully_connected], weights_initializer=zeros):
        with tf.compat.v1.variable_scope("vggish", use_resource=False):
            net = _trunk_graph(backbone, vggish.ACTIVATIONS[embedding_activation])
        with tf.compat.v1.variable_scope("mymodel", use_resource=False):
            if hidden_units:
                net = slim.fully_connected(net, hidden_units, scope="fully_connected")
            logits = slim.fully_connected(net, n_classes, activation_fn=None, scope="logits")
            scores = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}[head]
            scores(logits, name="prediction")  # [N, C]


def _trunk_graph(backbone: str, embedding_activation: str | None) -> tf.Tensor:
    frames, bands = architecture.PATCH_FRAMES, architecture.N_BANDS
    features = tf.compat.v1.placeholder(tf.float32, (None, frames, bands), name="input_features")
    net = tf.reshape(features, (-1, frames, bands, 1))
    for row in architecture.LAYERS:
        scope, width = row.scope.removeprefix("vggish/"), architecture.layer_width(row, backbone)
        if row.kind == "conv":
            net = slim.conv2d(net, width, 3, scope=scope)
        else:
            net = slim.flatten(net)  # [N, 12288] before the first, nothing to do before the others
            is_linear = row.name == "fc2" and embedding_activation is None
            activation = None if is_linear else tf.nn.relu
            net = slim.fully_connected(net, width, activation_fn=activation, scope=scope)
        if row.pool:
            net = slim.max_pool2d(net, 2, 2, padding="SAME", scope=row.pool)
    return tf.identity(net, name="embedding")  # [N, 128]


def slim_variables(arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """`classifier.weights` under the names of the TensorFlow 1 graph."""
    scopes = {f"trunk/{row.name}": row.scope for row in architecture.LAYERS}
    scopes |= {"head/hidden": "mymodel/fully_connected", "head/logits": "mymodel/logits"}
    endings = {"kernel": "weights", "bias": "biases"}
    split = {name: name.rsplit("/", 1) for name in arrays}
    return {f"{scopes[layer]}/{endings[kind]}": arrays[name] for name, (layer, kind) in split.items()}


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
        InputError: other files stand in the folder, or it cannot be written.
        PassingError: the disk is full.
    """
    _refuse_other_files(folder)
    # On the CPU on both sides: GPUs round their products (TF32) by more than the tolerance.
    with keras.device("cpu"):
        plain = classifiers.in_float32(classifier)
        arrays = slim_variables(classifiers.weights(plain))
        patches = _trial_patches()
        scores, embeddings = plain.scores(patches)
        outputs = {EMBEDDING: embeddings, LOGITS: plain.head(embeddings), PREDICTION: scores}
        wanted = {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}
    with files.new_folder(folder) as building, tempfile.TemporaryDirectory(prefix="birdtune-slim-") as room:
        alias = Path(room) / "export"  # see read_checkpoint: a plain name for any folder
        alias.symlink_to(building.resolve(), target_is_directory=True)
        try:
            with _quiet():
                _write(plain, arrays, alias)
                _compare(alias, patches, wanted, feature_atol, folder)
        except tf.errors.ResourceExhaustedError as fault:
            raise PassingError(f"{shown(folder)}: the disk is full. Free some space, run again.") from fault
        files.write_bytes(building / "train_id_list.pickle", pickle.dumps(list(plain.classes), protocol=2))


def _refuse_other_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: a file stands where a folder is needed. Give another place.")
    ours = re.compile(r"checkpoint|model\.ckpt\..*|saved_model|train_id_list\.pickle")
    if others := sorted(entry.name for entry in folder.iterdir() if not ours.fullmatch(entry.name)):
        raise InputError(
            f"{shown(folder)}: holds other files ({vggish.listed(others)}), and an export replaces its "
            "folder. Give a new one."
        )


def _trial_patches() -> npt.NDArray[np.float32]:
    # As strong as real log-mel: mean and deviation of the VGGish test tone.
    noise = np.random.default_rng(0).normal(-3.43, 2.13, (3, architecture.PATCH_FRAMES, architecture.N_BANDS))
    return noise.astype(np.float32)


def _session(graph: tf.Graph) -> tf.compat.v1.Session:
    return tf.compat.v1.Session(graph=graph, config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}))


def _write(
    classifier: classifiers.Classifier, arrays: Mapping[str, npt.NDArray[np.float32]], folder: Path
) -> None:
    graph = tf.Graph()
    with graph.as_default(), _session(graph) as session:
        build_graph(
            classifier.backbone,
            embedding_activation=classifier.embedding_activation,
            head=classifier.kind,
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
    patches: npt.NDArray[np.float32],
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
            found = session.run({name: name for name in wanted}, {FEATURES: patches})
        for name, expected in wanted.items():
            difference = float(np.max(np.abs(found[name] - expected)))
            allowed = atol * max(1.0, float(np.max(np.abs(expected))))
            if not difference <= allowed:  # NaN is refused too
                raise ExportError(
                    f"{shown(folder)}/{part}: {name} differs from the trained model by {difference:.2g}, "
                    f"allowed are {allowed:.2g}. Nothing was put in place. Likely cause: a defect of "
                    "birdtune or of this TensorFlow; please report it with run.json."
                )
