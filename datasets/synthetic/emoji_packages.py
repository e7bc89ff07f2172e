"""Downloads the npm packages that hold the sprites of the emoji data set with the npm client, checks them, and reads them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kiloseg.data.writing.shard import file_sha256
from kiloseg.storage.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Package:
    """Describes one vendor's sprites, in one version of one package."""

    vendor: str
    name: str
    version: str
    sha256: str
    """The sha256 of the tarball, hexadecimal."""
    images: str
    """The folder inside the tarball with one picture per emoji, named by its code points, or a file that holds them all."""
    license: str
    """The license of the pictures, with the attribution."""

    @property
    def spec(self) -> str:
        """Returns the package as npm names it."""
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """Returns the name of the file that `npm pack` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        vendor="google",
        name="emoji-datasource-google",
        version="16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        images="package/img/google/64/",
        license="Noto Emoji, Google, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
    ),
    Package(
        vendor="twitter",
        name="emoji-datasource-twitter",
        version="16.0.0",
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        images="package/img/twitter/64/",
        license="Twemoji, copyright Twitter, Inc. and other contributors, CC BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/)",
    ),
    Package(
        vendor="fluent",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        images="package/assets/",
        license="Fluent Emoji, Microsoft, packed by LobeHub, MIT licence (https://opensource.org/license/mit)",
    ),
)
_CC_BY_SA_4 = "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)"

DRAWINGS = (
    Package(
        vendor="noto-v1",
        name="@iconify-json/noto-v1",
        version="1.2.5",
        sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        images="package/icons.json",
        license="Noto Emoji of 2017, Google, packed by Iconify, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
    ),
    Package(
        vendor="emojione",
        name="@iconify-json/emojione",
        version="1.2.3",
        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        images="package/icons.json",
        license="Emoji One 2.3 (EmojiTwo), packed by Iconify, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
    ),
    Package(
        vendor="emojione-v1",
        name="@iconify-json/emojione-v1",
        version="1.2.3",
        sha256="6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        images="package/icons.json",
        license=f"Emoji One 1.5, packed by Iconify, {_CC_BY_SA_4}",
    ),
    Package(
        vendor="openmoji",
        name="openmoji",
        version="17.0.0",
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        images="package/color/svg/",
        license=f"OpenMoji (https://openmoji.org), its authors, {_CC_BY_SA_4}",
    ),
)
"""These vendors' pictures are SVG, and they may lack classes."""
TABLE = "package/emoji.json"
"""The list of all emoji with their categories, in the first package."""


def obtain(folder: Path, packages: tuple[Package, ...] = PACKAGES) -> dict[str, Path]:
    """Maps vendors to their tarballs in `folder`; `npm pack` downloads those that are missing, about 150 MB.

    Raises:
        DataError: npm is missing or failed, or a tarball is not the expected one.
    """
    tarballs = {package.vendor: folder / package.tarball for package in packages}
    for number, package in enumerate(packages):
        path = tarballs[package.vendor]
        if not path.is_file():
            _pack(package, folder, [one for one in packages[number:] if not tarballs[one.vendor].is_file()])
        digest = file_sha256(path)
        if digest != package.sha256:
            raise DataError(
                f"{path} has sha256 {digest}, expected {package.sha256}, the published {package.spec}; delete the file, and "
                "npm will download it again"
            )
    return tarballs


def _pack(package: Package, folder: Path, missing: Sequence[Package]) -> None:
    remedy = (
        f"or run {shlex.join(['npm', 'pack', *(one.spec for one in missing)])} on a machine where it works and copy what it writes "
        f"into {folder} (--tarballs), or copy the bank that a build made there (--bank)"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"{folder / package.tarball} does not exist, and npm, which would download it, is not installed: install npm (on "
            f"Debian or Ubuntu: apt install npm), {remedy}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    print(f"npm pack {package.spec}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as scratch:
        # npm runs in its own folder, where no package.json or .npmrc of a project can change what it does.
        done = subprocess.run([npm, "pack", package.spec], cwd=scratch, capture_output=True, text=True)
        packed = Path(scratch) / package.tarball
        if done.returncode or not packed.is_file():
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[:4]) or "nothing"
            raise DataError(
                f"npm pack {package.spec} ended with {done.returncode} and said: {said}; expected it to write "
                f"{package.tarball}; check npm's access to its registry, {remedy}"
            )
        digest = file_sha256(packed)
        if digest != package.sha256:  # which downloading it again would not change
            raise DataError(
                f"npm pack {package.spec} wrote a file with sha256 {digest}, expected {package.sha256}, the published one; set "
                f"npm's registry to one that has it (npm config get registry), {remedy}"
            )
        packed.replace(folder / package.tarball)


def code_of(name: str) -> str:
    """Spells the code points of an emoji in the one way that the packages share: lower case, without fe0f.

    That code point requests a colored picture; some packages write it and some leave it out.
    """
    return "-".join(point for point in name.lower().split("-") if point != "fe0f")


def read_table(tarball: Path) -> bytes:
    """Returns the content of emoji.json; raises DataError if the tarball has none."""
    return read_member(tarball, TABLE)


def read_member(tarball: Path, member: str) -> bytes:
    """Returns the content of one file of a tarball; raises DataError if it has none of that name."""
    for name, content in _members(tarball, member):
        if name == member:
            return content
    expected = next((one.spec for one in (*PACKAGES, *DRAWINGS) if one.tarball == tarball.name), "another package")
    raise DataError(f"{tarball} holds no {member}; expected a tarball of {expected}")


def read_images(tarball: Path, package: Package) -> dict[str, bytes]:
    """Maps the code of each emoji to the bytes of its picture."""
    images = {}
    for name, content in _members(tarball, package.images):
        path = PurePosixPath(name)
        if f"{path.parent}/" == package.images:
            images[code_of(path.stem)] = content
    if not images:
        raise DataError(f"{tarball} holds no picture in {package.images}; expected a tarball of {package.spec}")
    return images


def _members(tarball: Path, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the files of a tarball, read once from start to end."""
    try:
        with tarfile.open(tarball, "r|gz") as tar:
            for member in tar:
                if member.isfile() and member.name.startswith(prefix):
                    file = tar.extractfile(member)
                    assert file is not None, member.name
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{tarball} cannot be read as a tarball ({error}); delete it, and npm will download it again"
        ) from error
