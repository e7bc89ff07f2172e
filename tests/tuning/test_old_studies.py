"""Studies that were begun before something moved: they go on, or are refused in words."""

import pickle
import sys

import pytest

from kiloseg.config import Config
from kiloseg.overrides import flatten, override
from kiloseg.storage.filesystems import LocalFolder
from kiloseg.tuning.identity import check_same_study, write_plan
from kiloseg.tuning.ray_workarounds.old_names import OLD_NAMES, old_names


@pytest.mark.parametrize("old", OLD_NAMES)
def test_pickle_with_an_old_name_is_read(old):
    module, _, name = old.rpartition(".")
    pickled = f"c{module}\n{name}\n.".encode()
    with pytest.raises((ImportError, AttributeError)):
        pickle.loads(pickled)
    with old_names():
        found = pickle.loads(pickled)
        again = pickle.loads(pickle.dumps(found))
    assert again is found
    assert f"{found.__module__}.{found.__qualname__}" == OLD_NAMES[old], "it is pickled by its new name from now on"


def test_old_names_are_gone_afterwards():
    before = set(sys.modules)
    with old_names():
        assert "kiloseg.progress" in sys.modules
    added = set(sys.modules) - before
    assert not {old.rpartition(".")[0] for old in OLD_NAMES} & added


def plan_of(config, **more):
    return flatten(config) | {"data digest": "1", "workers": 1} | more


def test_setting_that_the_study_did_not_know_had_its_default(tmp_path):
    place = LocalFolder(tmp_path)
    then = plan_of(Config())
    del then["data.flip"]
    write_plan(then | {"a setting of before": 1}, place)
    check_same_study("study-1", plan_of(Config()), place)
    other = override(Config(), {"data.flip": Config().data.flip + 0.25})
    with pytest.raises(
        ValueError,
        match=r"study-1, which is another study \(data\.flip was 0\.\d+, is 0\.\d+\).*\(--data\.flip 0\.\d+\)",
    ):
        check_same_study("study-1", plan_of(other), place)
