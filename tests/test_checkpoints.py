"""Checkpoints: whole or not there, few, and never trusted without their checksums."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import xxhash

from birdtune.errors import CheckpointError, RetryableError
from birdtune.runtime.files import file_sha256, value_sha256
from birdtune.training import checkpoints as kept
from birdtune.training.checkpoints import Checkpoints, State, read_arrays, write_arrays


def weights(value: float) -> dict[str, np.ndarray]:
    return {"backbone/conv1/kernel": np.full((3, 2), value, np.float32), "head/logits/bias": np.arange(4.0)}


def save(checkpoints: Checkpoints, epoch: int, *, step: int = 0, best: int | None = None) -> Path:
    optimizer = {"0000/iteration": np.array(epoch, np.int64)}
    row = {"epoch": best} if best is not None else None
    return checkpoints.save(weights(epoch), optimizer, State(epoch=epoch, step=step, best=row))


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    row = {"epoch": 1, "train_loss": 0.1 + 0.2, "val_loss": None}
    state = State(epoch=1, step=7, updates=31, loss_sum=1 / 3, weight_sum=2.5, history=[row], best=row)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(weights(0.1), {"0001/m": np.float32([[1e-30]]), "0000/i": np.int64(3)}, state)
    saved, complaints = checkpoints.newest()
    assert saved is not None and complaints == []
    assert saved.state == state
    assert saved.weights.keys() == weights(0).keys()
    np.testing.assert_array_equal(saved.weights["backbone/conv1/kernel"], weights(0.1)["backbone/conv1/kernel"])
    assert saved.optimizer["0001/m"].tobytes() == np.float32([[1e-30]]).tobytes()
    assert saved.optimizer["0000/i"].shape == () and int(saved.optimizer["0000/i"]) == 3


def test_the_file_is_what_the_library_would_write(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "a": np.float16([1, 2, 3]),
        "one": np.array(7, np.int64),
        "none": np.zeros((0, 4), np.float32),
        "flag": np.array([True, False, True]),
    }
    digest = write_arrays(tmp_path / "own", arrays)
    assert digest == xxhash.xxh3_128((tmp_path / "own").read_bytes()).hexdigest()
    found = read_arrays(tmp_path / "own")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def full_from(n_free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("birdtune.runtime.storage.free_bytes", "birdtune.training.checkpoints.free_bytes"):
        monkeypatch.setattr(name, lambda path: n_free)


def test_a_checkpoint_that_has_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    n_bytes = sum(array.nbytes for array in weights(1.0).values()) + 8
    save(checkpoints, 1)
    full_from(n_bytes - 1, monkeypatch)
    with pytest.raises(RetryableError, match=rf"epoch-0002-step-000000: .*for a checkpoint \({n_bytes} bytes needed"):
        save(checkpoints, 2)
    assert checkpoints.names() == ["epoch-0001-step-000000"]
    full_from(n_bytes, monkeypatch)
    save(checkpoints, 2)


def test_fewer_are_kept_at_once_where_that_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch in (1, 2, 3, 4):
        save(Checkpoints(tmp_path, keep=4), epoch, best=2)
    full_from(0, monkeypatch)
    with pytest.raises(RetryableError, match="too full"):
        save(Checkpoints(tmp_path, keep=1), 5, best=5)
    assert Checkpoints(tmp_path, keep=1).names() == ["epoch-0002-step-000000", "epoch-0004-step-000000"]
    assert Checkpoints(tmp_path, keep=1).lost() is None


def test_room_for_all_that_stand_side_by_side_is_asked_for_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    full_from(2999, monkeypatch)
    words = r"for 3 more checkpoints.*keep.*1\.0 kB each\) \(3\.0 kB needed, 3\.0 kB free"
    with pytest.raises(RetryableError, match=words):
        checkpoints.need_room(1000, n_to_come=10, weights_bytes=300)
    checkpoints.need_room(1000, n_to_come=2, weights_bytes=300)
    save(checkpoints, 1)
    checkpoints.need_room(1000, n_to_come=10, weights_bytes=300)
    for epoch in (2, 3):
        save(Checkpoints(tmp_path, keep=9), epoch)
    checkpoints.need_room(10**9, n_to_come=10, weights_bytes=300)


def test_weights_of_every_epoch_stay_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, every_epoch=True)
    for epoch in range(1, 4):
        save(checkpoints, epoch, best=1)
        save(checkpoints, epoch, step=3, best=1)
    assert checkpoints.names() == ["epoch-0001-step-000000", "epoch-0003-step-000003"]
    of_epochs = [tmp_path / f"weights-epoch-000{epoch}.safetensors" for epoch in (1, 2, 3)]
    assert sorted(tmp_path.glob("weights-*")) == of_epochs
    assert [float(read_arrays(path)["backbone/conv1/kernel"][0, 0]) for path in of_epochs] == [1.0, 2.0, 3.0]
    # A start that goes on from further back does the epochs behind that again.
    checkpoints.tidy(State(epoch=1, best={"epoch": 1}))
    assert sorted(tmp_path.glob("weights-*")) == of_epochs[:1]
    # One more checkpoint, which is there already beside the best, and twenty times the weights.
    full_from(5_999, monkeypatch)
    words = r"and the weights of 20 epochs \(--train.keep-weights; 300 bytes each\) \(7\.0 kB needed, 6\.0 kB free"
    with pytest.raises(RetryableError, match=words):
        checkpoints.need_room(1000, 20, 300)


def test_without_links_the_weights_of_an_epoch_are_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = save(Checkpoints(tmp_path, keep=1, every_epoch=True), 1)
    (copy,) = tmp_path.glob("weights-*")
    assert copy.read_bytes() == (path / "weights.safetensors").read_bytes() and copy.stat().st_nlink == 1


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none yet", keep=2)
    assert checkpoints.newest() == (None, [])
    assert checkpoints.lost() is None
    with pytest.raises(CheckpointError, match="no trained weights"):
        checkpoints.best()


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in range(1, 6):
        save(checkpoints, epoch, best=min(epoch, 2))
    assert checkpoints.names() == [f"epoch-000{epoch}-step-000000" for epoch in (2, 4, 5)]
    assert float(checkpoints.best()["backbone/conv1/kernel"][0, 0]) == 2.0
    save(checkpoints, 6, best=6)
    save(checkpoints, 7, best=6)
    assert checkpoints.names() == [f"epoch-000{epoch}-step-000000" for epoch in (6, 7)]


def test_steps_within_an_epoch_come_before_the_next_epoch(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    save(checkpoints, 9, step=20)
    save(checkpoints, 9, step=100)
    save(checkpoints, 10)
    assert [name[6:10] + name[-6:] for name in checkpoints.names()] == [
        "0009000020",
        "0009000100",
        "0010000000",
    ]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_newest_one_is_named_and_passed_over(tmp_path: Path, name: str, harm: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1)
    victim = save(checkpoints, 2) / name
    content = bytearray(victim.read_bytes())
    if harm == "gone":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 0xFF
        victim.write_bytes(content)
    saved, complaints = checkpoints.newest()
    assert saved is not None and saved.state.epoch == 1
    assert len(complaints) == 1
    assert "epoch-0002" in complaints[0] and "passed over" in complaints[0]


def test_a_damaged_newest_one_takes_no_place_from_those_that_are_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1, best=1)
    save(checkpoints, 2, best=1)
    victim = tmp_path / "epoch-0002-step-000000" / "state.json"
    victim.write_text("{}")
    save(checkpoints, 1, step=5, best=1)
    assert checkpoints.names() == ["epoch-0001-step-000000", "epoch-0001-step-000005"]
    saved, complaints = checkpoints.newest()
    assert saved is not None and saved.state.step == 5 and complaints == []


def test_a_half_written_checkpoint_is_none_and_is_swept_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    half = tmp_path / ".unfinished-epoch-0003-step-000000"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.newest() == (None, [])
    save(checkpoints, 4)
    assert not half.exists()


@pytest.mark.parametrize("harm", ["gone", "flip"])
def test_a_lost_best_one_is_noticed_and_never_replaced_by_another(tmp_path: Path, harm: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, best=1)
    save(checkpoints, 2, best=1)
    assert checkpoints.lost() is None
    victim = tmp_path / "epoch-0001-step-000000" / "weights.safetensors"
    if harm == "gone":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    assert "epoch-0001" in (checkpoints.lost() or "")
    with pytest.raises(CheckpointError, match="epoch-0001"):
        checkpoints.best()
    checkpoints.clear()
    assert checkpoints.names() == [] and checkpoints.lost() is None


def test_which_is_best_is_said_by_the_newest_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1, best=1)
    newest = save(checkpoints, 2, best=2)
    assert float(checkpoints.best()["backbone/conv1/kernel"][0, 0]) == 2.0
    (newest / "optimizer.safetensors").write_bytes(b"")  # passed over, and with it what it says
    assert float(checkpoints.best()["backbone/conv1/kernel"][0, 0]) == 1.0


def test_a_checkpoint_whose_arrays_have_the_earlier_checksum_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = save(checkpoints, 1)
    stored = json.loads((path / "state.json").read_text())
    arrays = stored.pop("xxh3_128")
    stored["sha256"].update({name: file_sha256(path / name) for name in arrays})
    (path / "state.json").write_text(json.dumps(stored))
    saved, complaints = checkpoints.newest()
    assert saved is not None and complaints == [] and saved.state.epoch == 1
    with (path / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    saved, complaints = checkpoints.newest()
    assert saved is None and "does not match its checksum" in complaints[0]


def test_a_state_of_another_birdtune_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = save(checkpoints, 1) / "state.json"
    stored = json.loads(path.read_text())
    stored["state"]["unheard_of"] = 1
    stored["sha256"]["state.json"] = value_sha256(stored["state"])
    path.write_text(json.dumps(stored))
    saved, complaints = checkpoints.newest()
    assert saved is None and "state.json" in complaints[0]


@pytest.mark.parametrize(
    ("before", "after"), [('"updates": 0', '"updates": 1'), ('"history": [', '"history": 5, "best": ['), ("{", "[")]
)
def test_a_state_that_was_changed_is_passed_over(tmp_path: Path, before: str, after: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 0)
    path = save(checkpoints, 1) / "state.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    saved, complaints = checkpoints.newest()
    assert saved is not None and saved.state.epoch == 0
    assert len(complaints) == 1 and str(path) in complaints[0]


def test_stale_epochs_count_from_the_best() -> None:
    rows = [{"epoch": epoch} for epoch in range(1, 6)]
    assert State(history=rows, best=rows[1]).stale_epochs == 3
    assert State(history=rows, best=rows[-1]).stale_epochs == 0
    assert State().stale_epochs == 0


def test_numbers_of_a_kind_that_numpy_lacks_are_an_error(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    try:
        found = read_arrays(tmp_path / "a.safetensors")
    except CheckpointError as fault:
        assert "a.safetensors: is not a whole" in str(fault)
    else:  # where TensorFlow was loaded before, it has taught numpy that kind
        assert found["a"].shape == (2,)


def test_what_is_not_safetensors_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_arrays(tmp_path / "x.safetensors")


def test_arrays_of_several_parts_are_written_whole_and_hashed_as_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_PIECE_BYTES", 100)
    arrays = {"a": np.arange(333, dtype=np.float32), "b": np.arange(7, dtype=np.int64)}
    digest = write_arrays(tmp_path / "x.safetensors", arrays)
    assert digest == xxhash.xxh3_128((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    found = read_arrays(tmp_path / "x.safetensors")
    assert all((found[name] == array).all() for name, array in arrays.items()) and found.keys() == arrays.keys()
