"""birdtune.tuning.space: what tuning searches, and what it leaves alone."""

from typing import Any

import pytest

from birdtune import cli
from birdtune.config import Config, options
from birdtune.errors import SettingsError
from birdtune.models.registry import BACKBONES
from birdtune.runtime import configure
from birdtune.tuning.space import TABLES, Space, defaults, effective, run_flags, space_of, with_settings


def given(**settings: Any) -> Config:
    return configure.load(
        {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()},
        {},
        job_yaml=False,
    )


def space(config: Config, *, recordings: tuple[int, ...] = (9, 40), background: bool = False) -> Space:
    points = BACKBONES[config.model.backbone].freeze_points
    return space_of(config, freeze_points=points, recordings=recordings, has_background=background)


def names(found: Space) -> list[str]:
    return [row.name for row in found.dimensions]


@pytest.mark.parametrize("on", TABLES)
def test_every_range_holds_the_default_and_both_its_ends_may_be_set(on: str) -> None:
    known = {option.name for option in options()}
    config = given(tune__on=on)
    found = space(config, background=True)
    usual = defaults(found, config)
    assert {row.name for row in TABLES[on]} <= known
    assert len(found.dimensions) >= 10
    for row in found.dimensions:
        assert row.holds(usual[row.name]), row.name
        for value in row.choices or (row.low, row.high):
            settings = effective({**usual, row.name: int(value) if row.whole else value}, config)
            with_settings(config, settings)  # raises where it may not be


def test_what_is_set_is_not_searched_even_at_its_default() -> None:
    config = given(train__learning_rate="1e-4", model__dropout=0.3)
    assert config.train.learning_rate == Config().train.learning_rate
    found = space(config)
    assert not {"train.learning-rate", "model.dropout"} & set(names(found))
    assert found.left_out["train.learning-rate"] == "set to 0.0001"
    assert "train.epochs" in names(found)


def test_what_would_change_nothing_is_not_searched_and_the_reason_is_given() -> None:
    assert {"train.sampling-power", "train.class-weight-alpha"} <= set(names(space(given())))
    alike = space(given(), recordings=(10, 14))
    assert "alike" in alike.left_out["train.sampling-power"] and "train.sampling-power" not in names(alike)
    assert "model.hidden-units" in space(given(model__head="linear")).left_out
    frozen = space(given(tune__on="training", model__freeze="all-but-head"))
    assert {"train.layer-decay", "train.head-warmup-epochs"} <= set(frozen.left_out)
    assert "augment.background" in space(given(tune__on="training")).left_out
    assert "augment.background" in names(space(given(tune__on="training"), background=True))


def test_every_head_is_offered_where_windows_are_augmented() -> None:
    (head,) = (row for row in space(given(augment__mixup=0.2)).dimensions if row.name == "model.head")
    assert head.choices == ("linear", "mlp", "attention", "prototype")
    attention = space(given(tune__on="training", model__head="attention"))
    assert "augment.mixup" in names(attention)


def test_where_labels_are_shared_the_attention_head_and_mixup_are_left_out_and_the_reason_is_given() -> None:
    shared = space(given(train__label_refinement=True))
    (head,) = (row for row in shared.dimensions if row.name == "model.head")
    assert head.choices == ("linear", "mlp", "prototype")
    assert shared.left_out["model.head attention"] == "not with train.label-refinement true"
    training = space(given(train__label_refinement=True, tune__on="training"))
    assert "augment.gain-db" in names(training) and "augment.mixup" not in names(training)
    assert training.left_out["augment.mixup"] == "not with train.label-refinement true"
    plain = space(given(tune__on="training"))
    assert "augment.mixup" in names(plain) and "model.head attention" not in plain.left_out


def test_no_trial_is_shorter_than_the_epochs_in_which_the_head_learns_alone() -> None:
    (epochs,) = (row for row in space(given(train__head_warmup_epochs=6)).dimensions if row.name == "train.epochs")
    assert (epochs.low, epochs.high) == (7, 60)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("train.epochs=5..6", {"train__head_warmup_epochs": 6, "model__freeze": "all-but-head"}),
        ("model.head=linear|attention", {"train__label_refinement": True}),
        ("augment.mixup", {"train__label_refinement": True, "tune__on": "training"}),
    ],
)
def test_a_range_that_fights_a_setting_is_refused_by_both_their_names(
    text: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError) as raised:
        space(given(tune__space=text, **settings))
    name, value = next(iter(settings.items()))
    flag = f"--{name.replace('__', '.').replace('_', '-')}"
    told = str(raised.value)
    assert (
        f"{text.partition('=')[0]} " in told
        and f"beside {flag} {value}" in told
        and f"or change {flag}." in told
    )
    assert "beside --model.freeze" not in told


@pytest.mark.parametrize("head", ["linear", "mlp", "attention", "sed-attention", "prototype", "gru"])
@pytest.mark.parametrize(
    "settings",
    [
        {"model__head": "mlp", "model__hidden_units": 64, "augment__gain_db": 6, "tune__trials": 3},
        {"model__head": "mlp", "model__hidden_units": 64, "train__label_refinement": True},
    ],
)
def test_run_takes_the_flags_that_are_printed_for_any_head(settings: dict[str, Any], head: str) -> None:
    flags, gone = run_flags(given(**settings), {"model.head": head})
    _, found = cli.parse("run", flags)
    taken = configure.load(found, {}, job_yaml=False)
    assert taken.model.head == head and taken.tune == Config().tune
    # Nothing goes but what the head does not take, and what goes is named.
    has_hidden = head in ("mlp", "attention", "sed-attention")
    assert taken.model.hidden_units == (64 if has_hidden else None)
    assert taken.augment.gain_db == settings.get("augment__gain_db", 0.0)
    by_recording = head in ("attention", "sed-attention", "gru")
    assert taken.train.label_refinement == ("train__label_refinement" in settings and not by_recording)
    refined = by_recording and "train__label_refinement" in settings
    assert ("model.hidden-units" in gone, head in gone) == (not has_hidden, not has_hidden or refined)


def test_the_space_can_be_narrowed_and_its_ranges_changed() -> None:
    found = space(given(tune__space="model.head=linear|mlp, train.epochs=10..500 train.learning_rate"))
    head, epochs, rate = found.dimensions
    assert head.choices == ("linear", "mlp")
    assert (epochs.low, epochs.high, epochs.whole) == (10, 500, True)
    assert (rate.low, rate.high) == (1e-5, 1e-2)
    assert found.left_out["model.dropout"] == "not in tune.space"
    (some,) = space(given(tune__space="train.epochs=10|20|40")).dimensions
    assert some.choices == (10, 20, 40)


@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        ("train.batch-sise=1..2", {}, "cannot be searched on embeddings"),
        ("train.learnin-rate", {}, "did you mean train.learning-rate"),
        ("augment.mixup", {}, "cannot be searched on embeddings"),
        ("train.epochs=5", {}, "is not understood"),
        ("train.epochs=9..5", {}, "is not understood"),
        ("train.epochs=a..b", {}, "is not understood"),
        ("train.learning-rate=0..1e-3", {}, "above 0"),
        ("model.head=linear", {}, "is not understood"),
        ("model.head=linear|deep", {}, "'linear', 'mlp', .*'lstm' or 'self-attention'"),
        ("model.dropout=0..3", {}, "less than 1"),
        ("train.epochs train.epochs", {}, "stands twice"),
        (",", {}, "names no setting"),
        ("train.epochs", {"train__epochs": 5}, "which is set to 5"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_by_name(
    text: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        space(given(tune__space=text, **settings))


def test_where_everything_is_set_there_is_nothing_to_tune() -> None:
    every = {row.name.replace(".", "__").replace("-", "_"): "0" for row in TABLES["embeddings"]}
    every |= {
        "model__head": "mlp",
        "model__hidden_units": "9",
        "train__learning_rate": "1",
        "train__epochs": "3",
    }
    del every["model__prototypes"]  # which a head with a hidden layer has none of
    with pytest.raises(SettingsError, match=r"is set: model\.head"):
        space(given(**every))


def test_only_what_means_something_together_is_set() -> None:
    values: dict[str, Any] = {"model.head": "linear", "model.hidden-units": 64, "train.epochs": 5}
    assert effective(values, given()) == {"model.head": "linear", "train.epochs": 5}
    assert "model.hidden-units" in effective({**values, "model.head": "mlp"}, given())
    both = {"model.head": "prototype", "model.hidden-units": 64, "model.prototypes": 3}
    assert effective(both, given()) == {"model.head": "prototype", "model.prototypes": 3}
    late = effective({"train.head-warmup-epochs": 5, "train.epochs": 5}, given())
    assert late["train.head-warmup-epochs"] == 4
    frozen = effective(
        {"model.freeze": "all-but-head", "train.layer-decay": 0.5, "train.head-warmup-epochs": 2}, given()
    )
    assert frozen == {"model.freeze": "all-but-head"}


def test_trials_and_minutes_need_no_section_on_the_command_line() -> None:
    _, found = cli.parse("tune", ["--trials", "7", "--minutes=2"])
    config = configure.load(found, {}, job_yaml=False)
    assert (config.tune.trials, config.tune.minutes) == (7, 2.0)
