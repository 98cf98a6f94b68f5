"""birdtune.data.layout, class_names, tables: what folders, names and files beside recordings tell."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from makers import quiet, tone, without_processes, write_sound

from birdtune.audio.logmel import VGGISH
from birdtune.cli import main
from birdtune.config import Config
from birdtune.data import class_names, tables
from birdtune.data import dataset as gather
from birdtune.data.dataset import Dataset
from birdtune.data.labels import background_of
from birdtune.data.scan import Listing
from birdtune.errors import InputError
from birdtune.runtime.signals import Interrupts

BIRDS = ("Erithacus rubecula", "Parus major", "Turdus merula")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


def put(place: Path, *folders: str, recordings: int = 3) -> None:
    """Recordings that no other folder has, in each folder below data/."""
    for folder in folders:
        for k in range(recordings):
            seed = sum(folder.encode()) * 1000 + len(folder) * 100 + k
            write_sound(place / "data" / folder / f"{'abcdefgh'[k]}.wav", tone(1.0, 8000, seed=seed), 8000)


def inspect(place: Path, faults: list[str] | None = None, **settings: Any) -> Dataset:
    (place / "out").mkdir(exist_ok=True)
    config = Config(input=place, output=place / "out", **settings)
    found: list[str] = [] if faults is None else faults
    dataset = gather.inspect(config, VGGISH, quiet(), Interrupts(), writable=True, faults=found)
    assert faults is not None or not found
    return dataset


def sides(dataset: Dataset, below: str = "") -> Counter[str]:
    return Counter(dataset.places[r.name].split for r in dataset.recordings if r.name.startswith(below))


def said(dataset: Dataset) -> str:
    return "\n".join(dataset.notices)


# ---- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"train": "train", "val": "val", "test": "test"},
        {"Training": "train", "VALID": "val", "Testing": "test"},
        {"train_set": "train", "dev": "val", "test-set": "test"},
        {"dev": "train", "eval": "test"},
        {"Train": "train", "validation": "val"},
        {"train": "train", "test": "test", "eval": "val"},
    ],
)
def test_folders_that_are_sides_of_a_split_are_obeyed_and_reported(tmp_path: Path, names: dict[str, str]) -> None:
    put(tmp_path, *(f"{side}/{bird}" for side in names for bird in BIRDS))
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS
    # a.wav of both sides is no one source.
    assert len({place.group for place in dataset.places.values()}) == len(dataset.places)
    assert "On more than one side" not in said(dataset)
    for folder, side in names.items():
        assert sides(dataset, f"{folder}/") == {side: 9}
        assert f'"{folder}" (9 recordings) is {side}' in said(dataset)


def test_sides_in_the_class_folders_are_the_same(tmp_path: Path) -> None:
    put(tmp_path, *(f"{bird}/{side}" for side in ("train", "test") for bird in BIRDS))
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS
    assert {r.name.split("/")[1]: dataset.places[r.name].split for r in dataset.recordings} == {
        "train": "train", "test": "test",
    }  # fmt: skip
    assert "Folders in the class folders are taken for a split" in said(dataset)


@pytest.mark.parametrize("folds", [("fold1", "fold2", "fold3"), ("Fold 01", "Fold 02", "Fold 03"), ("1", "2", "3")])
def test_folders_that_are_folds_are_chosen_among_as_those_of_a_file(tmp_path: Path, folds: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{fold}/{bird}" for fold in folds for bird in BIRDS))
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS
    assert [sides(dataset, f"{fold}/") for fold in folds] == [{"val": 9}, {"train": 9}, {"test": 9}]
    assert "Fold 3 is test, as the last one" in said(dataset)
    dataset = inspect(tmp_path, split={"test_fold": 1, "val_fold": 3})
    assert [sides(dataset, f"{fold}/") for fold in folds] == [{"test": 9}, {"train": 9}, {"val": 9}]
    with pytest.raises(InputError, match=r"--split\.test-fold 7: .* has the folds 1, 2, 3"):
        inspect(tmp_path, split={"test_fold": 7})


def test_a_split_file_goes_before_the_folders(tmp_path: Path) -> None:
    put(tmp_path, *(f"{side}/{bird}" for side in ("train", "test") for bird in BIRDS))
    rows = [f"{bird}/{k}.wav,{side}" for bird in BIRDS for k, side in zip("abc", ("train", "val", "test"), strict=True)]
    (tmp_path / "split.csv").write_text("recording,split\n" + "\n".join(f"train/{row}" for row in rows) + "\n")
    dataset = inspect(tmp_path, split={"file": str(tmp_path / "split.csv")})
    assert sides(dataset) == {"train": 3, "val": 3, "test": 3}
    assert "--split.file goes before" in said(dataset)


def test_a_source_on_both_sides_of_the_folders_is_reported(tmp_path: Path) -> None:
    for k, (side, bird) in enumerate((side, bird) for side in ("train", "test") for bird in BIRDS):
        for n in range(2):
            name = f"data/{side}/{bird}/REC12{BIRDS.index(bird)}_{2 * (side == 'test') + n}.wav"
            write_sound(tmp_path / name, tone(seed=10 * k + n))
    assert "On more than one side of the split, as the split given says: 3 source recordings" in said(inspect(tmp_path))


def test_copies_on_both_sides_are_reported(tmp_path: Path) -> None:
    put(tmp_path, *(f"{side}/{bird}" for side in ("train", "test") for bird in BIRDS))
    copy = tmp_path / "data/train/Parus major/copy.wav"
    copy.write_bytes((tmp_path / "data/test/Parus major/a.wav").read_bytes())
    assert "Copies on several sides: 1 recording, e.g." in said(inspect(tmp_path))


def test_background_beside_the_sides_is_divided_as_usual(tmp_path: Path) -> None:
    put(tmp_path, *(f"{side}/{bird}" for side in ("train", "test") for bird in BIRDS))
    put(tmp_path, "Noise", recordings=8)
    dataset = inspect(tmp_path)
    assert dataset.classes == ("Erithacus rubecula", "Noise", "Parus major", "Turdus merula")
    assert len(sides(dataset, "Noise/")) == 3
    assert re.search("Without a side in the layout of .*: 8 recordings", said(dataset))


@pytest.mark.parametrize("sort", ["{side}/{bird}", "{bird}/{side}"])
def test_a_class_that_is_spelt_otherwise_on_the_other_side_is_one_class(tmp_path: Path, sort: str) -> None:
    spelt = {"train": ("Merle", "Grive", "Turdus_pilaris"), "test": ("merle", "Grive ", "Turdus pilaris")}
    put(tmp_path, *(sort.format(side=side, bird=bird) for side, birds in spelt.items() for bird in birds))
    dataset = inspect(tmp_path)
    assert dataset.classes == ("Grive", "Merle", "Turdus_pilaris")
    assert {place.split for place in dataset.places.values()} == {"train", "test"}
    assert 'Classes "Merle", "merle" differ only in case' in said(dataset)
    assert 'they are taken for one class, "Merle"' in said(dataset)
    assert "without a usable recording" not in said(dataset) and "No training recording" not in said(dataset)
    assert len({place.group for place in dataset.places.values()}) == 18, "a.wav of both sides is no one source"


def test_two_spellings_on_one_side_are_kept_apart_and_reported(tmp_path: Path) -> None:
    put(tmp_path, "train/Merle", "train/merle", "train/-Merle", "test/merle", "test/Grive", "train/Grive")
    dataset = inspect(tmp_path)
    assert {"Merle", "merle", "background"} < set(dataset.classes)
    assert "kept apart" in said(dataset)


@pytest.mark.parametrize("names", [("train", "bus", "ship"), ("train", "test", "bus"), ("train", "tram")])
def test_trains_are_no_training_data(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *names)
    dataset = inspect(tmp_path)
    assert dataset.classes == tuple(sorted(names))
    assert "taken for a split" not in said(dataset)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([f"{side}/{bird}" for side in ("train", "test") for bird in BIRDS] + ["Strix aluco"], "beside them lies"),
        (["train", "test"], "no class folders are in them.*--labels.table"),
    ],
)
def test_sides_that_would_become_classes_are_refused(tmp_path: Path, folders: list[str], words: str) -> None:
    put(tmp_path, *folders)
    with pytest.raises(InputError, match=words):
        inspect(tmp_path)


def test_one_side_alone_says_where_the_classes_are(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{bird}" for bird in BIRDS))
    with pytest.raises(InputError, match=r'only one class .*\("train"\).*--data .*/data/train, or --labels.level 2'):
        inspect(tmp_path)
    assert inspect(tmp_path, labels={"level": 2}).classes == BIRDS


def test_a_split_with_another_folder_beside_it_is_reported_as_none(tmp_path: Path) -> None:
    put(tmp_path, *(f"{bird}/{side}" for bird in BIRDS for side in ("train", "test", "unused")))
    words = said(inspect(tmp_path))
    assert '"test", "train" in the class folders look like sides of a split' in words
    assert '"unused" lies beside' in words


def test_the_same_folders_in_all_classes_are_pointed_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"{top}/{bird}" for top in ("split0", "split1") for bird in ("Merle", "Parus")))
    assert 'all hold the same folders, "Merle", "Parus". If those are the classes: --labels.level 2' in said(
        inspect(tmp_path)
    )


# ---- families -----------------------------------------------------------------------------------

FAMILIES = ("Turdidae/Turdus merula", "Turdidae/Turdus pilaris", "Paridae/Parus major", "Paridae/Parus ater")


@pytest.mark.parametrize("above", ["", "train/", "Passeriformes/"])
def test_folders_of_families_are_reported_with_the_way_to_the_species(tmp_path: Path, above: str) -> None:
    put(tmp_path, *(f"{above}{folder}" for folder in FAMILIES), "Strigiformes/Strigidae/Strix aluco")
    if above == "train/":
        put(tmp_path, *(f"test/{folder}" for folder in FAMILIES))
        (tmp_path / "data/Strigiformes").rename(tmp_path / "Strigiformes")
    level = 3 if above == "Passeriformes/" else 2
    dataset = inspect(tmp_path)
    assert f"--labels.level {level}" in said(dataset) and "is of the class" in said(dataset)
    dataset = inspect(tmp_path, labels={"level": level})
    assert {folder.split("/")[1] for folder in FAMILIES} <= set(dataset.classes)


@pytest.mark.parametrize("tops", [("2019", "2020"), ("Site A", "Site B"), ("S4A03895", "S4A03896"), ("Wood", "Lake")])
def test_classes_in_folders_of_years_places_and_recorders_are_reported(tmp_path: Path, tops: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{top}/{bird}" for top in tops for bird in BIRDS))
    assert "--labels.level 2" in said(inspect(tmp_path))
    dataset = inspect(tmp_path, labels={"level": 2})
    assert dataset.classes == BIRDS and "--labels.level" not in said(dataset)


@pytest.mark.parametrize(
    "folders",
    [("2023-05-01", "2023-05-02"), ("Site A", "Site B"), ("song", "call"), ("XC1234", "XC99"), ("Forest", "Meadow")],
)
def test_dates_sites_and_recordings_are_no_families(tmp_path: Path, folders: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{bird}/{folder}" for bird in BIRDS for folder in folders))
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS and "--labels.level" not in said(dataset)


def test_what_lies_above_the_class_folders_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, *FAMILIES)
    put(tmp_path, "Turdidae", recordings=1)
    dataset = inspect(tmp_path, labels={"level": 2})
    assert [(p.recording, p.problem) for p in dataset.problems] == [("Turdidae/a.wav", "outside-class")]


# ---- names of classes ---------------------------------------------------------------------------


def test_negatives_of_a_class_are_background_and_no_class(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS, "-Turdus merula", "-Parus major", "Noise")
    dataset = inspect(tmp_path)
    assert dataset.classes == ("Erithacus rubecula", "Noise", "Parus major", "Turdus merula", "background")
    assert dataset.background == ("Noise", "background")
    assert len({dataset.places[r.name].group for r in dataset.recordings if r.label == "background"}) == 6
    assert '"-Turdus merula" (3)' in said(dataset) and 'count as "background"' in said(dataset)


@pytest.mark.parametrize(
    "name",
    ["Noise", "SILENCE", "other", "Others", "Background", "nocall", "no_call", "No Call", "no-call", "Negative",
     "unknown", "Hintergrund", "Ambient", "Unknown sp.", "unknown_sp", "Bruit de fond"],
)  # fmt: skip
def test_usual_names_of_what_is_no_class_are_background(name: str) -> None:
    others = [*BIRDS, "Nocallia", "Rain", "Wind", "Unknown species of Turdus"]
    assert background_of([*others, name], Config().labels.negative_classes) == (name,)


@pytest.mark.parametrize(
    "name",
    ["Turdus merula,Parus major", "Turdus merula, Parus major", "Strix aluco,Bubo bubo", "Strix aluco, Bubo bubo",
     "amsel,meise", "Turdus merula + Parus major", "Turdus merula_Blackbird,Parus major_Tit"],
)  # fmt: skip
def test_a_name_of_two_classes_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f'^data: "{re.escape(name)}" names several classes at once'):
        class_names.refuse_several([*BIRDS, name], "data")


def test_a_folder_of_two_classes_has_recordings_of_both_and_chooses_sigmoid(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS, "turdus merula,Parus major", "Parus major,-Turdus merula")
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS and dataset.output == "sigmoid"
    classes = {recording.name: recording.classes for recording in dataset.recordings}
    assert classes["turdus merula,Parus major/a.wav"] == ("Turdus merula", "Parus major")
    assert classes["Parus major,-Turdus merula/a.wav"] == ("Parus major",)
    assert dataset.counts(dataset.recordings) == [3, 9, 6]
    assert "scored on its own (--model.output sigmoid), as the labels have 3 recordings with several" in said(dataset)
    assert "several classes" not in said(inspect(tmp_path, model={"output": "sigmoid"}))


def test_recordings_of_one_class_each_choose_softmax(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS)
    assert inspect(tmp_path).output == "softmax"
    assert inspect(tmp_path, model={"output": "sigmoid"}).output == "sigmoid"


def test_a_folder_of_two_classes_is_refused_by_softmax_before_the_long_work(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS, "Turdus merula,Parus major")
    faults: list[str] = []
    assert len(inspect(tmp_path, faults, model={"output": "softmax"}).recordings) == 12
    assert len(faults) == 1 and "names several classes at once" in faults[0]
    with pytest.raises(InputError, match="names several classes"):
        config = Config(input=tmp_path, output=tmp_path / "prepared", model={"output": "softmax"})
        gather.prepare(config, VGGISH, quiet(), Interrupts())
    assert not list((tmp_path / "prepared/cache").glob("vggish*/*.rows"))


@pytest.mark.parametrize(
    ("name", "mark"),
    [("Turdus merula & Parus major", "&"), ("Turdus merula + Parus major", "+"), ("Turdus merula;Parus major", ";"),
     ("Turdus merula and Parus major", "and"), ("Turdus merula|Parus major", "|")],
)  # fmt: skip
def test_what_stands_between_two_classes_is_named(name: str, mark: str) -> None:
    said = f'"{re.escape(name)}" is one class, .* without the "{re.escape(mark)}"'
    with pytest.raises(InputError, match=said) as fault:
        class_names.refuse_several([*BIRDS, name], "data")
    assert "comma" not in str(fault.value)


def test_a_name_that_is_refused_is_not_taken_for_one_class_as_well(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS, "Turdus merula, Parus major", "Thrush, Song")
    faults: list[str] = []
    notices = said(inspect(tmp_path, faults, model={"output": "softmax"}))
    assert "several classes at once" in faults[0] and 'in spite of the comma: "Thrush, Song".' in notices


@pytest.mark.parametrize("name", ["Thrush, Song", "Sound of 1,5 kHz", "Crow & Rook", "Black and white warbler"])
def test_a_name_with_a_comma_may_be_one_name(name: str) -> None:
    class_names.refuse_several([*BIRDS, name], "data")
    notices = class_names.folder_notices(Listing([], [], []), [*BIRDS, name])
    assert [f'comma: "{name}".' in notice for notice in notices] == ([True] if "," in name else [])


@pytest.mark.parametrize(
    "other",
    ["Turdus merula (2)", "Turdus merula - Copy", "Turdus merula - Copy (2)", "Turdus_merula_part2", "turdus merula",
     "Turdus merula ", "Turdus  merula", "Turdus-merula", "Turdus merula copy", "Turdus merula 2", "Turdus merula pt 3",
     "Turdus merula - Kopie"],
)  # fmt: skip
def test_names_that_are_nearly_another_are_pointed_out_in_quotes(other: str) -> None:
    (notice,) = class_names.folder_notices(Listing([], [], []), [*BIRDS, other])
    assert "kept apart" in notice and f'"Turdus merula" and "{other}"' in notice


def test_numbered_classes_are_not_nearly_each_other() -> None:
    names = ["Class 1", "Class 2", "species_3", "Copycat", "Department 1", "***", "+++"]
    assert class_names.folder_notices(Listing([], [], []), names) == []


@pytest.mark.parametrize(
    ("rare", "frequent"),
    [
        ("Chiffchaf", "Chiffchaff"), ("Chifchaff", "Chiffchaff"), ("Erithacus rubecola", "Erithacus rubecula"),
        ("Philoscopus_collybita", "Phylloscopus collybita"), ("Robbin", "Robin"), ("Great Titt", "Great Tit"),
        ("Turdusmerula", "Turdus merula"), ("turdus MERULLA", "Turdus merula"),
    ],
)  # fmt: skip
def test_a_rare_class_that_is_nearly_a_frequent_one_may_be_misspelt(rare: str, frequent: str) -> None:
    (said,) = class_names.misspelt_notices(Counter({rare: 1, frequent: 120, "Wren": 1}), by_rows=True)
    assert f'"{rare}" (1 label) is nearly "{frequent}" (120)' in said and "--labels.taxonomy map.csv" in said
    assert "rename the folder" in class_names.misspelt_notices(Counter({rare: 2, frequent: 10}), by_rows=False)[0]
    for n_rare, n_frequent in ((3, 120), (2, 9)):
        assert not class_names.misspelt_notices(Counter({rare: n_rare, frequent: n_frequent}), by_rows=True)
    assert class_names.misspelt_notices(Counter({rare: 20, frequent: 1000}), by_rows=True)


@pytest.mark.parametrize(
    ("rare", "frequent"),
    [
        ("Parus minor", "Parus major"), ("Dendrocopos minor", "Dendrocopos major"), ("Rock Dove", "Stock Dove"),
        ("Eastern Kingbird", "Western Kingbird"), ("Black-bellied Cuckoo", "Black-billed Cuckoo"), ("song A", "song B"),
        ("call 1", "call 11"), ("houspa", "houfin"), ("lesgol", "lesgul"), ("Turdus merula", "turdus_merula"),
    ],
)  # fmt: skip
def test_two_birds_are_not_taken_for_one_that_is_misspelt(rare: str, frequent: str) -> None:
    assert class_names.misspelt_notices(Counter({rare: 1, frequent: 1000}), by_rows=True) == []


# ---- files beside recordings --------------------------------------------------------------------

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\n1\tSpectrogram 1\t1\t0.1\t0.5\t800\n"
FILES: dict[str, tuple[str | bytes, str]] = {
    "rec_a.Table.1.selections.txt": (RAVEN, "annotation"),
    "rec_b.txt": (RAVEN.encode("utf-16"), "annotation"),
    "labels.txt": ("0.500000\t1.250000\tsong\n\\\t800.0\t4000.0\n2.0\t3.0\tcall\n", "annotation"),
    "komma.txt": ("0,5\t1,25\tSingdrossel\n", "annotation"),
    "events.csv": ("filename,start_time,end_time,species\na.wav,0.5,1.0,x\n", "annotation"),
    "dcase.csv": ("Audiofilename,Starttime,Endtime,POS\na.wav,1,2,x\n", "annotation"),
    "onset.tsv": ("onset\toffset\tevent_label\n0.1\t0.2\tx\n", "annotation"),
    "id.csv": ("INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION\n/x,,a.wav,0,1,2\n", "annotation"),
    "rec.BirdNET.results.csv": ("Start (s),End (s),Scientific name,Confidence\n0,3,x,0.9\n", "annotation"),
    "semi.csv": ("Beginn;x\n", "metadata"),
    "bare.csv": ("0.1,0.5,song\n0.7,0.9,call\n", "annotation"),
    "rec.eaf": ("<?xml version='1.0'?><ANNOTATION_DOCUMENT/>", "annotation"),
    "rec.TextGrid": ('File type = "ooTextFile"\nObject class = "TextGrid"\n', "annotation"),
    "praat.txt": ('File type = "ooTextFile"\nObject class = "TextGrid"\n', "annotation"),
    "boxes.json": ('{"annotations": [{"start": 1}]}', "annotation"),
    "rec.wav.data": ('[{"Operator": "x", "Duration": 60}, [10.0, 12.0, 0, 0, []]]', "annotation"),
    "xc.json": ('{"recordings": [{"id": "1", "gen": "Turdus", "length": "0:31"}]}', "metadata"),
    "CONFIG.TXT": ("Device ID : 24F31901603710B4", "metadata"),
    "S4A_Summary.txt": ("DATE,TIME,LAT,,LON,,POWER(V),TEMP(C)\n2020-Jan-1,00:00,1,N,2,E,5,20\n", "metadata"),
    "README": ("x", "metadata"), "LICENSE.txt": ("x", "metadata"), "Thumbs.db": (b"\xd0\xcf", "metadata"),
    "desktop.ini": ("[.ShellClassInfo]", "metadata"), "rec.wav.asd": (b"\0", "metadata"),
    "rec.wav.reapeaks": (b"RPKN", "metadata"), "rec.pkf": (b"\0", "metadata"), "rec.sfk": (b"\0", "metadata"),
    "sonogram.PNG": (b"\x89PNG", "metadata"), "meta.csv": ("filename,category\na.wav,dog\n", "metadata"),
    "notes.txt": ("heard at dawn, 3 birds", "metadata"), "empty.txt": ("", "metadata"),
    "noise.bin": (b"\0\1", "not-audio"), "nothing": ("x", "not-audio"), "binary.txt": (b"a\0b", "not-audio"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_lies_beside_recordings_is_known(tmp_path: Path, name: str) -> None:
    content, code = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = tables.describe(tmp_path / name)
    assert (found[0] if found else "not-audio") == code


def test_annotations_are_never_advised_away_and_what_becomes_of_them_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "input", *BIRDS)
    for name, (content, _) in FILES.items():
        path = tmp_path / "input/data" / (BIRDS[0] if name != "events.csv" else "") / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--model.backbone", "vggish-small", "--model.checkpoint", "none"]) == 0
    out = capsys.readouterr().out
    n = sum(code == "annotation" for _, code in FILES.values())
    assert f"{n} not used: annotation. To train on it, name it or its folder: --labels.annotations" in out
    assert f"note: {n} files of annotations among the recordings are not used" in out and "is trained whole" in out
    assert "Remove it" not in out
    assert "9 usable: 3 classes" in out


def test_only_the_beginning_of_a_file_is_read_and_no_link_followed(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("x" * 5000 + "\nstart,end\n")
    assert tables.describe(tmp_path / "long.csv") == ("metadata", "a text")
    (tmp_path / "elsewhere").write_text("start,end\n")
    (tmp_path / "link.csv").symlink_to("elsewhere")
    assert tables.describe(tmp_path / "link.csv") is None
    assert tables.describe(tmp_path / "gone.csv") is None


def test_a_check_without_a_usable_recording_lists_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bird in BIRDS:
        (tmp_path / "input/data" / bird).mkdir(parents=True)
        (tmp_path / "input/data" / bird / "a.wav").write_text("<html>")
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--model.backbone", "vggish-small", "--model.checkpoint", "none"]) == 42
    out = capsys.readouterr().out
    assert "  Turdus merula/a.wav: " in out and "3 not used: " in out and "./entrypoint.sh check" not in out


def test_with_softmax_it_is_said_that_windows_without_a_label_are_no_negatives(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS)
    sounds = (tmp_path / "data").rglob("*.wav")
    rows = [f"{path.parent.name}/{path.name},0,0.5,{path.parent.name}" for path in sounds]
    (tmp_path / "data/labels.csv").write_text("\n".join(["recording,start_s,end_s,label", *rows]))
    (tmp_path / "data/raven.selections.txt").write_text(RAVEN)
    for output in ("softmax", "auto"):
        notices = said(inspect(tmp_path, [], model={"output": output}))
        assert ("without a label are not trained on as negatives" in notices) == (output == "softmax")
        assert "1 file of annotations among the recordings is not used. To train on what" in notices
