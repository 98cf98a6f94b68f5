"""Detections of four species in soundscapes: what `learn_soundscapes` measures, on an easier set.

Logistic regression on BirdNET's embeddings reached what is to be reached, on a set whose calls and background are not
known; here it stands beside birdtune on the same set.
"""

from bench.harness import Result, Settings
from bench.learn_soundscapes import Kind, measured

KINDS = {
    "four species, 3 to 15 dB": Kind({"train": 14, "val": 6, "test": 14}, (3.0, 15.0), n_species=4, calls="window")
}
TO_REACH = {"four species, 3 to 15 dB": (0.94, 0.87)}  # AP and F1


def measure(settings: Settings) -> Result:
    """AP on windows, event F1, and recall by signal-to-noise ratio."""
    return Result("learn_soundscapes_few", measured(settings, KINDS, TO_REACH))
