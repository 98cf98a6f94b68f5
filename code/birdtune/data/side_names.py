"""Words for the sides of a split, as folders and tables call them.

    names of folders | cells of a column ─▶ sides_of ─▶ train, val or test
                                         ─▶ fold_of  ─▶ number of a fold
"""

import re
from collections.abc import Iterable

_SIDE = re.compile(
    r"(?:(?P<train>train|training|trn)|(?P<val>val|valid|validation)|(?P<dev>dev|devel|development)"
    r"|(?P<test>test|testing|tst)|(?P<eval>eval|evaluation|holdout))(?:[ _-]?(?:set|data|split|audio))?",
    re.IGNORECASE,
)
_FOLD = re.compile(r"(?:cv[ _-]*)?fold[ _-]*0*(\d{1,4})", re.IGNORECASE)
# As pandas writes whole numbers in a column that has empty cells: 1.0.
_NUMBER = re.compile(r"0*(\d{1,4})(?:\.0+)?")

EXPECTED = "train, val or test (also training, valid, validation, dev, testing, eval, holdout)"


def sides_of(names: Iterable[str]) -> dict[str, str]:
    """Those of the names that are words for a side → train, val or test.

    `dev` is validation, and what is learnt from where nothing is called train; `eval` and `holdout` are the test, and
    validation where something is called test: as in FSD50K and DCASE.

    Args:
        names: all that are called so in one place, as each word may depend on the others.
    """
    words = {name: str(match.lastgroup) for name in names if (match := _SIDE.fullmatch(name.strip()))}
    present = set(words.values())
    meaning = {"dev": "val" if "train" in present else "train", "eval": "val" if "test" in present else "test"}
    return {name: meaning.get(word, word) for name, word in words.items()}


def fold_of(name: str, *, number: bool = False) -> int | None:
    """The number of a fold that is called `fold 1`, `cv_fold_01`; None: it is called otherwise.

    Args:
        number: a bare number is one, too.
    """
    match = _FOLD.fullmatch(name.strip()) or (_NUMBER.fullmatch(name.strip()) if number else None)
    return int(match[1]) if match else None
