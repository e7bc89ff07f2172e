"""Building on other filesystems and on a Ray cluster gives what it gives in a folder of this machine."""

import functools
import os
import re
import subprocess
import sys

import pytest
import ray
from test_build import SHARDS, build_numbered, contents

from kiloseg.data.description import check_shards, read_info
from kiloseg.data.index import read_index
from kiloseg.data.writing.cluster import environment
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, build_numbered(folder)


def stored(url):
    """Content of every file of a data set at a URL, by name."""
    folder = open_folder(url)
    return {name: folder.read(name) for name in folder.sizes()}


def test_object_store_holds_the_same_files(whole, s3, capsys):
    info = build_numbered(s3)
    assert stored(s3) == contents(whole[0])
    assert open_folder(s3).entries() == sorted(contents(whole[0])), "no .partial is left"
    assert read_info(s3) == info
    check_shards(s3, info, "train")
    assert read_index(s3, "val").equals(read_index(whole[0], "val"))
    assert read_index(s3, shard=SHARDS[2]).equals(read_index(whole[0], shard=SHARDS[2]))
    capsys.readouterr()
    assert build_numbered(s3) == info
    printed = capsys.readouterr().out
    assert printed.startswith(f"{s3.partition('?')[0]} is up to date: 300 classes"), printed
    assert printed.count("\n") == 1


def test_object_store_goes_on_and_mixes_with_nothing(whole, s3, capsys):
    with pytest.raises(DataError, match=r"train-000004\.tar: sample train00018: mask has class id"):
        build_numbered(s3, wrong=18)
    folder = open_folder(s3)
    kept = sorted(folder.sizes())
    assert kept[:4] == SHARDS[:4] and SHARDS[4] not in kept
    with pytest.raises(DataError, match=r"s3://bucket/.*/set/dataset\.json does not exist"):
        read_info(s3)
    folder.write(SHARDS[1], b"short")
    capsys.readouterr()
    build_numbered(s3)
    assert f"{len(kept) - 1} of 7 shards kept from an earlier run" in capsys.readouterr().out
    assert stored(s3) == contents(whole[0])

    folder.remove(SHARDS[6])
    with pytest.raises(DataError, match=rf"set/{SHARDS[6]} is missing, though dataset\.json lists it"):
        check_shards(s3, read_info(s3), "val")
    build_numbered(s3, train=5)
    assert open_folder(s3).entries() == sorted(["dataset.json", "index.parquet", *SHARDS[:2], SHARDS[6]])
    other = open_folder(s3.replace("/set?", "/other?"))
    other.write("holiday.jpg", b"precious")
    with pytest.raises(DataError, match=r"s3://bucket/.*/other has no dataset\.json but holds 'holiday\.jpg'"):
        build_numbered(other.location)
    with pytest.raises(DataError, match=r"holiday\.jpg is a file: expected a folder"):
        build_numbered(s3.replace("/set?", "/other/holiday.jpg?"))
    assert stored(other.location) == {"holiday.jpg": b"precious"}


def test_local_folder_by_url(whole, tmp_path):
    folder = tmp_path / "with space"
    build_numbered(f"file://{tmp_path}/with%20space")
    assert contents(folder) == contents(whole[0])
    assert read_info(f"file://{tmp_path}/with%20space") == read_info(folder)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (
            "ftp://host/set",
            DataError,
            "ftp://host/set: Unrecognized filesystem type in URI: ftp://host/set; expected a path",
        ),
        ("s3://", DataError, "s3://: expected a folder inside a bucket, such as s3://BUCKET/FOLDER"),
        ("s3://bucket?region=eu-west-1", DataError, "s3://bucket: expected a folder inside a bucket"),
        ("s3://bucket/set?nonsense=3&region=a", DataError, "s3://bucket/set: Unexpected query parameter"),
        ("file://host/set", DataError, "file://host/set: Unsupported hostname"),
        ("s3://none/set", ConnectionError, "s3://none/set cannot be written (When initiating multiple part upload"),
    ],
)
def test_url_that_names_no_folder(s3, server, url, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        build_numbered(url + server if error is ConnectionError else url)
    assert error is DataError or "check the address, the bucket and the credentials" in str(caught.value)


def test_server_that_does_not_answer(s3):
    url = "s3://KEY:SECRET@bucket/set?endpoint_override=127.0.0.1:9&scheme=http"
    with pytest.raises(ConnectionError, match=r"^s3://bucket/set cannot be read \(.*127\.0\.0\.1 port 9") as caught:
        read_info(url)
    assert "SECRET" not in str(caught.value)


def test_url_in_messages_and_commands_holds_no_secret():
    folder = open_folder("s3://KEY:SECRET@bucket/a/set?region=eu-west-1")
    assert folder.name == "s3://bucket/a/set"
    assert folder.at("x.tar") == "s3://bucket/a/set/x.tar"


# Ray


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.mark.timeout(300)
def test_cluster_that_is_started_for_the_build(whole, tmp_path):
    build_numbered(tmp_path, address="local")
    assert contents(tmp_path) == contents(whole[0])
    assert not ray.is_initialized()


@pytest.mark.timeout(300)
def test_cluster_of_the_caller(whole, tmp_path):
    """Errors are the builder's own, and what one kind of build finished is kept by the other."""
    folder = tmp_path / "set"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment("test_build"))
    try:
        with pytest.raises(
            DataError, match=r"^train-000004\.tar: sample train00018: mask has class id 3\d\d"
        ) as caught:
            build_numbered(folder, address="auto", wrong=18)
        assert "the same command continues from there" in caught.value.__notes__[0]
        assert ray.is_initialized(), "what the caller started stays"
    finally:
        ray.shutdown()
    recorded = {f"{path.stem}.tar" for path in (folder / ".partial").glob("*.parquet")}
    before = {name: time for name, time in times(folder).items() if name in recorded}
    assert before
    build_numbered(folder)
    assert {name: times(folder)[name] for name in before} == before
    assert contents(folder) == contents(whole[0])


@pytest.mark.timeout(300)
def test_cluster_that_asks_for_a_token(whole, tmp_path):
    """Ray starts clusters with tokens unless told otherwise, but does not offer its own by itself."""
    folder = tmp_path / "set"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        source = f"import test_build; test_build.build_numbered({str(folder)!r}, address={context.address_info['gcs_address']!r})"
        run = functools.partial(subprocess.run, [sys.executable, "-c", source], capture_output=True, text=True)
        refused = run(env=environment)
        taken = run(env=environment | {"RAY_AUTH_MODE": "token"})
    finally:
        ray.shutdown()
    assert re.search(
        r"ConnectionError: address = '[\d.:]+': no connection to the cluster \(it requires a token\); expected RAY_AUTH_MODE=token",
        refused.stderr,
    )
    assert taken.returncode == 0, taken.stderr
    assert contents(folder) == contents(whole[0])


def test_cluster_that_does_not_answer(tmp_path):
    with pytest.raises(
        ConnectionError, match=r"address = '127\.0\.0\.1:9': no cluster answers \(.*; expected auto, or HOST"
    ):
        build_numbered(tmp_path / "set", address="127.0.0.1:9")


def test_cluster_without_ray_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "kiloseg.data.writing.cluster")
    with pytest.raises(ModuleNotFoundError, match=r"address = 'auto' needs Ray, .* pip install 'kiloseg\[search\]'"):
        build_numbered(tmp_path / "set", address="auto")
