"""Files that appear whole or not at all, the cache folder, and URLs without credentials."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kiloseg.storage.atomic import whole_file, write_whole
from kiloseg.storage.cache_folder import cache_folder
from kiloseg.storage.credentials import require_no_credentials, shown
from kiloseg.storage.filesystems import LocalFolder


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_whole_or_not_there(tmp_path, shared):
    path = tmp_path / "f"
    with whole_file(path, shared=shared, durable=True) as file:
        file.write(b"one")
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), whole_file(path, shared=shared) as file:
        file.write(b"two")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_older_file(tmp_path):
    write_whole(tmp_path / "a/f", b"one")
    (tmp_path / "a/f.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a/f", b"two" * 100000)
    assert (tmp_path / "a/f").read_bytes() == b"one" and not (tmp_path / "a/f.partial").is_symlink()


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with whole_file(tmp_path / "f", shared=True) as one, whole_file(tmp_path / "f", shared=True) as two:
        one.write(b"one")
        two.write(b"2")
    assert (tmp_path / "f").read_bytes() == b"one"


def test_two_that_write_one_file_of_a_folder_at_once_leave_one_content(tmp_path, monkeypatch):
    both_opened = threading.Barrier(2)
    opened = Path.open

    def open_together(path, *given, **more):
        file = opened(path, *given, **more)
        both_opened.wait()
        return file

    contents = [b"1" * 100, b"22"]
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(Path, "open", open_together)
        for done in [threads.submit(LocalFolder(tmp_path).write, "f", content) for content in contents]:
            done.result()
    assert (tmp_path / "f").read_bytes() in contents
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_one_variable_names_the_cache_folder(monkeypatch):
    monkeypatch.setenv("KILOSEG_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("KILOSEG_CACHE")
    assert cache_folder() == Path("/xdg/kiloseg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/kiloseg")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://key:secret@bucket/set?region=x", "s3://bucket/set?region=x"),
        ("s3://key@bucket/set", "s3://bucket/set"),
        ("postgresql://user:pa/ss@host:5432/db", "postgresql://host:5432/db"),
        ("https://u:p@ss@host/", "https://host/"),
        ("s3://bucket/set@2", "s3://bucket/set@2"),
        ("http://host:5000/set@2", "http://host:5000/set@2"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("folder/a@b", "folder/a@b"),
    ],
)
def test_users_and_keys_are_not_shown(url, expected):
    assert shown(url) == expected
    if url == expected:
        require_no_credentials("data.path", url)
    else:
        with pytest.raises(ValueError, match=r"data.path = '\w+://\.\.\.@.*: expected a URL without user") as caught:
            require_no_credentials("data.path", url)
        assert "secret" not in str(caught.value) and "pa/ss" not in str(caught.value)
