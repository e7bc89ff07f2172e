"""Packages of emoji are the published ones, or the remedy is named, which helps."""

import dataclasses
import hashlib
import http.server
import json
import re
import shutil
import threading
import urllib.parse
from pathlib import Path

import pytest
from damage import paste
from small_emoji import pack

from kiloseg.storage.errors import DataError
from synthetic.emoji_packages import code_of, obtain, read_images, read_table


def test_a_tarball_that_is_not_the_published_one_is_refused(small_packages, tmp_path):
    folder, packages = small_packages
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert obtain(tmp_path, packages)["fluent"] == tmp_path / "lobehub-fluent-emoji-3d-1.1.0.tgz"
    with (tmp_path / packages[1].tarball).open("ab") as file:
        file.write(b"x")
    message = (
        rf"twitter-16\.0\.0\.tgz has sha256 .*, expected {packages[1].sha256}, .*twitter@16\.0\.0; delete the file"
    )
    with pytest.raises(DataError, match=message):
        obtain(tmp_path, packages)


def test_without_npm_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm, .*, is not installed: .*apt install npm.*--tarballs.*--bank"):
        obtain(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("ending", "said"), [(1, "E404 no such package"), (0, "")])
def test_what_npm_says_is_passed_on(ending, said, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {ending}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=rf"emoji-datasource-google@16\.0\.0 ended with {ending} and said: {said or 'nothing'}"
    ):
        obtain(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_tarball_that_ends_early_is_named(small_packages, tmp_path):
    folder, packages = small_packages
    path = tmp_path / packages[0].tarball
    path.write_bytes((folder / path.name).read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read as a tarball"):
        read_images(path, packages[0])
    pack(path, {"package/package.json": b"{}"})
    with pytest.raises(DataError, match=r"no picture in package/img/google/64/; expected .*google@16"):
        read_images(path, packages[0])
    with pytest.raises(DataError, match=r"holds no package/emoji\.json"):
        read_table(path)


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry of npm that has the small packages, by the name of the package or of its file."""

    def do_GET(self):
        wanted = urllib.parse.unquote(self.path[1:])
        folder, packages = self.server.packages
        for package in packages:
            content = (folder / package.tarball).read_bytes()
            if wanted == package.name:
                address = f"http://127.0.0.1:{self.server.server_port}/{package.tarball}"
                dist = {"tarball": address, "shasum": hashlib.sha1(content).hexdigest()}
                version = {"name": package.name, "version": package.version, "dist": dist}
                content = json.dumps({"name": package.name, "versions": {package.version: version}}).encode()
            elif wanted != package.tarball:
                continue
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_error(404)

    def log_message(self, *words):
        """Says nothing."""


@pytest.fixture
def registry(small_packages, tmp_path, monkeypatch):
    """Makes npm ask a registry on this machine, which has the small packages."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.packages = small_packages
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tarball_that_is_deleted_is_downloaded_again_as_the_message_says(small_packages, registry, tmp_path):
    folder, packages = small_packages
    damaged = tmp_path / "my tarballs" / packages[2].tarball  # of a name with a scope
    shutil.copytree(folder, damaged.parent)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"has sha256 .*; delete the file, and npm will download it again") as error:
        obtain(damaged.parent, packages)
    Path(str(error.value).partition(" has sha256")[0]).unlink()
    assert obtain(damaged.parent, packages)["fluent"] == damaged
    assert damaged.read_bytes() == (folder / damaged.name).read_bytes()

    # Where npm itself brings another file, deleting it would not help, and it is not kept.
    damaged.unlink()
    other = (*packages[:2], dataclasses.replace(packages[2], sha256="0" * 64))
    with pytest.raises(
        DataError, match=r"npm pack @lobehub/fluent-emoji-3d@1\.1\.0 wrote a file with sha256 .*; set npm's"
    ):
        obtain(damaged.parent, other)
    assert not damaged.exists()


def test_without_npm_one_command_elsewhere_brings_all_packages(small_packages, registry, tmp_path, monkeypatch):
    _, packages = small_packages
    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as patch, pytest.raises(DataError) as error:
        patch.setenv("PATH", str(tmp_path))
        obtain(tmp_path / "my tarballs", packages)
    said = re.search(
        r"or run (npm pack .*) on a machine where it works and copy what it writes into (.*) \(--t", str(error.value)
    )
    done = paste(said[1], tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "elsewhere", said[2])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(obtain(tmp_path / "my tarballs", packages)) == {"google", "twitter", "fluent"}


def test_names_agree_without_fe0f_and_in_lower_case():
    assert code_of("0031-FE0F-20E3") == code_of("0031-20e3") == "0031-20e3"
