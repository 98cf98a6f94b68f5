"""Detections of calls that may not be of their species: what `learn_soundscapes` measures, with other calls.

The loudest of windows in which BirdNET is sure of the species (the loudest second of three may be another sound), and
the loudest of a recording, which may be another bird. Here as there, the tables say that it is the species.
"""

from bench.harness import Result, Settings
from bench.learn_soundscapes import Kind, measured

_MINUTES = {"train": 36, "val": 14, "test": 20}
KINDS = {
    "14 species, loudest of a certain window": Kind(_MINUTES, (0.0, 20.0), calls="window", draws=1),
    "14 species, loudest of each recording": Kind(_MINUTES, (0.0, 20.0), calls="loudest", draws=1),
}


def measure(settings: Settings) -> Result:
    """AP on windows, event F1, and recall by signal-to-noise ratio."""
    return Result("learn_soundscapes_doubtful", measured(settings, KINDS, {}))
