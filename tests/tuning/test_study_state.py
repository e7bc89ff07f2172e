"""The filesystem that Ray writes a study's state to."""

import errno
import pickle
import time
from pathlib import Path

import pyarrow.fs
import pytest
from ray.tune.callback import CallbackList
from ray.tune.execution.experiment_state import _find_newest_experiment_checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.utils.util import _load_newest_checkpoint

from kiloseg.storage.errors import DataError
from kiloseg.tuning.ray_workarounds.damaged_state import check_state
from kiloseg.tuning.ray_workarounds.state_files import PICKLED, STATE
from kiloseg.tuning.ray_workarounds.whole_files import storage_filesystem


def copy(source, target, files):
    pyarrow.fs.copy_files(
        str(source), str(target), source_filesystem=pyarrow.fs.LocalFileSystem(), destination_filesystem=files
    )


@pytest.fixture
def full():
    """A disk that is full, which any machine has."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    return Path("/dev/full")


def test_folders_are_copied_as_by_pyarrow_itself(tmp_path):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "state.json").write_bytes(b"[1]" * 700_000)
    (source / "inner" / "empty").touch()
    files = pickle.loads(pickle.dumps(storage_filesystem(str(tmp_path))))
    copy(source, tmp_path / "target", files)
    found = {
        path.relative_to(tmp_path / "target"): path.read_bytes()
        for path in (tmp_path / "target").rglob("*")
        if path.is_file()
    }
    assert found == {Path("state.json"): b"[1]" * 700_000, Path("inner/empty"): b""}


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    (tmp_path / "state.json").write_text("before")
    files = storage_filesystem(str(tmp_path))
    stream = files.open_output_stream(str(tmp_path / "state.json"))
    stream.write(b"after")
    assert (tmp_path / "state.json").read_text() == "before"
    stream.close()
    assert (tmp_path / "state.json").read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_full_disk_leaves_what_was_there(tmp_path, full, size):
    """Whether little is written or much."""
    (tmp_path / "state.json").write_text("before")
    (tmp_path / "state.json.partial").symlink_to(full)
    (tmp_path / "new").write_bytes(bytes(size))
    with pytest.raises(OSError, match="No space left") as error:
        copy(tmp_path / "new", tmp_path / "state.json", storage_filesystem(str(tmp_path)))
    assert error.value.errno in (errno.ENOSPC, None)
    assert (tmp_path / "state.json").read_text() == "before"


def test_urls_are_left_to_ray():
    assert storage_filesystem("s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http") is None
    assert storage_filesystem("file:///runs") is None


@pytest.fixture
def state(tmp_path):
    """A whole one, of two sessions."""
    for hour in (10, 11):
        (tmp_path / f"experiment_state-2026-11-24_{hour}-00-00.json").write_text("{}")
        for name in (
            "search_gen_state-{}.json",
            "searcher-state-{}.pkl",
            "basic-variant-state-{}.json",
            "callback-states-{}.pkl",
        ):
            (tmp_path / name.format(f"2026-11-24_{hour}-00-00")).write_bytes(pickle.dumps({"hour": [hour] * 1000}))
    # As a death while they are written leaves them.
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".partial").touch()
    check_state(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("renamed", [False, True], ids=["out of the folder", "to another name"])
@pytest.mark.parametrize("pattern", [STATE, *PICKLED])
def test_damaged_state_is_refused_by_name(state, pattern, renamed):
    """And Tune continues from the one before as soon as it is moved away."""
    file = state / pattern.replace("*", "2026-11-24_11-00-00")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r" is damaged .*; its trials still exist, but move it away to continue"
    ) as refused:
        check_state(str(state))
    damaged = Path(str(refused.value).partition(" is damaged")[0])
    assert damaged == file
    damaged.rename(file.with_name(f"{file.name}.damaged") if renamed else state.parent / "away")
    check_state(str(state))
    earlier = state / pattern.replace("*", "2026-11-24_10-00-00")
    if pattern == STATE:
        assert _find_newest_experiment_checkpoint(str(state)) == str(earlier)
    else:
        assert _load_newest_checkpoint(str(state), pattern) == {"hour": [10] * 1000}
    earlier.write_bytes(earlier.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{earlier.name} is damaged .*, but a new study must be started"):
        check_state(str(state))


def test_the_files_are_named_as_tune_finds_them():
    kinds = (TuneController, SearchGenerator, Searcher, BasicVariantGenerator, CallbackList)
    assert [kind.CKPT_FILE_TMPL.format("*") for kind in kinds] == [STATE, *PICKLED]


def test_study_without_a_state_is_not_begun_anew_by_a_resumption(tmp_path):
    with pytest.raises(DataError, match=r"has no state to continue from: .*; start it again without --resume"):
        check_state(str(tmp_path))


def test_state_that_the_next_would_not_follow_is_refused(state):
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(time.time() + 600))
    (state / f"experiment_state-{stamp}.json").write_text("{}")
    with pytest.raises(DataError, match=rf"is dated {stamp} \(UTC\), which is in the future on this machine"):
        check_state(str(state))
