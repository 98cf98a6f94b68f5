"""VGGish: its table of layers, and where its weights are.

Google's published network (AudioSet; Hershey et al., "CNN architectures for large-scale audio classification",
2017), to the letter: a checkpoint trained there gives the same embeddings here. `vggish-small` is the same
at an eighth of the width, for tests and quick looks; nobody publishes weights for it.
"""

from birdtune.audio.logmel import VGGISH
from birdtune.models.known import KNOWN, UNKNOWN
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.models.layers import Layer
from birdtune.models.tf_checkpoint import WHERE_TO_GET, is_checkpoint, read_checkpoint

LAYERS = (
    Layer("conv1", "conv", 64, "vggish/conv1", pool="pool1"),
    Layer("conv2", "conv", 128, "vggish/conv2", pool="pool2"),
    Layer("conv3_1", "conv", 256, "vggish/conv3/conv3_1"),
    Layer("conv3_2", "conv", 256, "vggish/conv3/conv3_2", pool="pool3"),
    Layer("conv4_1", "conv", 512, "vggish/conv4/conv4_1"),
    Layer("conv4_2", "conv", 512, "vggish/conv4/conv4_2", pool="pool4"),
    Layer("fc1_1", "dense", 4096, "vggish/fc1/fc1_1"),
    Layer("fc1_2", "dense", 4096, "vggish/fc1/fc1_2"),
    Layer("fc2", "dense", 128, "vggish/fc2"),
)


def _narrowed(divisor: int) -> tuple[Layer, ...]:
    """The layers with every width but the embedding's divided."""
    return tuple(row if row is LAYERS[-1] else row._replace(width=row.width // divisor) for row in LAYERS)


def _backbone(name: str, divisor: int) -> LayerBackbone:
    return LayerBackbone(
        name=name,
        title="VGGish",
        front_end=VGGISH,
        origin=KNOWN["vggish"] if divisor == 1 else UNKNOWN,
        layers=_narrowed(divisor),
        endings=("weights", "biases"),
        activations=("relu", "none"),
        checkpoint_names=("vggish_model.ckpt",),
        where_to_get=WHERE_TO_GET,
        read=read_checkpoint,
        recognises=is_checkpoint,
        step_efficiency=0.5,
        bfloat16_gain=1.8,
        has_tensorflow_1=True,
    )


BACKBONE = _backbone("vggish", 1)
SMALL = _backbone("vggish-small", 8)
