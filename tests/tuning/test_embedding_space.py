"""The space of a pixel embedding and what is tried first in it, from two classes on."""

import optuna
import pytest

from kiloseg.config import Config
from kiloseg.config.sizes import auto_embed_dim, auto_negatives
from kiloseg.overrides import override
from kiloseg.tuning.embedding_space import embed_dims, embedding_space, known_trials

CLASSES = [2, 3, 9, 40, 1024, 65_535]


@pytest.mark.parametrize("C", CLASSES)
def test_dimensions_lie_around_those_of_the_rule(C):
    dims = embed_dims(C)
    assert dims == tuple(sorted(set(dims))) and 3 <= len(dims) <= 5 and dims[0] >= 4
    assert dims[0] <= auto_embed_dim(C) <= dims[-1]


@pytest.mark.parametrize("C", CLASSES)
@pytest.mark.parametrize("dims", [(), (6, 48)])
def test_what_is_tried_first_is_in_the_space_and_can_run(C, dims):
    base = override(Config(), {"data.num_classes": C})
    space = embedding_space(base, C, dims=dims)
    space.check(C)
    study = optuna.create_study()
    trials = known_trials(base, C, dims=dims)
    for values in trials:
        study.enqueue_trial(values)
        trial = study.ask()
        assert space(trial) == values, "nothing else is drawn, and nothing of it is left out"
        override(base, values)
    kinds = [values["loss.negatives.kind"] for values in trials]
    assert kinds in (["all", "nearest"], ["all", "random", "nearest"])
    assert ("random" in kinds) == (auto_negatives(C, "random") < C / 2)
    assert len({values["model.embed_dim"] for values in trials if values["loss.logit"] == "cosine"}) == 1


def test_kinds_that_are_not_asked_for_are_not_tried():
    (only,) = known_trials(Config(), 1024, kinds=["nearest", "mixed"])
    assert (only["loss.negatives.count"], only["loss.logit"]) == (7, "distance")
