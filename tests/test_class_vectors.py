"""birdtune.evaluation.class_vectors: what words, taxonomies and traits say of classes, and which classes are one."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from birdtune.errors import InputError
from birdtune.evaluation import class_vectors as vectors
from birdtune.evaluation.class_vectors import ClassNames

BIRDS = ClassNames(
    ("Parula", "Pine Warbler", "Redstart", "Ovenbird"),
    {
        "Parula": "Setophaga americana_Northern Parula", "Pine Warbler": "Setophaga pinus_Pine Warbler",
        "Redstart": "Setophaga ruticilla", "Ovenbird": "Seiurus aurocapilla_Ovenbird",
    },
)  # fmt: skip
EBIRD = """TAXON_ORDER,CATEGORY,SPECIES_CODE,PRIMARY_COM_NAME,SCI_NAME,ORDER,FAMILY
2,species,norpar,Northern Parula,Setophaga americana,Passeriformes,Parulidae
3,species,pinwar,Pine Warbler,Setophaga pinus,Passeriformes,Parulidae
4,species,amered,American Redstart,Setophaga ruticilla,Passeriformes,Parulidae
1,species,ovenbi1,Ovenbird,Seiurus aurocapilla,Passeriformes,{}
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_genera_of_scientific_names_are_a_taxonomy() -> None:
    found = vectors.taxonomy(BIRDS, {})
    assert found is not None and found.shape == (4, 2)
    assert (found[:3] == found[0]).all() and (found[3] != found[0]).all()
    assert vectors.taxonomy(ClassNames(BIRDS.classes, {}), {}) is None  # `Pine Warbler` has no genus Pine
    one_genus = {name: "Setophaga x" * 0 + f"Setophaga {name.lower()}" for name in ("a", "b")}
    assert vectors.taxonomy(ClassNames(("a", "b"), one_genus), {}) is None


def test_a_table_of_ebird_gives_levels_by_scientific_and_by_common_names(tmp_path: Path) -> None:
    table = written(tmp_path / "ebird.csv", EBIRD.format("Icteridae"))
    found = vectors.taxonomy(BIRDS, vectors.rows_of(table, "--t", BIRDS))
    assert found is not None and found.shape == (4, 4)  # two families, two genera; one order says nothing
    common = ClassNames(("Northern Parula", "Pine Warbler", "American Redstart", "Ovenbird"), {})
    rows = vectors.rows_of(table, "--t", common)
    assert rows["American Redstart"]["sciname"] == "Setophaga ruticilla"
    assert np.array_equal(vectors.taxonomy(common, rows), found)
    with pytest.raises(InputError, match="has no row of Dodo"):
        vectors.rows_of(table, "--t", ClassNames(("Ovenbird", "Dodo"), {}))
    with pytest.raises(InputError, match="no column of names"):
        vectors.rows_of(written(tmp_path / "x.csv", "bird,family\na,b\n"), "--t", BIRDS)


def test_traits_are_numbers_and_few_words(tmp_path: Path) -> None:
    table = written(
        tmp_path / "traits.csv",
        "Species1,Family1,Mass,Habitat,Id,Sex,Gap\nSetophaga americana,P,8,Forest,x1,m,1\n"
        "Setophaga pinus,P,12,Forest,x2,m,\nSetophaga ruticilla,P,8,Shrub,x3,m,1\nSeiurus aurocapilla,P,20,"
        "Shrub,x4,m,2\n",
    )
    found, used = vectors.traits(BIRDS, vectors.rows_of(table, "--t", BIRDS))
    gaps = "class,family,genus\na,P,x\nb,,y\n"  # a family that is not known is no family of its own
    two = ClassNames(("a", "b"), {})
    levels = vectors.taxonomy(two, vectors.rows_of(written(tmp_path / "gaps.csv", gaps), "--t", two))
    assert levels is not None and levels.shape == (2, 2)
    assert used == ["mass", "habitat"] and found is not None and found.shape == (4, 3)
    assert found[:, 0].mean() == pytest.approx(0) and found[:, 0].std() == pytest.approx(1)
    assert found[:, 1].tolist() == [1, 1, 0, 0]


def test_classes_that_are_one_taxon_are_found_by_any_name() -> None:
    def same(*names: str, **scientific: str) -> list[tuple[str, str, str]]:
        return ClassNames(names, {key.replace("_", " "): value for key, value in scientific.items()}).same()

    assert BIRDS.same() == []
    assert same("Myrtle Warbler", "Yellow-rumped Warbler", Myrtle_Warbler="Setophaga coronata coronata",
                **{"Yellow-rumped Warbler": "Setophaga coronata_Yellow-rumped Warbler"}) == [
        ("Myrtle Warbler", "Yellow-rumped Warbler", "setophagacoronata")
    ]  # fmt: skip
    assert [pair[:2] for pair in same("Pine_Warbler", "pine warbler")] == [("Pine_Warbler", "pine warbler")]
    assert same("a", "b", a="Apus_apus", b="Apus_affinis") == []
    assert same("a", "b", a="Parus major_Great Tit", b="Parus minor_Japanese Tit") == []


@pytest.mark.parametrize("head", ["", "5 3\n"])
def test_words_of_both_formats_are_averaged(tmp_path: Path, head: str) -> None:
    lines = head + "Dog 9 9 9\ndog 1 0 0\nbark 0 1 0\nrain 0 0 2\nsea 1 1 1\n"
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    of_class = {name: vectors.words_of(name) for name in ("Dog_bark", "rain", "SeaWaves")}
    assert of_class["SeaWaves"] == ("sea", "waves")
    found, missing = vectors.words(path, "--w", of_class)
    assert found.tolist() == [[0.5, 0.5, 0], [0, 0, 2], [1, 1, 1]] and missing == ["waves"]
    with pytest.raises(InputError, match=r"no word of Owl.*--unseen\.synonyms"):
        vectors.words(path, "--w", {"Owl": ("owl",)})


def test_what_is_no_file_of_word_vectors_is_named(tmp_path: Path) -> None:
    for content, message in (
        (b"3000000 300\n\xff\xfe\x00", "line 2: is no text.*binary"), (b"rain x y\n", "line 1: expected a word"),
        (b"rain 1 2\nsea 1\n", "different lengths"), (b"rain nan 1\n", "line 1: expected"),
    ):  # fmt: skip
        (tmp_path / "v.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            vectors.words(tmp_path / "v.txt", "--w", {"a": ("rain",), "b": ("sea",)})


def test_synonyms_take_the_place_of_a_name(tmp_path: Path) -> None:
    table = written(tmp_path / "words.csv", "class,words\ndog bark,dog puppy hound\n")
    found = vectors.synonyms(table, "--s", ("Dog_bark", "Rain"))
    assert found == {"Dog_bark": ("dog", "puppy", "hound"), "Rain": ("rain",)}
    assert vectors.words_of("Parus major_Great Tit") == ("great", "tit")
    with pytest.raises(InputError, match="cat is no class"):
        vectors.synonyms(written(table, "class,words\ncat,puss\n"), "--s", ("Dog_bark",))
