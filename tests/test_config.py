"""Settings: dotted names, types, refusals and the command line that tyro makes of them."""

import dataclasses
import math
import re

import pytest
import tyro

from kiloseg.config import Config, Data, Loss, Model, Negatives, Optimizer, Trainer
from kiloseg.overrides import differences, flatten, from_flat, head_name, head_overrides, override

GROUPS = {"data": Data, "model": Model, "loss": Loss, "optimizer": Optimizer, "trainer": Trainer}

NAMES = [
    *(f"{group}.{item.name}" for group, kind in GROUPS.items() for item in dataclasses.fields(kind) if group != "loss"),
    "loss.negatives.kind",
    "loss.negatives.count",
    *(f"loss.{item.name}" for item in dataclasses.fields(Loss) if item.name != "negatives"),
]
"""Every setting, walked by hand and not by `flatten`."""

IMPOSSIBLE = [
    ("data.num_classes", 1, "data.num_classes = 1: expected 2 to 65,535, or None for all"),
    ("data.num_classes", 65536, "data.num_classes = 65536: expected 2 to 65,535"),
    ("data.crop", 0, "data.crop = 0: expected a positive multiple of 32"),
    ("data.crop", -32, "data.crop = -32: expected a positive multiple of 32"),
    ("data.crop", 48, "data.crop = 48: expected a positive multiple of 32"),
    ("data.scale_min", 0.0, "data.scale_min = 0.0: expected a factor above 0"),
    ("data.scale_max", 0.4, "data.scale_max = 0.4: expected at least scale_min = 0.5"),
    ("data.flip", -0.1, "data.flip = -0.1: expected a probability from 0 to 1"),
    ("data.flip", 1.1, "data.flip = 1.1: expected a probability from 0 to 1"),
    ("data.jitter", -0.1, "data.jitter = -0.1: expected a strength from 0 to 1"),
    ("data.jitter", 1.5, "data.jitter = 1.5: expected a strength from 0 to 1"),
    ("data.repeat_threshold", -0.1, "data.repeat_threshold = -0.1: expected a share from 0 to 1"),
    ("data.repeat_threshold", 1.1, "data.repeat_threshold = 1.1: expected a share from 0 to 1"),
    ("data.class_crops", -0.1, "data.class_crops = -0.1: expected a probability from 0 to 1"),
    ("data.class_crops", 1.1, "data.class_crops = 1.1: expected a probability from 0 to 1"),
    ("data.class_crops_exponent", -0.5, "data.class_crops_exponent = -0.5: expected 0 or more"),
    ("data.loader_workers", -1, "data.loader_workers = -1: expected 0 or more processes"),
    ("data.max_bad_samples", -1, "data.max_bad_samples = -1: expected 0 or more samples"),
    ("data.cache_gib", 0.0, "data.cache_gib = 0.0: expected more than 0 GiB"),
    ("data.shuffle_buffer", 0, "data.shuffle_buffer = 0: expected at least 1 sample"),
    ("data.val_batch_size", 0, "data.val_batch_size = 0: expected at least 1 image"),
    ("data.val_samples", 0, "data.val_samples = 0: expected at least 1, or None for all"),
    *(
        (
            "data.val_splits",
            splits,
            f"data.val_splits = {splits!r}: expected 'val' first, then any other splits except train",
        )
        for splits in ((), ("val_style",), ("val", "train"), ("val", "val"))
    ),
    ("model.embed_dim", 1, "model.embed_dim = 1: expected at least 2"),
    ("model.prototypes", 0, "model.prototypes = 0: expected at least 1 prototype per class"),
    ("model.input_scale", 0, "model.input_scale = 0: expected one of 1, 2, 4"),
    ("model.input_scale", 3, "model.input_scale = 3: expected one of 1, 2, 4"),
    ("model.decoder_dropout", -0.1, "model.decoder_dropout = -0.1: expected a probability from 0 to below 1"),
    ("model.decoder_dropout", 1.0, "model.decoder_dropout = 1.0: expected a probability from 0 to below 1"),
    ("model.decoder_dropout", math.nan, "model.decoder_dropout = nan: expected a probability from 0 to below 1"),
    ("model.weights", "", "model.weights = '': expected none, hub, package, a file or a checkpoint"),
    ("loss.class_weights", "", "loss.class_weights = '': expected none, inverse, sqrt or a CSV file"),
    ("loss.negatives.count", 0, "negatives.count = 0: expected at least 1 negative per pixel"),
    ("loss.temperature", 0.0, "loss.temperature = 0.0: expected a factor above 0"),
    ("loss.temperature", math.nan, "loss.temperature = nan: expected a factor above 0"),
    ("loss.separation_sample", 0, "loss.separation_sample = 0: expected at least 1, or None for all"),
    ("loss.separation_weight", -1.0, "loss.separation_weight = -1.0: expected 0 or more"),
    ("loss.separation_margin", -0.1, "loss.separation_margin = -0.1: expected 0 to 2"),
    ("loss.separation_margin", 2.1, "loss.separation_margin = 2.1: expected 0 to 2"),
    ("loss.prototype_momentum", -0.1, "loss.prototype_momentum = -0.1: expected 0 to 1"),
    ("loss.prototype_momentum", 1.1, "loss.prototype_momentum = 1.1: expected 0 to 1"),
    ("loss.prototype_momentum", math.nan, "loss.prototype_momentum = nan: expected 0 to 1"),
    ("loss.prototype_contrast", -1.0, "loss.prototype_contrast = -1.0: expected a weight of 0 or more"),
    ("loss.prototype_distance", -1.0, "loss.prototype_distance = -1.0: expected a weight of 0 or more"),
    ("optimizer.lr", 0.0, "optimizer.lr = 0.0: expected a rate above 0"),
    ("optimizer.lr", math.nan, "optimizer.lr = nan: expected a rate above 0"),
    ("optimizer.backbone_lr_factor", -0.1, "optimizer.backbone_lr_factor = -0.1: expected 0 or more"),
    ("optimizer.momentum", -0.1, "optimizer.momentum = -0.1: expected 0 to below 1"),
    ("optimizer.momentum", 1.0, "optimizer.momentum = 1.0: expected 0 to below 1"),
    ("optimizer.weight_decay", -1e-4, "optimizer.weight_decay = -0.0001: expected 0 or more"),
    ("optimizer.warmup_steps", -1, "optimizer.warmup_steps = -1: expected 0 or more"),
    ("optimizer.warmup_steps", 1000, "optimizer.warmup_steps = 1000: expected less than trainer.steps = 1000"),
    ("optimizer.poly_power", 0.0, "optimizer.poly_power = 0.0: expected an exponent above 0"),
    ("optimizer.clip_norm", -1.0, "optimizer.clip_norm = -1.0: expected 0 or more"),
    ("trainer.steps", 0, "trainer.steps = 0: expected at least 1 step"),
    ("trainer.batch_size", 0, "trainer.batch_size = 0: expected at least 1 image"),
    ("trainer.micro_batch_size", 0, "trainer.micro_batch_size = 0: expected at least 1 image, or None for all at once"),
    ("trainer.patience", -1, "trainer.patience = -1: expected 0 or more validations"),
    ("trainer.patience", 1, "trainer.patience = 1: expected 0 or more validations, and trainer.validate_every > 0"),
    ("trainer.validate_every", -1, "trainer.validate_every = -1: expected 0 or more steps"),
    ("trainer.report_every", 0, "trainer.report_every = 0: expected at least 1 step"),
    ("trainer.keep_checkpoints", 0, "trainer.keep_checkpoints = 0: expected at least 1"),
]

WORDS = [
    ("data.other_classes", Data, "data.other_classes = 'odd': expected one of background, ignore"),
    ("model.head", Model, "model.head = 'odd': expected one of embedding, dense, official, prototype"),
    ("loss.negatives.kind", Negatives, "negatives.kind = 'odd': expected one of nearest, random, mixed, all"),
    ("loss.logit", Loss, "loss.logit = 'odd': expected one of distance, cosine"),
    ("optimizer.name", Optimizer, "optimizer.name = 'odd': expected one of sgd, adamw"),
    ("trainer.precision", Trainer, "trainer.precision = 'odd': expected one of auto, fp32, bf16"),
]

ANYTHING_GOES = {
    "data.path",  # checked where it is opened
    "model.arch",
    "model.backbone",
    "model.normalize_early",
    "trainer.seed",
    "trainer.channels_last",
    "trainer.checkpoint_activations",
    "trainer.compile",
    "trainer.output",
    "trainer.progress",
}

BOUNDARIES = [
    ("data.num_classes", 9),
    ("data.num_classes", 65535),
    ("data.num_classes", None),
    ("data.crop", 32),
    ("data.scale_max", 0.5),
    ("data.flip", 0.0),
    ("data.flip", 1.0),
    ("data.jitter", 0.0),
    ("data.jitter", 1.0),
    ("data.repeat_threshold", 0.0),
    ("data.repeat_threshold", 1.0),
    ("data.class_crops", 0.0),
    ("data.class_crops", 1.0),
    ("data.loader_workers", 0),
    ("data.cache_gib", 0.001),
    ("data.max_bad_samples", 0),
    ("data.shuffle_buffer", 1),
    ("data.val_batch_size", 1),
    ("data.val_samples", 1),
    ("data.val_samples", None),
    ("data.val_splits", ("val", "val_style")),
    ("model.embed_dim", 2),
    ("model.prototypes", 1),
    ("model.input_scale", 4),
    ("model.decoder_dropout", 0.0),
    ("model.decoder_dropout", None),
    ("loss.negatives.count", 1),
    ("loss.separation_sample", 1),
    ("loss.separation_sample", None),
    ("loss.separation_weight", 0.0),
    ("loss.separation_margin", 0.0),
    ("loss.separation_margin", 2.0),
    ("loss.prototype_momentum", 0.0),
    ("loss.prototype_momentum", 1.0),
    ("loss.prototype_contrast", 0.0),
    ("loss.prototype_distance", 0.0),
    ("optimizer.backbone_lr_factor", 0.0),
    ("optimizer.momentum", 0.0),
    ("optimizer.weight_decay", 0.0),
    ("optimizer.warmup_steps", 999),
    ("optimizer.clip_norm", 0.0),
    ("trainer.steps", 1),
    ("trainer.batch_size", 1),
    ("trainer.micro_batch_size", 1),
    ("trainer.micro_batch_size", None),
    ("trainer.patience", 0),
    ("trainer.validate_every", 0),
    ("trainer.report_every", 1),
    ("trainer.keep_checkpoints", 1),
]


def test_flatten_names_every_setting_with_its_value():
    flat = flatten(Config())
    assert sorted(flat) == sorted(NAMES)
    for name, value in flat.items():
        owner = Config()
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner == value, name
    assert flat["loss.negatives.count"] == 8
    assert flat["data.num_classes"] is None


def test_override_changes_these_settings_and_no_other():
    before = Config()
    changes = {
        "model.embed_dim": 7,
        "loss.negatives.kind": "mixed",
        "data.path": "elsewhere",
        "trainer.progress": False,
    }
    after = override(before, changes)
    assert after.model.embed_dim == 7
    assert after.loss.negatives == Negatives(kind="mixed")
    assert {name for name in NAMES if flatten(after)[name] != flatten(before)[name]} == set(changes)
    assert before == Config(), "the given config stays as it was"


def test_overrides_add_up():
    first = {"model.embed_dim": 7, "loss.negatives.count": 3, "loss.temperature": 5.0}
    second = {"model.arch": "unet", "loss.negatives.kind": "random", "loss.logit": "cosine"}
    assert flatten(override(override(Config(), first), second)) == flatten(Config()) | first | second


def test_override_of_nothing_is_the_same_config():
    assert override(Config(), {}) == Config()


@pytest.mark.parametrize(
    "changes",
    [
        {"data.scale_min": 3.0, "data.scale_max": 4.0},
        {"data.scale_max": 0.2, "data.scale_min": 0.1},
        {"optimizer.warmup_steps": 1500, "trainer.steps": 2000},
        {"loss.negatives.count": 50, "data.num_classes": 51},
        {"data.num_classes": 3, "loss.negatives.count": 2},
        {"data.num_classes": 3, "loss.negatives.count": 2, "loss.negatives.kind": "mixed"},
    ],
)
def test_settings_that_limit_each_other_change_at_once(changes):
    base = override(Config(), {"data.num_classes": 9, "loss.negatives.kind": "nearest"})
    first = next(iter(changes))
    with pytest.raises(ValueError, match=r"expected .* = |negatives\.count = "):
        override(base, {first: changes[first]})
    flat = flatten(override(base, changes))
    assert {name: flat[name] for name in changes} == changes


def test_part_of_a_config_can_be_overridden():
    assert override(Loss(), {"negatives.count": 3}) == Loss(negatives=Negatives(count=3))


@pytest.mark.parametrize("name", ["model.embed_dims", "embed_dim", "", "loss", "loss.negatives", "data.path.x", "Data"])
def test_unknown_name_lists_the_settings_there_are(name):
    with pytest.raises(ValueError, match=f"no setting is called '{re.escape(name)}'; the settings are: ") as caught:
        override(Config(), {"model.embed_dim": 5, name: 1})
    listed = str(caught.value).partition("the settings are: ")[2].split(", ")
    assert sorted(listed) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trainer.steps", "5", "trainer.steps = '5' is a str: expected int"),
        ("trainer.steps", 5.0, "trainer.steps = 5.0 is a float: expected int"),
        ("trainer.steps", True, "trainer.steps = True is a bool: expected int"),
        ("trainer.steps", None, "trainer.steps = None is a NoneType: expected int"),
        ("data.num_classes", "all", "data.num_classes = 'all' is a str: expected int | None"),
        ("data.num_classes", 5.0, "data.num_classes = 5.0 is a float: expected int | None"),
        ("data.num_classes", True, "data.num_classes = True is a bool: expected int | None"),
        ("optimizer.lr", "0.1", "optimizer.lr = '0.1' is a str: expected float"),
        ("optimizer.lr", True, "optimizer.lr = True is a bool: expected float"),
        ("optimizer.lr", None, "optimizer.lr = None is a NoneType: expected float"),
        ("trainer.progress", 1, "trainer.progress = 1 is a int: expected bool"),
        ("trainer.progress", "no", "trainer.progress = 'no' is a str: expected bool"),
        ("model.arch", None, "model.arch = None is a NoneType: expected str"),
        ("data.path", 5, "data.path = 5 is a int: expected str"),
        ("model.head", "Dense", "model.head = 'Dense': expected one of embedding, dense"),
        ("loss.negatives.kind", None, "loss.negatives.kind = None: expected one of nearest, random, mixed, all"),
        ("optimizer.name", ["sgd"], "optimizer.name = ['sgd']: expected one of sgd, adamw"),
    ],
)
def test_wrong_type_is_named(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(Config(), {name: value})


def test_whole_number_for_a_float_and_none_where_it_means_something():
    config = override(Config(), {"optimizer.lr": 1, "data.num_classes": 20, "data.val_samples": 7})
    assert (config.optimizer.lr, config.data.num_classes, config.data.val_samples) == (1, 20, 7)
    config = override(config, {"data.num_classes": None, "data.val_samples": None})
    assert (config.data.num_classes, config.data.val_samples) == (None, None)


def test_round_trip_through_flat_names():
    config = override(Config(), {"loss.negatives.kind": "mixed", "optimizer.warmup_steps": 9, "data.num_classes": 40})
    assert from_flat(flatten(config)) == config
    assert list(flatten(from_flat(flatten(config)))) == list(flatten(config))
    assert from_flat({}) == Config()
    assert from_flat({"loss.negatives.kind": "all"}).loss.negatives.kind == "all"
    with pytest.raises(ValueError, match="no setting is called 'removed'"):
        from_flat({**flatten(config), "removed": 1})


@pytest.mark.parametrize("part", ["", "data", "model", "loss", "loss.negatives", "optimizer", "trainer"])
def test_frozen(part):
    owner = Config()
    for name in filter(None, part.split(".")):
        owner = getattr(owner, name)
    for item in dataclasses.fields(owner):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, item.name, getattr(owner, item.name))


def test_a_compiled_network_is_not_recomputed_as_well():
    message = "trainer.compile = True: expected False with trainer.checkpoint_activations = True"
    with pytest.raises(ValueError, match=re.escape(message)):
        Trainer(compile=True, checkpoint_activations=True)


@pytest.mark.parametrize(("name", "value", "message"), IMPOSSIBLE)
def test_impossible_value_is_refused_with_what_was_expected(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(Config(), {name: value})


@pytest.mark.parametrize(("name", "kind", "message"), WORDS)
def test_unknown_word_is_refused_however_it_is_given(name, kind, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**{name.rpartition(".")[2]: "odd"})
    with pytest.raises(ValueError, match=re.escape(message)):
        override(Config(), {name: "odd"})


@pytest.mark.parametrize(("name", "value"), BOUNDARIES)
def test_values_at_the_boundary_are_taken(name, value):
    assert flatten(override(Config(), {name: value}))[name] == value


def test_the_tables_here_know_every_setting():
    assert {name for name, *_ in IMPOSSIBLE} | {name for name, *_ in WORDS} | ANYTHING_GOES == set(NAMES)


def test_mixed_needs_two_negatives_to_halve():
    with pytest.raises(ValueError, match=r"negatives.count = 1: expected at least 2 for kind 'mixed'"):
        override(Config(), {"loss.negatives.kind": "mixed", "loss.negatives.count": 1})


@pytest.mark.parametrize("kind", ["nearest", "random", "mixed"])
def test_more_negatives_than_other_classes_names_the_remedy(kind):
    changes = {"data.num_classes": 8, "loss.negatives.count": 8, "loss.negatives.kind": kind}
    message = (
        r"loss.negatives.count = 8: 8 classes leave a pixel only 7 others; "
        r"lower loss.negatives.count to 7 or use loss.negatives.kind = 'all'"
    )
    with pytest.raises(ValueError, match=message):
        override(Config(), changes)
    for remedy in ({"loss.negatives.count": 7}, {"loss.negatives.kind": "all"}, {"model.head": "dense"}):
        override(Config(), changes | remedy)


FORMER = {"loss.negatives.log_q": False, "loss.sample_every": 1, "model.learned_temperature": False}


def test_settings_that_were_removed_can_be_read_at_their_former_defaults():
    assert from_flat(FORMER) == Config()
    assert differences(flatten(Config()), flatten(Config()) | FORMER) == ""


@pytest.mark.parametrize(
    ("name", "value"), [("loss.negatives.log_q", True), ("loss.sample_every", 4), ("model.learned_temperature", True)]
)
def test_settings_that_were_removed_are_refused_at_other_values(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}: this setting was removed, and only its former default"):
        from_flat(FORMER | {name: value})
    assert f"{name} was {value}" in differences(flatten(Config()), flatten(Config()) | FORMER | {name: value})


def test_settings_that_were_renamed_are_read_under_their_former_names():
    early = override(Config(), {"model.normalize_early": True})
    former = {name.replace("normalize", "normalise"): value for name, value in flatten(early).items()}
    assert "model.normalise_early" in former and "model.normalize_early" not in former
    assert from_flat(former) == early
    assert override(Config(), {"model.normalise_early": True}) == early, "a trial of an older study"
    assert differences(flatten(early), former) == ""
    assert "model.normalize_early was True, is False" in differences(flatten(Config()), former)


def test_warmup_must_leave_a_step():
    override(Config(), {"trainer.steps": 10, "optimizer.warmup_steps": 9})
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps = 10: expected less than trainer.steps = 10"):
        override(Config(), {"trainer.steps": 10, "optimizer.warmup_steps": 10})
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps = 50: expected less than trainer.steps = 20"):
        override(override(Config(), {"optimizer.warmup_steps": 50}), {"trainer.steps": 20})


def test_command_line_sets_nested_fields():
    arguments = "--model.embed-dim 7 --loss.negatives.kind mixed --data.num-classes 12 --trainer.no-progress"
    parsed = tyro.cli(Config, args=[*arguments.split(), "--optimizer.lr", "3e-4", "--data.path", "some where"])
    expected = {
        "model.embed_dim": 7,
        "loss.negatives.kind": "mixed",
        "data.num_classes": 12,
        "trainer.progress": False,
        "optimizer.lr": 3e-4,
        "data.path": "some where",
    }
    assert flatten(parsed) == flatten(Config()) | expected
    assert tyro.cli(Config, args=["--data.num-classes", "None"], default=parsed).data.num_classes is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("--loss.negatives.kind odd", "mixed"), ("--trainer.steps 1.5", "trainer.steps"), ("--embed 3", "embed")],
)
def test_command_line_refuses_and_names(arguments, named, capsys):
    with pytest.raises(SystemExit) as caught:
        tyro.cli(Config, args=arguments.split())
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_help_names_every_setting_and_says_what_it_is(capsys):
    with pytest.raises(SystemExit) as caught:
        tyro.cli(Config, args=["--help"])
    assert caught.value.code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    options = set(re.findall(r"--[a-z][a-z.-]*[a-z]", plain))
    assert {"--" + name.replace("_", "-") for name in NAMES} <= options
    assert "multiple of 32" in " ".join(plain.split())


@pytest.mark.parametrize(
    "name", ["data.scale_max", "loss.temperature", "loss.separation_weight", "optimizer.lr", "optimizer.weight_decay"]
)
def test_infinity_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} = inf: expected"):
        override(Config(), {name: float("inf")})


def test_heads_as_command_lines_name_them():
    assert override(Config(), head_overrides("dense")).model.head == "dense"
    assert override(Config(), head_overrides("embedding")).loss == Config().loss
    assert override(Config(), head_overrides("embedding:mixed")).loss.negatives == Negatives(kind="mixed")
    for head in ("dense", "embedding:all", "embedding:nearest", "official"):
        assert head_name(override(Config(), head_overrides(head))) == head
    with pytest.raises(ValueError, match="expected one of embedding, dense"):
        override(Config(), head_overrides("odd"))
