"""Settings: where they may be given, which wins, and what is said of one that is wrong."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from birdtune.config import Config, options
from birdtune.errors import CheckpointError, InputError, SettingsError
from birdtune.models import files
from birdtune.models.registry import BACKBONES, checkpoint_path
from birdtune.runtime.configure import load, nearest, renamed
from birdtune.settings import ModelSettings


def loaded(flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Config:
    return load(flags or {}, environment or {})


def job_yaml(folder: Path, text: str) -> dict[str, str]:
    """Write a job.yaml; the flags that lead to it."""
    (folder / "job.yaml").write_text(text)
    return {"input": str(folder)}


def complaint(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    kind: type[InputError] = SettingsError,
) -> str:
    with pytest.raises(kind) as caught:
        loaded(flags, environment)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 42
    return message


def test_a_job_yaml_that_is_a_link_to_nothing_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").symlink_to("not mounted")
    assert "is a link to nothing" in complaint({"input": str(tmp_path)}, kind=InputError)


# ---- the options --------------------------------------------------------------------------------


def test_the_names_that_scripts_rely_on_are_there() -> None:
    flags = {option.flag for option in options()}
    assert flags >= {
        "--input", "--output", "--data", "--model.backbone", "--model.checkpoint", "--model.freeze", "--model.head",
        "--train.epochs", "--train.batch-size", "--train.precision", "--train.seed", "--split.file",
        "--split.test-fold", "--split.group-regex", "--audio.resampler", "--audio.max-hours", "--labels.map",
    }  # fmt: skip


def test_each_setting_has_a_flag_a_variable_and_a_path() -> None:
    option = next(option for option in options() if option.name == "train.batch-size")
    assert option.flag == "--train.batch-size"
    assert option.variable == "BIRDTUNE_TRAIN__BATCH_SIZE"
    assert option.path == ("train", "batch_size")
    assert (option.type, option.unit, option.default, option.section) == ("int", "windows", 32, "Training")


def test_types_and_defaults_are_shown_as_people_write_them() -> None:
    shown = {option.name: (option.type, option.default_text) for option in options()}
    assert shown["model.output"] == ("auto|softmax|sigmoid", "auto")
    assert shown["train.jit"] == ("true|false", "true")
    assert shown["data"] == ("path", "INPUT/data")
    assert shown["split.file"] == ("text", "unset")
    assert shown["split.test-fold"] == ("int", "the last, of folders or a table of labels")


def test_the_optimiser_begins_as_jibjib_did() -> None:
    train = Config().train
    assert (train.learning_rate, train.epsilon) == (1e-4, 1e-8)


def test_settings_cannot_be_changed_once_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.epochs = 3  # type: ignore[misc]


def test_changed_lists_only_what_differs_from_the_defaults() -> None:
    config = loaded({"train.epochs": "3", "train.seed": "1", "output": "o"})
    assert config.changed() == {"train.epochs": 3, "output": "o"}


def test_flat_names_every_setting_once_and_is_plain() -> None:
    flat = loaded({"data": "d"}).flat()
    assert list(flat) == [option.name for option in options()]
    assert flat["data"] == "d"  # text, not a Path: it goes into JSON
    assert flat["train.batch-size"] == 32


# ---- layers -------------------------------------------------------------------------------------


def test_flag_beats_environment_beats_yaml_beats_the_commands_default_beats_default(tmp_path: Path) -> None:
    flags = job_yaml(tmp_path, "train: {epochs: 3}\n")
    environment = {"BIRDTUNE_TRAIN__EPOCHS": "4"}
    defaults = {"train.epochs": 2}
    assert load({}, {}).train.epochs == 30
    assert load({}, {}, defaults).train.epochs == 2
    assert load(flags, {}, defaults).train.epochs == 3
    assert load(flags, environment, defaults).train.epochs == 4
    assert load({**flags, "train.epochs": "5"}, environment, defaults).train.epochs == 5


def test_layers_mix_setting_by_setting(tmp_path: Path) -> None:
    flags = job_yaml(tmp_path, "train: {epochs: 3, batch-size: 8}\n")
    config = load({**flags, "train.seed": "7"}, {"BIRDTUNE_TRAIN__BATCH_SIZE": "16"})
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (3, 16, 7)


@pytest.mark.parametrize(
    "text",
    [
        "train: {batch-size: 8}",
        "train: {batch_size: 8}",
        "train.batch-size: 8",
        "train.batch_size: 8",
        "train:\n  batch-size: '8'\n",
        "\ufefftrain.batch-size: 8",
    ],
)
def test_yaml_keys_may_be_nested_or_flat_with_dashes_or_underscores(tmp_path: Path, text: str) -> None:
    assert loaded(job_yaml(tmp_path, text)).train.batch_size == 8


def test_yaml_numbers_as_people_write_them_are_understood(tmp_path: Path) -> None:
    # YAML 1.1 takes 1e-3 for text.
    config = loaded(job_yaml(tmp_path, "train: {learning-rate: 1e-3, jit: off}\nmodel: {checkpoint: none}\n"))
    assert (config.train.learning_rate, config.train.jit, config.model.checkpoint) == (1e-3, False, "none")


def test_the_input_folder_may_come_from_the_environment(tmp_path: Path) -> None:
    job_yaml(tmp_path, "train.epochs: 3")
    assert load({}, {"BIRDTUNE_INPUT": str(tmp_path)}).train.epochs == 3


def test_paths_in_yaml_begin_at_the_input_folder_and_none_stays_none(tmp_path: Path) -> None:
    config = loaded(
        job_yaml(tmp_path, "data: sounds\nsplit.file: folds.csv\nlabels.map: /abs/map.json\nmodel.checkpoint: none\n")
    )
    assert config.data == tmp_path / "sounds"
    assert config.split.file == str(tmp_path / "folds.csv")
    assert config.labels.map == "/abs/map.json"
    assert config.model.checkpoint == "none"
    (tmp_path / "e,f.csv").write_text("")
    config = loaded(job_yaml(tmp_path, "labels.annotations: 'a, s3://b/c,/d,e,f.csv'\n"))
    assert config.labels.annotations == f"{tmp_path / 'a'},s3://b/c,/d,{tmp_path / 'e,f.csv'}"
    assert loaded(job_yaml(tmp_path, "labels.annotations: none\n")).labels.annotations == "none"


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n  # epochs: 3\n", "---\n"])
def test_an_empty_yaml_or_section_sets_nothing(tmp_path: Path, text: str) -> None:
    assert loaded(job_yaml(tmp_path, text)).changed() == {"input": str(tmp_path)}


def test_without_yaml_and_without_an_input_folder_the_defaults_hold(tmp_path: Path) -> None:
    assert loaded({"input": str(tmp_path / "nowhere")}).train == Config().train


def test_yaml_is_left_alone_when_a_command_makes_its_own_input(tmp_path: Path) -> None:
    flags = job_yaml(tmp_path, "nonsense: 3")
    assert load(flags, {}, job_yaml=False).train.epochs == 30


def test_an_empty_variable_counts_as_not_given() -> None:
    config = loaded({}, {"BIRDTUNE_SPLIT__FILE": "", "BIRDTUNE_TRAIN__EPOCHS": "", "BIRDTUNE_NONSENSE": ""})
    assert config == Config()


def test_variables_of_the_image_and_of_a_kubernetes_service_are_no_settings() -> None:
    environment = {
        "BIRDTUNE_IN_IMAGE": "1",
        "BIRDTUNE_SERVICE_HOST": "10.0.0.1",
        "BIRDTUNE_SERVICE_PORT": "8501",
        "BIRDTUNE_SERVICE_PORT_REST": "8501",
        "BIRDTUNE_PORT": "tcp://10.0.0.1:8501",
        "BIRDTUNE_PORT_8501_TCP": "tcp://10.0.0.1:8501",
        "BIRDTUNE_PORT_8501_TCP_ADDR": "10.0.0.1",
        "BIRDTUNE_SERVING_SERVICE_HOST": "10.0.0.2",
        "PATH": "/bin",
        "XBIRDTUNE_TRAIN__EPOCHS": "3",
    }
    assert loaded({}, environment) == Config()


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "BIRDTUNE_TRAIN__EPOCHS", "3")
    assert load({}).train.epochs == 3


# ---- complaints ---------------------------------------------------------------------------------


def test_an_unknown_variable_is_named_with_the_nearest_one() -> None:
    message = complaint({}, {"BIRDTUNE_TRAIN_EPOCHS": "3"})
    assert "BIRDTUNE_TRAIN_EPOCHS" in message and "did you mean BIRDTUNE_TRAIN__EPOCHS?" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 3}", "setting train.epoch is not known (did you mean train.epochs?)"),
        ("tran: {epochs: 3}", "did you mean train.epochs?"),
        ("1: 2", "setting 1 is not known."),
        ("train: 5", "train is a section; expected settings below it, e.g. `train: {epochs: ...}`, not 5"),
        ("train: [epochs]", "train is a section"),
        ("train: {epochs: {most: 3}}", "train.epochs in "),
        ("input: elsewhere", "`input` cannot be set here"),
        ("train.epochs: 3\ntrain: {epochs: 4}", "train.epochs is set twice"),
        ("train: {batch-size: 3, batch_size: 4}", "train.batch-size is set twice"),
    ],
)
def test_what_is_wrong_in_yaml_is_named_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    message = complaint(job_yaml(tmp_path, text))
    assert said in message
    assert str(tmp_path / "job.yaml") in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- train\n", "holds a list; expected `section:`"),
        (b"just words\n", "holds a str"),
        (b"train: {epochs: 3\n", "is not plain YAML"),
        (b"\xff\xfe\x00", "is not plain YAML"),
        (b"a: \x00\n", "is not plain YAML"),
        (b"train: {epochs: 3}\ntrain: {seed: 2}\n", "'train' is given twice in the mapping that begins in line 1"),
        (b"[" * 5000, "is not plain YAML"),
        (b"train: {epochs: !!int ''}\n", "a tag (!!...) does not fit its value"),
        (b"train: &t {epochs: 3}\nmodel: *t\n", "aliases"),
        (b"train: &t {t: *t}\n", "aliases"),
        (b"#" * 1_000_001, "1,000,001 bytes are too many for settings"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    message = complaint({"input": str(tmp_path)}, kind=InputError)
    assert said in message
    assert str(tmp_path / "job.yaml") in message


def test_yaml_with_a_python_tag_executes_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    flags = job_yaml(tmp_path, f"train: !!python/object/apply:os.mkdir ['{trap}']\n")
    assert "is not plain YAML" in complaint(flags, kind=InputError)
    assert not trap.exists()


def test_a_pipe_called_job_yaml_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.yaml")
    assert "job.yaml: is a pipe or a device" in complaint({"input": str(tmp_path)}, kind=InputError)


@pytest.mark.parametrize("text", ["train: {epochs: %s}", "%s: 3", "train: {%s: 3}", "train: %s"])
def test_what_is_long_is_told_in_part(tmp_path: Path, text: str) -> None:
    assert "x" * 300 not in complaint(job_yaml(tmp_path, text % ("x" * 1000)))
    assert "9" * 300 not in complaint({}, {"BIRDTUNE_TRAIN__EPOCHS": "9" * 100_000})


def test_yml_is_named_rather_than_passed_over(tmp_path: Path) -> None:
    (tmp_path / "job.yml").write_text("train.epochs: 3")
    assert "job.yml: is not read. Rename it to job.yaml" in complaint({"input": str(tmp_path)}, kind=InputError)


def test_a_folder_called_job_yaml_is_said_to_be_unreadable(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").mkdir()
    assert "job.yaml: cannot be read (Is a directory)" in complaint({"input": str(tmp_path)}, kind=InputError)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("train.epochs", "abc", "expected a whole number"),
        ("train.epochs", "2.5", "expected a whole number"),
        ("train.epochs", "0", "greater than or equal to 1"),
        ("train.epochs", "-3", "greater than or equal to 1"),
        ("train.learning-rate", "fast", "expected a number"),
        ("train.learning-rate", "nan", "finite number"),
        ("train.learning-rate", "inf", "finite number"),
        ("train.learning-rate", "0", "greater than 0"),
        ("train.seed", str(2**32), "less than 4294967296"),
        ("train.jit", "maybe", "expected true or false"),
        ("model.dropout", "1", "less than 1"),
        ("model.backbone", "vgish", "yamnet, birdnet, perch, custom (did you mean vggish?)"),
        ("train.precision", "float16", "expected one of auto, float32, mixed_bfloat16, mixed_float16"),
        ("export.name", "../up", "letters, digits and . _ -"),
        ("audio.max-hours", "0", "greater than 0"),
        ("model.checkpoint", "", "which is not empty"),
        ("data", "a\0b", "no NUL characters"),
    ],
)
def test_a_wrong_value_is_told_with_its_origin_range_meaning_and_default(name: str, value: str, said: str) -> None:
    message = complaint({name: value})
    option = next(option for option in options() if option.name == name)
    assert message.startswith(f"--{name} = {value!r}: ")
    assert said in message
    assert option.help in message


def test_a_wrong_value_is_told_where_it_was_given(tmp_path: Path) -> None:
    assert complaint({}, {"BIRDTUNE_TRAIN__EPOCHS": "0"}).startswith("BIRDTUNE_TRAIN__EPOCHS = '0': ")
    message = complaint(job_yaml(tmp_path, "train: {epochs: 0}"))
    assert message.startswith(f"train.epochs in {tmp_path / 'job.yaml'} = 0: ")
    assert "default 30" in message
    assert "in quotes" in complaint(job_yaml(tmp_path, "export: {name: 2024}"))


def test_a_kind_of_scores_given_as_the_head_is_told_its_new_name(tmp_path: Path) -> None:
    message = complaint(job_yaml(tmp_path, "model: {head: softmax}"))
    assert "model.head in " in message and "--model.output softmax" in message and "linear" in message


def test_hidden_units_of_a_head_without_a_hidden_layer_are_refused() -> None:
    assert "--model.head mlp" in complaint({"model.hidden-units": "100"})
    units = [Config(model=ModelSettings(**given)).model.head_units for given in ({}, {"head": "mlp"})]
    assert units == [0, 100]


def test_several_hidden_layers_are_given_by_their_widths(tmp_path: Path) -> None:
    for given, units in (("64, 32", "64,32"), ("64", 64), ("007", 7)):
        assert load({"model.head": "mlp", "model.hidden-units": given}, {}, job_yaml=False).model.head_units == units
    yaml = job_yaml(tmp_path, "model: {head: mlp, hidden_units: 64}")
    assert load(yaml, {}).model.head_units == 64
    for given in ("0", "64,", "64,x", "64;32", "-1", "65537"):
        assert "one for each hidden layer" in complaint({"model.head": "mlp", "model.hidden-units": given})
    assert "has one hidden layer" in complaint({"model.head": "attention", "model.hidden-units": "64,32"})


def test_several_wrong_values_are_told_together() -> None:
    message = complaint({"train.epochs": "0", "model.head": "three"})
    assert "--train.epochs" in message and "--model.head" in message


def test_control_characters_of_a_value_are_not_printed() -> None:
    assert "\x1b" not in complaint({"train.epochs": "\x1b[2J"})
    assert "\x1b" not in complaint({}, {"BIRDTUNE_\x1b[2J": "1"})


def test_fractions_that_leave_nothing_for_training_are_refused() -> None:
    message = complaint({"split.val-fraction": "0.5", "split.test-fraction": "0.5"})
    assert "0.5" in message and "nothing for training" in message
    assert loaded({"split.val-fraction": "0", "split.test-fraction": "0.9"}).split.test_fraction == 0.9


@pytest.mark.parametrize("output", ["data", "data/out", "link/out", "data/../data/x"])
def test_output_inside_the_data_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    message = complaint({"input": str(tmp_path), "output": str(tmp_path / output)})
    assert "lies in the data folder" in message


@pytest.mark.parametrize("output", ["", "out", "data-out"])
def test_output_beside_or_above_the_data_is_fine(tmp_path: Path, output: str) -> None:
    assert loaded({"input": str(tmp_path), "output": str(tmp_path / output)}).output == tmp_path / output


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("train.epoch", " (did you mean train.epochs?)"), ("epochs", " (did you mean train.epochs?)"), ("zzzz", "")],
)
def test_the_nearest_name_is_offered_only_when_it_is_near(typed: str, offered: str) -> None:
    assert nearest(typed, [option.name for option in options()]) == offered


# ---- the checkpoint's place ---------------------------------------------------------------------


def test_the_checkpoint_is_found_in_its_usual_place_in_either_version(tmp_path: Path) -> None:
    config = loaded({"input": str(tmp_path)})
    (tmp_path / "vggish_model.ckpt.index").touch()
    assert checkpoint_path(config) == tmp_path / "vggish_model.ckpt"
    (tmp_path / "vggish_model.ckpt.index").rename(tmp_path / "vggish_model.ckpt")
    assert checkpoint_path(config) == tmp_path / "vggish_model.ckpt"


def test_a_missing_checkpoint_is_told_with_where_to_get_it_and_the_way_without(tmp_path: Path) -> None:
    for flags, place in (
        ({"input": str(tmp_path)}, tmp_path / "vggish_model.ckpt"),
        ({"model.checkpoint": str(tmp_path / "other.ckpt")}, tmp_path / "other.ckpt"),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoint_path(loaded(flags))
        message = str(caught.value)
        assert message.startswith(f"{place}: ")
        assert "https://storage.googleapis.com/audioset/vggish_model.ckpt" in message
        assert "--model.checkpoint none" in message


def test_each_backbone_can_be_chosen_and_has_names_of_its_own_for_its_weights(tmp_path: Path) -> None:
    (chosen,) = [option for option in options() if option.name == "model.backbone"]
    assert chosen.type == "|".join([*BACKBONES, *files.NAMES])
    config = loaded({"input": str(tmp_path), "model.backbone": "yamnet"})
    (tmp_path / "vggish_model.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"yamnet\.h5 or .*yamnet\.tflite: there is no YAMNet checkpoint"):
        checkpoint_path(config)
    for name in ("yamnet.tflite", "yamnet.h5"):
        (tmp_path / name).touch()
        assert checkpoint_path(config) == tmp_path / name


def test_none_trains_from_scratch_even_beside_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "vggish_model.ckpt").touch()
    assert checkpoint_path(loaded({"input": str(tmp_path), "model.checkpoint": "none"})) is None


def test_a_named_checkpoint_may_be_a_file_a_prefix_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "one.ckpt").touch()
    (tmp_path / "two.ckpt.index").touch()
    for name in ("one.ckpt", "two.ckpt", "."):
        assert checkpoint_path(loaded({"model.checkpoint": str(tmp_path / name)})) == tmp_path / name


def test_a_setting_that_was_renamed_is_refused_with_its_new_name(tmp_path: Path) -> None:
    assert "train.patience is called train.early-stopping-patience now" in complaint(
        job_yaml(tmp_path, "train: {patience: 3}")
    )
    with pytest.raises(SettingsError, match="BIRDTUNE_SOUND__RESAMPLER is called BIRDTUNE_AUDIO__RESAMPLER now"):
        load({}, {"BIRDTUNE_SOUND__RESAMPLER": "soxr"}, job_yaml=False)
    assert renamed("--from-version") == "--init-from"
    assert renamed("--train.epochs") is None
