"""What is known of published weights: their licence, what they were trained on, and whom to cite.

    KNOWN["birdnet"] ─▶ Origin ─▶ Backbone.origin ─▶ `check`, model.json and the report

A licence is that of the weights as their authors publish them. birdtune is under Apache-2.0 and comes without weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

_APACHE = "The weights, and models made from them, may be used, changed and passed on, also commercially."


@dataclass(frozen=True)
class Origin:
    """Where weights come from, for people; None: not known."""

    licence: str | None  # SPDX identifier
    terms: str  # what follows from the licence for a model made from the weights, in a sentence
    trained_on: str | None
    citation: str | None

    def row(self) -> dict[str, str | None]:
        """As it stands in model.json."""
        return asdict(self)

    def lines(self) -> Iterator[tuple[str, str]]:
        """What it is about, and what is known of it."""
        yield "licence of the weights", self.terms if self.licence is None else f"{self.licence}. {self.terms}"
        yield "trained on", self.trained_on or "unknown: ask whoever made it"
        if self.citation is not None:
            yield "to cite", self.citation


UNKNOWN: Final = Origin(
    None, "unknown: ask whoever made it, before you pass a model on", None, None)
# What a network has whose weights begin at random.
OWN: Final = Origin(
    None, "none: training began from random weights, nobody else's",
    "no recordings but those of this model and its base models", None,
)

_HERSHEY = (
    "Hershey, S. et al. (2017). CNN architectures for large-scale audio classification. ICASSP 2017. "
    "https://doi.org/10.1109/ICASSP.2017.7952132"
)

KNOWN: Final[Mapping[str, Origin]] = {
    "vggish": Origin(
        "Apache-2.0",
        _APACHE,
        "the sound of YouTube videos: a preliminary version of YouTube-8M, which is labelled by topics of whole "
        "videos, not by bird species",
        _HERSHEY,
    ),
    "yamnet": Origin(
        "Apache-2.0",
        _APACHE,
        "AudioSet: clips of 10 s from YouTube videos, labelled with 521 kinds of sound, of birds only groups such as "
        "owls and crows",
        f"{_HERSHEY}; Gemmeke, J. F. et al. (2017). Audio Set: An ontology and human-labeled dataset for audio events. "
        "ICASSP 2017. https://doi.org/10.1109/ICASSP.2017.7952261",
    ),
    "birdnet": Origin(
        "CC-BY-NC-SA-4.0",
        "A model made from these weights may not be used commercially, and may be passed on only under this same "
        "licence and with the authors of BirdNET named.",
        "recordings of birds, and of some other animals and sounds, in 6,522 classes worldwide, among others from "
        "Xeno-canto and the Macaulay Library",
        "Kahl, S., Wood, C. M., Eibl, M. and Klinck, H. (2021). BirdNET: A deep learning solution for avian diversity "
        "monitoring. Ecological Informatics 61, 101236. https://doi.org/10.1016/j.ecoinf.2021.101236",
    ),
    "perch": Origin(
        "Apache-2.0",
        _APACHE,
        "recordings of more than 10,000 species of birds from Xeno-canto; Perch 2 also iNaturalist, the Animal Sound "
        "Archive and FSD50K, nearly 15,000 species",
        "Ghani, B., Denton, T., Kahl, S. and Klinck, H. (2023). Global birdsong embeddings enable superior transfer "
        "learning for bioacoustic classification. Scientific Reports 13, 22876. "
        "https://doi.org/10.1038/s41598-023-49989-z",
    ),
}
