"""What a search varies: conditions, ranges that fit the number of classes, and flags that are checked before anything runs."""

import pickle
from collections import Counter

import optuna
import pytest

from kiloseg.config import Config
from kiloseg.overrides import flatten, override
from kiloseg.tuning.searcher import BudgetedSearcher
from kiloseg.tuning.space import Space, choice, log, negatives, parse_dimension, uniform

KINDS = ("all", "nearest", "random", "mixed")
BASE = Config()


def asked(space, count, first=()):
    """The settings of so many trials, as Tune's searcher chooses them."""
    searcher = BudgetedSearcher(space, first, optuna.samplers.RandomSampler(seed=0))
    return [searcher.suggest(str(number)) for number in range(count)]


@pytest.mark.parametrize("num_classes", [2, 3, 40, 100_000])
def test_negatives_fit_any_number_of_classes(num_classes):
    # The base itself may have more negatives than there are classes, as long as its kind has none.
    known = num_classes if num_classes < 65536 else None  # as many as files hold
    base = override(BASE, {"data.num_classes": known, "loss.negatives.kind": "all", "loss.negatives.count": 8})
    space = Space(base, negatives(KINDS, num_classes))
    space.check(num_classes)
    trials = asked(space, 200)
    for values in trials:
        override(BASE, values).loss.negatives.check_classes(num_classes)
        assert ("loss.negatives.count" in values) == (values["loss.negatives.kind"] != "all")
    kinds = {values["loss.negatives.kind"] for values in trials}
    assert kinds == ({"all", "nearest", "random"} if num_classes == 2 else set(KINDS))
    counts = [values["loss.negatives.count"] for values in trials if "loss.negatives.count" in values]
    assert max(counts) <= num_classes - 1
    if num_classes == 100_000:
        assert max(counts) > 30_000
        digits = Counter(len(str(count)) for count in counts)
        assert min(digits[size] for size in (1, 2, 3, 4, 5)) > 10, "on a logarithmic scale"


def test_no_kind_that_works_is_refused():
    with pytest.raises(ValueError, match=r"loss\.negatives\.kind = mixed: expected one that works with 2 classes"):
        negatives(["mixed"], 2)


def test_a_searched_head_brings_what_it_requires_and_has_no_settings_of_others():
    space = Space(BASE, negatives(KINDS, 10)).with_dimensions(choice("model.head", ["embedding", "dense", "official"]))
    space.check(10)
    seen = Counter()
    for values in asked(space, 60):
        config = override(BASE, values)
        seen[config.model.head] += 1
        if config.model.head == "dense":
            assert not any(name.startswith("loss.") for name in values)
        if config.model.head == "official":
            assert (config.loss.negatives.kind, config.loss.logit) == ("nearest", "distance")
    assert set(seen) == {"embedding", "dense", "official"}


def test_first_trials_are_tried_first_and_completed():
    space = Space(BASE, (*negatives(KINDS, 40), log("optimizer.lr", 1e-4, 1e-2)))
    first = [{"loss.negatives.kind": "all", "optimizer.lr": 5e-3}, {"loss.negatives.kind": "nearest"}]
    trials = asked(space, 3, first)
    assert trials[0] == first[0]
    assert trials[1]["loss.negatives.kind"] == "nearest"
    assert 1 <= trials[1]["loss.negatives.count"] <= 39
    assert 1e-4 <= trials[1]["optimizer.lr"] <= 1e-2


def test_a_space_survives_a_resumption():
    space = Space(BASE, negatives(KINDS, 40))
    assert pickle.loads(pickle.dumps(space)) == space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.weight_decay=log:1e-5:1e-1", log("optimizer.weight_decay", 1e-5, 1e-1)),
        ("model.embed_dim=log:8:256", log("model.embed_dim", 8, 256)),
        ("data.flip=uniform:0:0.5", uniform("data.flip", 0.0, 0.5)),
        ("model.head=embedding,dense,official", choice("model.head", ["embedding", "dense", "official"])),
        ("trainer.compile=true,false", choice("trainer.compile", [True, False])),
        ("optimizer.lr=0.1,1", choice("optimizer.lr", [0.1, 1.0])),
    ],
)
def test_flag_becomes_a_dimension(text, expected):
    found = parse_dimension(text, BASE)
    assert found == expected
    assert [type(value) for value in found.edges] == [type(value) for value in expected.edges]
    Space(BASE, (found,)).check(40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "expected NAME=log:LOW:HIGH"),
        ("optimizer.lr=log:1", "expected NAME=log:LOW:HIGH"),
        ("optimiser.lr=1,2", r"no setting is called 'optimiser\.lr'; the settings are: data\.path"),
        ("model.embed_dim=log:8:many", r"model\.embed_dim = 'many' is a str: expected int"),
        ("model.embed_dim=8,1", r"model\.embed_dim = 1: expected at least 2"),
        ("loss.logit=cosine,angle", r"loss\.logit = 'angle': expected one of distance, cosine"),
        ("loss.logit=log:1:2", r"loss\.logit = "),
        ("optimizer.lr=log:0:1", r"optimizer\.lr = 0"),
        ("data.flip=uniform:0.5:0.1", r"search of data\.flip: expected a range from low to high, not 0\.5 to 0\.1"),
        ("data.flip=0.5,0.5", r"search of data\.flip: expected at least one value, each once"),
    ],
)
def test_flag_that_cannot_work_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_dimension(text, BASE)


def test_values_that_no_trial_could_have_are_refused():
    with pytest.raises(ValueError, match=r"lower loss\.negatives\.count to 5"):
        Space(override(BASE, {"loss.negatives.kind": "random"}), (choice("loss.negatives.count", [2, 50]),)).check(6)
    with pytest.raises(ValueError, match=r"model\.embed_dim = 0: expected at least 2"):
        Space(BASE, (choice("model.embed_dim", [0]),)).check(6)


def test_a_flag_replaces_the_range_that_was_there():
    space = Space(BASE, (*negatives(KINDS, 40), log("optimizer.lr", 1e-4, 1e-2)))
    space = space.with_dimensions(
        parse_dimension("loss.negatives.count=7", BASE), parse_dimension("optimizer.lr=0.1", BASE)
    )
    assert all(values["loss.negatives.count"] == 7 and values["optimizer.lr"] == 0.1 for values in asked(space, 20))
    assert space.describe() == {
        "search of loss.negatives.kind": "choice all, nearest, random, mixed where model.head in embedding",
        "search of loss.negatives.count": "choice 7",
        "search of optimizer.lr": "choice 0.1",
    }
    assert set(flatten(BASE)) >= {dimension.name for dimension in space.dimensions}
