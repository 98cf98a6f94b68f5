"""The newest trained model as a TensorFlow 1 graph.

Importing this loads TensorFlow, and tf-slim.
"""

from birdtune.config import Config
from birdtune.errors import shown
from birdtune.models import classifier as classifiers
from birdtune.models import tf1
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_trained
from birdtune.training.checkpoints import Checkpoints
from birdtune.training.first_weights import build_classifier
from birdtune.training.job import trained_as


def export_slim_model(config: Config, journal: Journal) -> None:
    """Write the newest trained model as a TensorFlow 1 graph, checkpoint and SavedModel, under output/slim/<v>."""
    version, record = newest_trained(config.output)
    config, later = trained_as(config, record)
    folder = config.output / "checkpoints" / str(version) / later
    arrays = Checkpoints(folder, config.train.keep_checkpoints).best()
    classes = tuple(record["classes"])
    classifier = build_classifier(config, classes, "float32", seed=None)
    classifiers.load_weights(classifier, arrays, source=f"version {version}")
    folder = config.output / "slim" / str(version)
    tf1.export_slim(classifier, folder)
    journal.say(f"slim    {shown(folder)}")
