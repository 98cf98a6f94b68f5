"""birdtune.data.partitions: classes held out by draws, folds, files, and as published partitions have them."""

from pathlib import Path

import pytest

from birdtune.data import partitions
from birdtune.data.partitions import ESC50, FSC22, HeldOut, held_out
from birdtune.errors import InputError, SettingsError

ESC10 = (
    "Baby_cry", "Chainsaw", "Clock_tick", "Dog_bark", "Fire_crackling", "Helicopter", "Person_sneeze", "Rain",
    "Rooster", "Sea_waves",
)  # fmt: skip
BIRDS = tuple("abcdefg")


def test_drawn_classes_follow_the_seed_and_folds_hold_out_each_class_once() -> None:
    (one,), (same,), (other,) = (held_out("3", BIRDS, seed) for seed in (1, 1, 2))
    assert one == same != other and len(one.unseen) == 3
    assert set(one.seen(BIRDS)) | set(one.unseen) == set(BIRDS) and not set(one.seen(BIRDS)) & set(one.unseen)
    folds = held_out("3-fold", BIRDS, 1)
    assert sorted(name for fold in folds for name in fold.unseen) == list(BIRDS)
    assert sorted(len(fold.unseen) for fold in folds) == [2, 2, 3]
    assert len(held_out(None, BIRDS, 1)) == 3  # of seven classes no five folds with two each can be made


@pytest.mark.parametrize("given", ["1", "6", "4-fold", "1-fold", "0"])
def test_a_number_that_leaves_too_few_is_refused_with_what_fits(given: str) -> None:
    with pytest.raises(SettingsError, match=r"Give 2 to 5\.|Give 2-fold to 3-fold\."):
        held_out(given, BIRDS, 1)


def test_the_published_partitions_have_each_class_once() -> None:
    assert len(set(ESC50)) == 50 and len(set(FSC22)) == 27
    folds = [held_out(f"esc50-fold{n}", ESC50, 1)[0] for n in range(4)]
    test = held_out("esc50-test", ESC50, 1)[0]
    assert sorted(name for fold in (*folds, test) for name in fold.unseen) == sorted(ESC50)
    assert all(len(fold.seen(ESC50)) == 30 and set(fold.left_out) == set(test.unseen) for fold in folds)
    assert test.validation == folds[0].unseen and len(test.seen(ESC50)) == 30
    assert set(test.unseen) == {
        "car_horn", "cat", "clock_alarm", "vacuum_cleaner", "crackling_fire", "crow", "dog", "sea_waves", "sheep",
        "water_drops", "wind",
    } - {"vacuum_cleaner"}


def test_numbers_of_fsc22_are_names_before_they_are_compared() -> None:
    (by_name,) = held_out("fsc22-test", FSC22, 1)
    assert set(by_name.unseen) == {
        "silence", "helicopter", "wood_chop", "speaking", "frog", "wing_flapping", "squirrel",
    }  # fmt: skip
    assert len(by_name.seen(FSC22)) == 13
    from_1 = tuple(str(n) for n in range(1, 28))
    (of_files,) = held_out("fsc22-test", from_1, 1)
    assert set(of_files.unseen) == {"6", "8", "16", "18", "22", "24", "27"}
    from_0 = tuple(str(n) for n in range(27))
    (of_list,) = held_out("fsc22-test", from_0, 1)
    assert set(of_list.unseen) == {"5", "7", "15", "17", "21", "23", "26"}
    # The fault that this keeps out: file numbers from 1, compared with a list of training classes from 0.
    trained = {int(name) for name in of_list.seen(from_0)}
    learnt = {int(name) for name in from_1 if int(name) in trained}
    assert {str(n) for n in learnt} & set(of_files.unseen) == {"16", "24"}
    assert not set(of_files.seen(from_1)) & set(of_files.unseen)
    with pytest.raises(InputError, match="from 0 or from 1"):
        held_out("fsc22-test", from_1[:20], 1)


def test_a_partition_goes_by_the_classes_that_are_there_in_other_spellings() -> None:
    (found,) = held_out("esc50-test", ESC10, 1)
    assert found.unseen == ("Fire_crackling", "Dog_bark", "Sea_waves") or set(found.unseen) == {
        "Fire_crackling", "Dog_bark", "Sea_waves",
    }  # fmt: skip
    assert set(found.validation) == {"Clock_tick", "Helicopter"} and found.left_out == ()
    assert set(found.seen(ESC10)) == {"Baby_cry", "Chainsaw", "Person_sneeze", "Rain", "Rooster"}
    (more,) = held_out("ESC50-test", (*ESC10, "Nightingale"), 1)
    assert more.left_out == ("Nightingale",)  # of no part of the partition, so not learnt from either
    with pytest.raises(InputError, match="of the 7 classes of the data, 0 are held out"):
        held_out("esc50-fold2", BIRDS, 1)


def test_a_file_says_which_classes_are_held_out(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("class,split\nA,test\nb,test\nc,val\nd,train\ne,none\n", "utf-8")
    assert held_out(str(path), BIRDS, 1) == [HeldOut(("a", "b"), ("c",), ("e",))]
    path.write_text("class\na\nb\n", "utf-8")
    assert held_out(str(path), BIRDS, 1) == [HeldOut(("a", "b"))]
    for text, message in (
        ("class,split\nz,test\n", "row 2: 'z' is no class of the data"), ("name\na\n", "no column `class`"),
        ("class,split\na,dev\n", "row 2: 'dev' is no part"), ("class\na\n", "1 are held out"),
    ):  # fmt: skip
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match=message):
            held_out(str(path), BIRDS, 1)
    with pytest.raises(SettingsError, match="esc50-test"):
        held_out("esc50-tset", BIRDS, 1)


def test_no_other_spelling_is_of_two_classes() -> None:
    for names in (ESC50, FSC22):
        known = [partitions._published_name(name, names, names) for name in (*names, *partitions._ALSO)]
        assert known[: len(names)] == list(names)
        assert partitions._published_name("WingFlaping", FSC22, FSC22) == "wing_flapping"
