"""The emoji builder: on small packages in the exact layout of the real ones, and on the real ones where npm brings them."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.parse
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import built_again_as_verify_says, paste
from PIL import Image, ImageDraw

import emoji
from emoji_shards import coverage, write_emoji
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index
from kiloseg.data.writing.shard import file_sha256, write_shard
from kiloseg.storage.errors import DataError
from synthetic.emoji_backgrounds import varied_square
from synthetic.emoji_bank import Bank, make_bank, read_bank, write_bank
from synthetic.emoji_choice import Choice
from synthetic.emoji_classes import Emoji, base_emoji, by_frequency, may_mirror, merge_twins
from synthetic.emoji_drawings import ICONS, NAMES, icon_name, read_drawings, read_icons
from synthetic.emoji_drawings import draw as draw_svg
from synthetic.emoji_objects import _recoloring, draw_object
from synthetic.emoji_packages import DRAWINGS, PACKAGES, code_of, obtain, read_images, read_table
from synthetic.emoji_photographs import PACKAGED, Photograph, in_folder, photographs_of
from synthetic.emoji_recipes import RECIPES
from synthetic.emoji_scenes import NAMEABLE, Scenes, describe, make_scenes
from synthetic.emoji_sprites import SIDE, sprite, sprites_of, twins

ROOT = Path(__file__).parents[2]

# unified, short name, long name, category, subcategory, and what is particular about it
ENTRIES = [
    ("1F600", "grinning", "GRINNING FACE", "Smileys & Emotion", "face-smiling", {}),
    ("263A-FE0F", "relaxed", "WHITE SMILING FACE", "Smileys & Emotion", "face-affection", {}),
    ("1F408", "cat2", "CAT", "Animals & Nature", "animal-mammal", {}),
    ("1F436", "dog", "DOG FACE", "Animals & Nature", "animal-mammal", {}),
    ("1F98A", "fox_face", "FOX FACE", "Animals & Nature", "animal-mammal", {}),
    ("27A1-FE0F", "arrow_right", "BLACK RIGHTWARDS ARROW", "Symbols", "arrow", {}),
    ("0031-FE0F-20E3", "one", "KEYCAP 1", "Symbols", "keycap", {}),
    ("1F550", "clock1", "CLOCK FACE ONE OCLOCK", "Travel & Places", "time", {}),
    ("1F468-200D-1F466", "man-boy", "FAMILY: MAN, BOY", "People & Body", "family", {}),
    ("1F468-200D-1F467", "man-girl", "FAMILY: MAN, GIRL", "People & Body", "family", {}),
    ("1F469-200D-1F466", "woman-boy", "FAMILY: WOMAN, BOY", "People & Body", "family", {}),
    ("1F34B-200D-1F7E9", "lime", "LIME", "Food & Drink", "food-fruit", {}),
    ("1F3FB", "skin-tone-2", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "Component", "skin-tone", {}),
    (
        "1F46F",
        "dancers",
        "WOMAN WITH BUNNY EARS",
        "People & Body",
        "person-activity",
        {"obsoleted_by": "1F46F-200D-2640"},
    ),
    ("1F1EA-1F1EC", "flag-eg", "Egypt Flag", "Flags", "country-flag", {}),
]
LACKING = "lime"
CLASSES = {"grinning", "relaxed", "cat2", "dog", "fox_face", "arrow_right", "one", "clock1", "man-boy"}


def drawing(vendor, number, side):
    """A shape of its own: an L with a dot, turned and colored by number; magenta lies under what is transparent."""
    image = Image.new("RGBA", (64, 64), (255, 0, 255, 0))
    draw = ImageDraw.Draw(image)
    hue = tuple(int(v) for v in np.random.default_rng([number, len(vendor)]).integers(0, 256, 3))
    draw.rectangle((6, 6, 20, 57), fill=(*hue, 255))
    draw.rectangle((6, 44, 30 + 2 * number, 57), fill=(*hue[::-1], 255))
    draw.ellipse((34, 6, 44, 16), fill=(0, 0, 0, 255))
    return image.resize((side, side), Image.Resampling.NEAREST)


def pack(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def small_packages(tmp_path_factory):
    """Tarballs of three vendors in a folder, and their descriptions."""
    folder = tmp_path_factory.mktemp("tarballs")
    table = json.dumps(
        [
            {
                "name": long,
                "unified": unified,
                "image": unified.lower() + ".png",
                "short_name": short,
                "short_names": [short],
                "category": category,
                "subcategory": subcategory,
                "sort_order": number,
                **more,
            }
            for number, (unified, short, long, category, subcategory, more) in enumerate(ENTRIES)
        ][::-1]
    ).encode()
    packages = []
    for package in PACKAGES:
        files = {"package/package.json": b"{}"}
        if package.vendor != "fluent":
            files |= {"package/emoji.json": table, package.images.replace("/64/", "/sheets/") + "64.png": b"no picture"}
        for number, (unified, short, *_) in enumerate(ENTRIES):
            # man-boy and man-girl are twins by Twitter alone, man-girl and woman-boy by Fluent alone.
            alike = {("twitter", "man-girl"): number - 1, ("fluent", "woman-boy"): number - 1}
            shape = alike.get((package.vendor, short), number)
            if package.vendor == "fluent":
                if short != LACKING:
                    name = unified.lower().replace("-fe0f", "") if short == "relaxed" else unified.lower()
                    picture = drawing("fluent", shape, 256)
                    files[f"{package.images}{name}.webp"] = encoded(picture, "WEBP", lossless=True, exact=True)
                continue
            picture = drawing(package.vendor, shape, 64)
            if short == "cat2":
                picture = picture.convert("LA" if package.vendor == "google" else "P")
            files[f"{package.images}{unified.lower()}.png"] = encoded(picture, "PNG")
        files[f"{package.images}1f44b-1f3fb.{'webp' if package.vendor == 'fluent' else 'png'}"] = b"a skin tone"
        pack(folder / package.tarball, files)
        packages.append(dataclasses.replace(package, sha256=file_sha256(folder / package.tarball)))
    return folder, tuple(packages)


def photographs(count=3, color=None):
    rng = np.random.default_rng(5)
    images = [
        np.full((300, 400, 3), color, np.uint8) if color is not None else rng.integers(0, 255, (30, 40, 3), np.uint8)
        for _ in range(count)
    ]
    return [
        Photograph(
            name=f"photo{number}.jpg",
            credit=f"photographer {number}, CC0",
            sha256=str(number),
            image=Image.fromarray(pixels).resize((400, 300)),
        )
        for number, pixels in enumerate(images)
    ]


@pytest.fixture(scope="session")
def small_bank(small_packages, tmp_path_factory):
    """The file of a bank of 9 classes, and its digest."""
    folder, packages = small_packages
    path = tmp_path_factory.mktemp("bank") / "bank.tar"
    write_bank(path, make_bank(obtain(folder, packages), photographs(), packages))
    return path, file_sha256(path)


SMALL = Scenes(train_samples=7, val_samples=5, size=96, recipe_version=1)
SMALL_2 = Scenes(train_samples=7, val_samples=5, val_style_samples=4, size=96)


def draw(bank, split="train", stop=7, start=0, scenes=SMALL):
    path, digest = bank
    return list(make_scenes(split, start, stop, scenes=scenes, bank=str(path), digest=digest))


def same(samples, others):
    return len(samples) == len(others) and all(
        np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask) and (a.key, a.meta) == (b.key, b.meta)
        for a, b in zip(samples, others, strict=True)
    )


DRAWN_SVG = """<path d="M6 6h14v38h{w}v13H6z" fill="#{color}"/><circle cx="39" cy="11" r="5"/>"""


@pytest.fixture(scope="session")
def small_drawings(tmp_path_factory):
    """Tarballs of the vendors that draw in SVG, in a folder, and their descriptions. All but OpenMoji lack the dog and one of
    the relaxed face, and Emoji One draws the fox as it draws the cat."""
    folder = tmp_path_factory.mktemp("drawings")
    packages = []
    for package in DRAWINGS:
        svg = {}
        for number, (_, short, *_) in enumerate(ENTRIES):
            shape = 2 if package.vendor == "emojione" and short == "fox_face" else number
            svg[short] = DRAWN_SVG.format(w=6 + 2 * shape, color=f"{(shape * 40503 * len(package.vendor)) % 4096:03x}")
        if package.vendor == "openmoji":
            files = {
                f"{package.images}{unified.replace('-FE0F', '')}.svg": (
                    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{svg[short]}</svg>'.encode()
                )
                for unified, short, *_ in ENTRIES
            }
            names = [{"hexcode": unified, "annotation": long.title()} for unified, _, long, *_ in ENTRIES]
            files[NAMES] = json.dumps(names).encode()
        else:
            icons = {
                icon_name(long): {"body": svg[short]}
                for _, short, long, *_ in ENTRIES
                if short not in ("dog", "relaxed", "cat2")
            }
            aliases = {"cat": {"parent": "tomcat"}, "dog-face": {"parent": "fox-face", "hFlip": True}}
            icons["tomcat"] = {"body": svg["cat2"]}
            files = {
                package.images: json.dumps({"icons": icons, "aliases": aliases, "width": 64, "height": 64}).encode()
            }
        pack(folder / package.tarball, files)
        packages.append(dataclasses.replace(package, sha256=file_sha256(folder / package.tarball)))
    return folder, tuple(packages)


@pytest.fixture(scope="session")
def small_bank_2(small_packages, small_drawings, tmp_path_factory):
    """The file of a bank of all seven vendors, and its digest."""
    (folder, packages), (drawn_in, drawings) = small_packages, small_drawings
    tarballs = obtain(folder, packages) | obtain(drawn_in, drawings)
    path = tmp_path_factory.mktemp("bank2") / "bank-2.tar"
    write_bank(path, make_bank(tarballs, photographs(), packages, drawings))
    return path, file_sha256(path)


# Packages


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


# Classes


def test_classes_are_those_of_the_rule(small_bank):
    bank, _ = read_bank(small_bank[0])
    assert {one.name for one in bank.classes} == CLASSES
    family = next(one for one in bank.classes if one.name == "man-boy")
    assert family.twins == ("man-girl", "woman-boy")
    assert {one.name for one in bank.classes if not one.mirrors} == {"arrow_right", "one", "clock1"}


@pytest.mark.parametrize(
    ("category", "subcategory", "name", "mirrors"),
    [
        ("Animals & Nature", "animal-mammal", "DOG FACE", True),
        ("People & Body", "hand-single-finger", "WHITE LEFT POINTING BACKHAND INDEX", False),
        ("People & Body", "hands", "leftwards_hand", False),
        ("People & Body", "hand-fingers-closed", "RAISED FIST", True),
        ("Travel & Places", "sky & weather", "FIRST QUARTER MOON SYMBOL", False),
        ("Travel & Places", "sky & weather", "UMBRELLA WITH RAIN DROPS", True),
        ("Travel & Places", "time", "CLOCK FACE TWO OCLOCK", False),
        ("Travel & Places", "place-map", "SILHOUETTE OF JAPAN", False),
        ("Objects", "office", "CHART WITH UPWARDS TREND", False),
        ("Symbols", "alphanum", "NEGATIVE SQUARED AB", False),
        ("Food & Drink", "food-prepared", "BRIGHT BREAD", True),  # words, not parts of words
        ("Activities", "game", "slot_machine", False),
    ],
)
def test_what_would_mean_something_else_is_not_mirrored(category, subcategory, name, mirrors):
    assert may_mirror(category, subcategory, [name]) is mirrors


def test_classes_are_shuffled_by_their_code():
    def named(code):
        return Emoji(code=code, name=code, category="", subcategory="", mirrors=True)

    ordered = [one.code for one in by_frequency([named(f"{code:x}") for code in range(0x1F600, 0x1F650)])]
    assert ordered == [one.code for one in by_frequency([named(code) for code in sorted(ordered)])]
    assert ordered != sorted(ordered)
    fewer = [one.code for one in by_frequency([named(code) for code in sorted(ordered)[::2]])]
    assert [code for code in ordered if code in fewer] == fewer


def test_chains_of_twins_become_one_class_whatever_their_order():
    names = [Emoji(code=c, name=c, category="", subcategory="", mirrors=True) for c in "abcdef"]
    for pairs in ([(0, 4), (2, 4), (1, 5)], [(4, 2), (1, 5), (0, 4)], [(2, 4), (0, 2), (1, 5)]):
        assert [(one.name, one.twins) for one in merge_twins(names, pairs)] == [
            ("a", ("c", "e")),
            ("b", ("f",)),
            ("d", ()),
        ]


def test_a_table_of_another_kind_is_refused():
    for table in (b"[{}]", b"{", b"5"):
        with pytest.raises(DataError, match=r"emoji\.json cannot be read"):
            base_emoji(table, [])


# Sprites


def test_twins_agree_with_the_difference_worked_out_pair_by_pair():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (6, SIDE, SIDE, 4)).astype(np.uint8)
    base[..., 3] = 255
    base[3:, :, 32:] = 0
    similar = [
        np.clip(one.astype(int) + rng.uniform(-spread, spread, one.shape), 0, 255)
        for one in base
        for spread in (3, 14, 14.5, 15, 15.5, 16, 18)
    ]
    sprites = np.concatenate([base, np.stack(similar)]).astype(np.uint8)
    sprites[..., :3] = np.minimum(sprites[..., :3], sprites[..., 3:])
    expected = []
    for i, one in enumerate(sprites / 255):
        for j in range(i + 1, len(sprites)):
            other = sprites[j] / 255
            cover = np.maximum(one[..., 3], other[..., 3]).sum()
            if np.sqrt(((one - other) ** 2).sum() / 4 / cover) < 0.0355:
                expected.append((i, j))
    assert twins(sprites) == expected
    assert 30 < len(expected) < 90  # of those of one base, some are beyond


def test_sprites_are_premultiplied_and_square(small_packages):
    straight = np.zeros((64, 64, 4), np.uint8)
    straight[..., 0], straight[:32, :, 3] = 200, 128
    found = sprite(encoded(Image.fromarray(straight), "PNG"))
    assert found[40].max() == 0 and found[0, 0].tolist() == [100, 0, 0, 128]
    tall = sprite(encoded(Image.new("RGBA", (256, 264), (9, 9, 9, 255)), "WEBP", lossless=True))
    assert tall.shape == (64, 64, 4) and tall[:, 0, 3].max() == 0 and tall[:, 1:63, 3].min() == 255


def test_an_empty_or_broken_picture_is_named():
    for picture, said in (
        (b"no picture", "not a PNG or WebP"),
        (encoded(Image.new("RGBA", (64, 64)), "PNG"), "half opaque"),
    ):
        with pytest.raises(DataError, match=rf"emoji 1f600 by google: .*{said}"):
            sprites_of({"1f600": picture}, ["1f600"], "google")


# Bank


def test_a_bank_is_read_as_it_was_written(small_packages, small_bank, tmp_path):
    folder, packages = small_packages
    made = make_bank(obtain(folder, packages), photographs(), packages)
    read, digest = read_bank(small_bank[0])
    assert read.classes == made.classes and read.credits == made.credits
    for vendor, sprites in made.sprites.items():
        assert np.array_equal(read.sprites[vendor], sprites) and len(sprites) == len(CLASSES)
    assert [one.name for one in read.photographs] == ["photo0.jpg", "photo1.jpg", "photo2.jpg"]
    write_bank(tmp_path / "again.tar", made)
    assert file_sha256(tmp_path / "again.tar") == digest
    cat = [one.name for one in read.classes].index("cat2")
    assert np.ptp(read.sprites["google"][cat][..., :3].astype(int), axis=-1).max() == 0  # grayscale with opacity
    assert not read.sprites["twitter"][cat][60, 60].any()  # from a palette


def test_a_damaged_bank_is_refused(small_bank, tmp_path):
    whole = small_bank[0].read_bytes()
    path = tmp_path / "bank.tar"
    for content in (
        whole[:3000],
        b"nonsense",
        whole.replace(b'"twins"', b'"twice"'),
        whole.replace(b"google.png", b"goggle.png"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bank\.tar is not a complete bank .*; delete it"):
            read_bank(path)
    path.write_bytes(whole.replace(b"emoji-bank-1", b"emoji-bank-0"))
    with pytest.raises(DataError, match=r"of format 'kiloseg-emoji-bank-0', expected 'kiloseg-emoji-bank-1'"):
        read_bank(path)
    with pytest.raises(DataError, match=r"none\.tar does not exist"):
        read_bank(tmp_path / "none.tar")


# Drawings


def test_names_of_icons():
    assert icon_name("Man\u2019s Shoe") == "mans-shoe" and icon_name("piñata") == "pinata"
    assert icon_name("Japanese “free of charge” button") == "japanese-free-of-charge-button"


def test_vendors_may_lack_classes_and_draw_two_alike(small_bank, small_bank_2):
    bank, _ = read_bank(small_bank_2[0])
    before, _ = read_bank(small_bank[0])
    assert bank.classes == before.classes  # further vendors change no class
    assert all(np.array_equal(bank.sprites[vendor], drawn) for vendor, drawn in before.sprites.items())
    drawn = {
        vendor: {one.name for one, sprite in zip(bank.classes, sprites, strict=True) if sprite[..., 3].any()}
        for vendor, sprites in bank.sprites.items()
    }
    assert drawn["openmoji"] == CLASSES
    assert drawn["noto-v1"] == drawn["emojione-v1"] == CLASSES - {"dog", "relaxed"}  # a turned alias is none of its own
    assert drawn["emojione"] == CLASSES - {"dog", "relaxed", "cat2", "fox_face"}  # nobody could tell which is meant
    number = [one.name for one in bank.classes].index("grinning")
    sprite = bank.sprites["openmoji"][number]
    assert sprite[40, 10, 3] == 255 and sprite[30, 60, 3] == 0 and sprite[11, 39].tolist() == [0, 0, 0, 255]


def test_drawings_that_cannot_be_read_are_named(small_drawings, tmp_path):
    _, packages = small_drawings
    with pytest.raises(DataError, match=r"emoji 1f600 by openmoji cannot be drawn \(the document does not have"):
        draw_svg({"1f600": b"<svg"}, ["1f601", "1f600"], "openmoji")
    path = tmp_path / packages[0].tarball
    pack(path, {ICONS: b"[]"})
    with pytest.raises(DataError, match=r"icons\.json of .* cannot be read"):
        read_icons(path, {})
    pack(path, {"package/package.json": b"{}"})
    with pytest.raises(DataError, match=rf"holds no package/icons\.json; expected a tarball of {packages[0].name}@"):
        read_icons(path, {})


# Objects


def test_colors_change_as_straight_colors_would_and_nothing_shows_where_nothing_is():
    colors = np.random.default_rng(0).uniform(0, 255, (50, 3))
    opacity = np.linspace(0, 255, 50)[:, None]
    for seed in range(5):
        rows = np.concatenate([colors * opacity / 255, opacity], 1)
        found = rows @ _recoloring(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        low, high = np.array([(0.85, 1.15), (0.75, 1.25), (0.75, 1.2), *3 * [(0.94, 1.06)]]).T
        contrast, saturation, brightness, *tint = rng.uniform(low, high)
        gray = colors @ [[0.299], [0.587], [0.114]]
        straight = (gray + saturation * (colors - gray)) * brightness * tint
        straight = 127.5 + contrast * (straight - 127.5)
        assert found == pytest.approx(straight * opacity / 255, abs=1e-2)
        assert not found[0].any()


def test_objects_are_never_brighter_than_their_opacity(small_bank):
    bank, _ = read_bank(small_bank[0])
    rng = np.random.default_rng(0)
    for number in range(120):
        colors, opacity = draw_object(rng, bank.sprites["google"][number % len(CLASSES)], 256, mirrors=True)
        assert (colors <= opacity).all() and colors.min() >= 0 and opacity.max() == 255
        assert (opacity[..., :1] == opacity).all() and opacity[0].any() and opacity[:, -1].any()
        assert 35 <= max(opacity.shape[:2]) <= 256 * 0.36 * 1.3


def test_only_what_may_be_mirrored_is():
    ell = np.zeros((SIDE, SIDE, 4), np.uint8)
    ell[4:60, 4:16] = ell[48:60, 4:60] = 255

    def leans_left(drawn):
        cells = drawn[1][..., 0] > 127
        return (
            cells[: len(cells) // 2, : cells.shape[1] // 2].sum()
            > cells[: len(cells) // 2, cells.shape[1] // 2 :].sum()
        )

    for mirrors, low, high in ((False, 100, 100), (True, 30, 70)):
        rng = np.random.default_rng(1)
        left = sum(bool(leans_left(draw_object(rng, ell, 256, mirrors=mirrors))) for _ in range(100))
        assert low <= left <= high


# Choice of classes


def test_classes_follow_zipf_in_train_in_spite_of_themes():
    subcategories = [f"s{number % 7}" for number in range(40)]
    choice = Choice(subcategories, seed=0, zipf=True)
    drawn = [choice.class_ids(np.random.default_rng(index), "train", index) for index in range(4000)]
    assert {len(ids) for ids in drawn} == set(range(6, 15))
    counts = np.bincount(np.concatenate(drawn), minlength=41)[1:]
    expected = 1 / np.arange(1, 41) / sum(1 / np.arange(1, 41)) * counts.sum()
    # Objects of a scene hang together, so the spread is wider than that of single draws.
    assert np.abs(counts / expected - 1).max() < 0.2
    shares = [Counter(subcategories[k - 1] for k in ids).most_common(1)[0][1] / len(ids) for ids in drawn]
    assert 0.6 < np.mean(shares) < 0.8
    even = Choice(subcategories, seed=0, zipf=False)
    flat = np.bincount(np.concatenate([even.class_ids(np.random.default_rng(i), "train", i) for i in range(4000)]))[1:]
    assert flat.max() / flat.min() < 1.3


@pytest.mark.parametrize("split", ["val", "val_style"])
def test_validation_deals_every_class_equally_often_with_themes(split):
    subcategories = [f"s{number // 50}" for number in range(1536)]
    choice = Choice(subcategories, seed=3, zipf=True)
    drawn = [choice.class_ids(np.random.default_rng(index), split, index) for index in range(1500)]
    counts = np.bincount(np.concatenate(drawn), minlength=1537)[1:]
    assert counts.max() - counts.min() <= 2 and counts.min() >= 8
    shares = [Counter(subcategories[k - 1] for k in ids).most_common(1)[0][1] / len(ids) for ids in drawn]
    assert 0.5 < np.mean(shares) < 0.8
    late = Choice(subcategories, seed=3, zipf=True)
    assert late.class_ids(np.random.default_rng(1400), split, 1400) == drawn[1400]


# Scenes


def test_a_scene_depends_on_its_number_alone(small_bank):
    whole = draw(small_bank)
    assert same(whole, [*draw(small_bank, stop=3), *draw(small_bank, start=3)])
    assert not same(whole, draw(small_bank, scenes=dataclasses.replace(SMALL, seed=1)))
    val = draw(small_bank, "val", 5)
    assert {entry["vendor"] for one in val for entry in one.meta["objects"]} == {"fluent"}
    assert {entry["vendor"] for one in whole for entry in one.meta["objects"]} == {"google", "twitter"}


def test_splits_of_version_2_show_what_they_are_for(small_bank_2):
    shown = {split: draw(small_bank_2, split, 40, scenes=SMALL_2) for split in ("train", "val", "val_style")}
    vendors = {
        split: {entry["vendor"] for one in those for entry in one.meta["objects"]} for split, those in shown.items()
    }
    assert vendors["train"] == vendors["val"] == {"google", "twitter", "noto-v1", "emojione", "emojione-v1"}
    assert vendors["val_style"] == {"fluent", "openmoji"}
    for those in shown.values():  # nobody is shown with an emoji that he does not draw
        assert all(
            entry["vendor"] in ("google", "twitter", "fluent", "openmoji")
            for one in those
            for entry in one.meta["objects"]
            if entry["emoji"] in ("dog", "relaxed")
        )
    keys = [one.key for those in shown.values() for one in those]
    assert len(set(keys)) == len(keys) and not same(shown["val"], shown["val_style"])
    assert same(shown["val"][3:5], draw(small_bank_2, "val", 5, start=3, scenes=SMALL_2))


def test_a_bank_of_version_1_is_refused_for_version_2(small_bank):
    bank, digest = read_bank(small_bank[0])
    with pytest.raises(
        DataError, match=r"no sprites by noto-v1, emojione, emojione-v1, openmoji: .*--recipe-version 1"
    ):
        describe(SMALL_2, bank, digest=digest, shard_size=5, command="")
    assert describe(SMALL, bank, digest=digest, shard_size=5, command="").recipe.keys() == {
        *("builder", "version", "train_samples", "val_samples", "size", "seed", "frequency", "shard_size", "bank"),
        *("pillow", "numpy"),
    }


def test_backgrounds_of_validation_are_made_of_its_own_photographs():
    """Of a black photograph and with no textures every background is black, or white where colors are inverted."""
    black = [Image.new("RGB", (400, 300))]
    rng = np.random.default_rng(0)
    squares = [varied_square(rng, black, 96, textures=False) for _ in range(60)]
    assert all(square.shape == (96, 96, 3) and square.dtype == np.float32 for square in squares)
    assert {float(square.min()) for square in squares} <= {0.0, 255.0} | {
        float(square.min())
        for square in squares
        if np.ptp(square) > 0  # blends of the two
    }
    assert sum(np.ptp(square) > 0 for square in squares) < 15
    textured = [varied_square(rng, black, 96, textures=True) for _ in range(200)]
    assert 0.15 < np.mean([np.ptp(square) > 30 for square in textured]) < 0.4


def test_masks_are_tight_and_later_objects_hide_earlier_ones(tmp_path):
    """White sprites on black: what is more than half white is labeled, and no more."""
    shape = np.zeros((SIDE, SIDE, 4), np.uint8)
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).polygon([(20, 30), (240, 90), (120, 230)], fill=255)
    shape[:] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))[..., None]
    bank = Bank(
        classes=[
            Emoji(code=str(k), name=str(k), category="", subcategory=str(k % 3), mirrors=True) for k in range(600)
        ],
        sprites={vendor: np.repeat(shape[None], 600, 0) for vendor in ("google", "twitter", "fluent")},
        credits=dict.fromkeys(("google", "twitter", "fluent"), "none"),
        photographs=photographs(3, color=0),
    )
    write_bank(tmp_path / "bank.tar", bank)
    scenes = Scenes(val_samples=40, recipe_version=1)
    samples = draw((tmp_path / "bank.tar", file_sha256(tmp_path / "bank.tar")), "val", 40, scenes=scenes)
    wrong, moved, ids, ignored = 0, 0, set(), 0
    for sample in samples:
        objects = sample.meta["objects"]
        ids |= set(np.unique(sample.mask).tolist())
        ignored += int((sample.mask == IGNORE_ID).any())
        # Every object has a brightness of its own, 0.64 to 1 of white after noise.
        bright = sample.image.max(-1) > 110
        wrong += (bright != (sample.mask > 0)).sum()
        moved += (bright != (np.roll(sample.mask, 1, 0) > 0)).sum()
        assert {entry["class"] for entry in objects if entry["named"]} == set(np.unique(sample.mask).tolist()) - {
            0,
            IGNORE_ID,
        }
        # Nothing is drawn over the last object, so its box is the tight box of what is labeled.
        left, top, right, bottom = objects[-1]["box"]
        cells = sample.mask[top:bottom, left:right] == objects[-1]["class"]
        assert objects[-1]["visible"] == 1 and cells.any(0).all() and cells.any(1).all() and 0.2 < cells.mean() < 0.8
        for entry in objects:
            assert entry["named"] or entry["visible"] < NAMEABLE
    total = 40 * 256 * 256
    assert wrong / total < 0.004 and moved > 2 * wrong
    assert ignored and max(ids - {IGNORE_ID}) > 500
    write_shard(tmp_path / "val-000000.tar", samples, num_classes=601)


def test_photographs_of_val_are_its_own():
    all_nine = [Photograph(name=name, credit="", sha256="", image=Image.new("RGB", (9, 9))) for _, name, _ in PACKAGED]
    val = [one.name for one in photographs_of("val", all_nine)]
    assert val == ["coffee.png", "flower.jpg", "brick.png"]
    assert {one.name for one in photographs_of("train", all_nine)} == {one.name for one in all_nine} - set(val)
    assert photographs_of("train", all_nine[:2]) == photographs_of("val", all_nine[:2]) == all_nine[:2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_samples": 0},
        {"val_samples": 0},
        {"size": 95},
        {"seed": -1},
        {"val_style_samples": 0},
        {"recipe_version": 3},
        {"frequency": "often"},
        {"shard_size": 0},
        {"processes": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} = {value!r}: expected "):
        emoji.Arguments(out="unused", **wrong)


# The builders

BUILD = {"train_samples": 7, "val_samples": 5, "size": 96, "shard_size": 3, "processes": 1, "recipe_version": 1}


@pytest.fixture(scope="module")
def built(small_packages, tmp_path_factory):
    """A build from tarballs, with the packaged photographs."""
    folder, packages = small_packages
    work = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 1, dataclasses.replace(RECIPES[1], pictures=packages))
        arguments = emoji.Arguments(out=str(work / "set"), bank=work / "bank.tar", tarballs=folder, **BUILD)
        info = emoji.build_emoji(arguments)
    return arguments, info


def test_a_build_from_tarballs(built):
    arguments, info = built
    out = Path(arguments.out)
    assert info.num_classes == len(CLASSES) + 1 and info.classes[0] == "background" and info.background == 0
    assert set(info.classes[1:]) == CLASSES
    assert (info.num_samples("train"), info.num_samples("val")) == (7, 5) and len(info.shards("train")) == 3
    attribution = (out / "ATTRIBUTION.md").read_text()
    for word in ("Apache License 2.0", "CC BY 4.0", "MIT", "danielbuechele", "NASA", "Rachel Michetti", "CC BY 2.0"):
        assert word in attribution and word in info.license
    assert (
        attribution.count("linolafett") == 1
        and "| background: coffee.png | val |" in attribution
        and "| sprites: google | train |" in attribution
    )
    with tarfile.open(out / "val-000000.tar") as tar:
        names = tar.getnames()
        assert names[0] == "val-0000000.jpg"
        assert Image.open(io.BytesIO(tar.extractfile("val-0000000.jpg").read())).format == "JPEG"
        assert Image.open(io.BytesIO(tar.extractfile("val-0000000.mask.png").read())).mode.startswith("I")


BARE = (
    "torch",
    "torchvision",
    "webdataset",
    "timm",
    "pyarrow",
    "tqdm",
    "tyro",
    "ray",
    "mlflow",
    "sklearn",
    "skimage",
    "scipy",
    "pandas",
    "matplotlib",
    "fontTools",
)


def test_numpy_and_pillow_draw_the_same_from_the_bank(built, tmp_path, capsys):
    arguments, info = built
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {BARE!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "platform")])}
    blocked = subprocess.run([sys.executable, "-c", "import pyarrow"], env=environment, capture_output=True, text=True)
    assert "pyarrow is blocked" in blocked.stderr
    out = tmp_path / "set"
    command = [sys.executable, ROOT / "datasets" / "emoji_shards.py", "--bank", arguments.bank, "--out", out]
    for name, value in {**BUILD, "processes": 2}.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert info.digest in done.stdout and "labeled in at least" in done.stdout
    assert read_info(out).recipe == info.recipe
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "is up to date" in again.stdout
    damaged = out / "val-000000.tar"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:])
    (out / "dataset.json").write_text("{")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "build the data set again with --rebuild" in refused.stderr
    rebuilt = subprocess.run([*command, "--rebuild"], env=environment, capture_output=True, text=True, timeout=300)
    assert rebuilt.returncode == 0 and info.digest in rebuilt.stdout and damaged.read_bytes() == whole
    assert (out / "ATTRIBUTION.md").read_text() == (Path(arguments.out) / "ATTRIBUTION.md").read_text()

    # Where pyarrow is, the same command completes the index, and so does the full builder.
    assert not (out / "index.parquet").exists()
    shutil.copytree(out, tmp_path / "other")
    scenes = {name: value for name, value in BUILD.items() if name not in ("shard_size", "processes")}
    write_emoji(arguments.bank, Scenes(**scenes), tmp_path / "other", shard_size=BUILD["shard_size"], processes=1)
    assert "is up to date" in capsys.readouterr().out
    assert read_index(tmp_path / "other").to_pylist() == read_index(arguments.out).to_pylist()
    built_again_as_verify_says(tmp_path / "other", capsys, tmp_path)
    emoji.build_emoji(dataclasses.replace(arguments, out=str(out)))
    assert "is up to date" in capsys.readouterr().out
    assert read_index(out).to_pylist() == read_index(arguments.out).to_pylist()
    assert not (out / "index.jsonl").exists()


def test_a_build_of_version_2(small_packages, small_drawings, tmp_path, capsys):
    (folder, packages), (drawn_in, drawings) = small_packages, small_drawings
    tarballs = tmp_path / "tarballs"
    shutil.copytree(folder, tarballs)
    shutil.copytree(drawn_in, tarballs, dirs_exist_ok=True)
    recipe = dataclasses.replace(RECIPES[2], pictures=packages, drawings=drawings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 2, recipe)
        build = BUILD | {"recipe_version": 2, "val_style_samples": 4}
        arguments = emoji.Arguments(out=str(tmp_path / "set"), bank=tmp_path / "bank.tar", tarballs=tarballs, **build)
        info = emoji.build_emoji(arguments)
        printed = capsys.readouterr().out
        write_emoji(tmp_path / "bank.tar", SMALL_2, tmp_path / "again", shard_size=3, processes=1)
    assert {split: info.num_samples(split) for split in info.splits} == {"train": 7, "val": 5, "val_style": 4}
    assert info.recipe["version"] == 2 and info.recipe["val_style_samples"] == 4
    assert "samples of val;" in printed and "samples of val_style;" in printed
    attribution = (tmp_path / "set" / "ATTRIBUTION.md").read_text()
    for line in ("| sprites: emojione-v1 | train, val |", "| sprites: openmoji | val_style |", "CC BY-SA 4.0"):
        assert line in attribution
    assert read_info(tmp_path / "again").digest == info.digest
    assert read_index(arguments.out, "val_style").num_rows == 4


def test_rows_of_another_build_do_not_become_the_index(built, tmp_path):
    arguments, _ = built
    scenes = Scenes(train_samples=2, val_samples=2, size=96, recipe_version=1)
    write_emoji(arguments.bank, scenes, tmp_path, shard_size=3, processes=1)
    emoji.build_emoji(dataclasses.replace(arguments, out=str(tmp_path)))
    assert read_index(tmp_path).num_rows == 12 and not (tmp_path / "index.jsonl").exists()
    with pytest.raises(DataError, match=r"ATTRIBUTION\.md': expected a new or empty folder"):
        write_emoji(arguments.bank, scenes, tmp_path, shard_size=3, processes=1)


def test_a_bank_stands_for_its_photographs(built, tmp_path):
    arguments, info = built
    assert emoji.build_emoji(dataclasses.replace(arguments, tarballs=Path("nowhere"))).digest == info.digest
    folder = tmp_path / "photographs"
    folder.mkdir()
    with pytest.raises(DataError, match=r"photographs holds no photographs; expected .*\.jpg"):
        in_folder(folder)
    photographs(1)[0].image.save(folder / "b.jpg")
    (folder / "copyright").write_text("by A. Nobody,\n CC0")
    assert [(one.name, one.credit) for one in in_folder(folder)] == [("b.jpg", "by A. Nobody, CC0")]
    with pytest.raises(DataError, match=r"bank\.tar was made with other photographs than those in .*photographs"):
        emoji.build_emoji(dataclasses.replace(arguments, backgrounds=folder))
    (folder / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a photograph"):
        in_folder(folder)


def test_a_bank_that_is_deleted_is_made_again_as_the_messages_say(built, small_packages, tmp_path):
    """Because it is damaged, or because it holds other photographs; a new bank or none of one's own helps there, too."""
    arguments, info = built
    own = tmp_path / "my photographs"
    own.mkdir()
    for number, photograph in enumerate(photographs(2)):
        photograph.image.save(own / f"{number}.jpg")
    bank = tmp_path / "my bank.tar"
    bank.write_bytes(arguments.bank.read_bytes()[:100_000])
    mine = dataclasses.replace(arguments, bank=bank, out=str(tmp_path / "set"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 1, dataclasses.replace(RECIPES[1], pictures=small_packages[1]))
        with pytest.raises(DataError, match=r"is not a complete bank .*; delete it, and") as error:
            emoji.build_emoji(mine)
        said = shlex.split(str(error.value).partition("delete it, and ")[2])
        assert said[:3] == ["datasets/emoji.py", "--bank", str(bank)]
        bank.unlink()
        assert emoji.build_emoji(mine).digest == info.digest

        whole = bank.read_bytes()
        with_own = dataclasses.replace(mine, backgrounds=own)
        with pytest.raises(DataError, match="delete it, or name a new file with --bank, or omit --backgrounds"):
            emoji.build_emoji(with_own)
        assert emoji.build_emoji(dataclasses.replace(with_own, backgrounds=None)).digest == info.digest
        named = emoji.build_emoji(dataclasses.replace(with_own, bank=tmp_path / "new.tar", out=str(tmp_path / "named")))
        bank.unlink()
        deleted = emoji.build_emoji(with_own)
        assert named.digest == deleted.digest != info.digest and bank.read_bytes() != whole
        assert emoji.build_emoji(with_own).digest == deleted.digest


def test_command_line(built, tmp_path):
    arguments, info = built
    script = ROOT / "datasets" / "emoji.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    for field in dataclasses.fields(emoji.Arguments):
        assert "--" + field.name.replace("_", "-") in shown
    words = " ".join(shown.replace("│", " ").split())
    assert (
        "the rarest class is then placed 16 times" in words
        and "Every third of all photographs is kept for val" in words
    )
    command = [sys.executable, script, "--bank", arguments.bank, "--out", tmp_path / "set"]
    for name, value in BUILD.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert info.digest in printed


def test_how_often_val_shows_the_rarest_class():
    assert coverage([0, 7, 5, 9], "val", 10) == "every class is labeled in at least 5 samples of val"
    line = coverage([99, 7, 4, 9], "val_style", 10)
    assert "at least 4 samples of val_style; at least 5 are advised: raise val_style_samples = 10" in line


# The real packages


@pytest.fixture(scope="module")
def real():
    """The published tarballs: those in runs/emoji, else brought there by npm; skips where neither works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("npm_config_fetch_retries", "0")
        patch.setenv("npm_config_fetch_timeout", "60000")
        try:
            tarballs = obtain(emoji.WORK)
        except DataError as error:
            if "npm" not in str(error) or "sha256" in str(error):
                raise
            pytest.skip(f"the real packages cannot be had here: {error}")
    return tarballs


@pytest.fixture(scope="module")
def real_drawings(real):
    """The published tarballs of SVG, as `real`, and the codes of all classes."""
    try:
        tarballs = obtain(emoji.WORK, DRAWINGS)
    except DataError as error:
        if "npm" not in str(error) or "sha256" in str(error):
            raise
        pytest.skip(f"the real packages cannot be had here: {error}")
    pictures = {package.vendor: read_images(real[package.vendor], package) for package in PACKAGES}
    chosen = base_emoji(read_table(real["google"]), pictures.values())
    codes = [one.code for one in chosen]
    pairs = [pair for vendor, files in pictures.items() for pair in twins(sprites_of(files, codes, vendor))]
    return tarballs, [one.code for one in merge_twins(chosen, pairs)]


def test_the_real_packages_give_1536_classes(real):
    table = read_table(real["google"])
    assert len(json.loads(table)) == 1911
    pictures = {package.vendor: read_images(real[package.vendor], package) for package in PACKAGES}
    chosen = base_emoji(table, pictures.values())
    assert len(chosen) == 1816 - 253
    pairs = {}
    for vendor, files in pictures.items():
        pairs[vendor] = twins(sprites_of(files, [one.code for one in chosen], vendor))
    assert {vendor: len(found) for vendor, found in pairs.items()} == {"google": 1, "twitter": 59, "fluent": 5}
    classes = merge_twins(chosen, [pair for found in pairs.values() for pair in found])
    assert len(classes) == 1536
    mirrors = {one.name: one.mirrors for one in classes}
    for name in ("dog", "grinning", "bike", "sweet_potato", "man-running", "rainbow"):
        assert mirrors[name], name
    for name in (
        *("arrow_right", "one", "abc", "clock3", "point_left", "point_right", "mag", "mag_right", "first_quarter_moon"),
        *(
            "chart_with_upwards_trend",
            "japan",
            "100",
            "convenience_store",
            "sos",
            "aries",
            "left-facing_fist",
            "musical_score",
        ),
    ):
        assert not mirrors[name], name
    assert [one.name for one in by_frequency(classes)[:3]] == ["sagittarius", "scorpion", "slightly_smiling_face"]


def test_the_real_drawings_cover_most_classes(real_drawings):
    tarballs, codes = real_drawings
    covered = {
        vendor: sum(code in files for code in codes) for vendor, files in read_drawings(tarballs, DRAWINGS).items()
    }
    assert covered == {"noto-v1": 1159, "emojione": 1036, "emojione-v1": 881, "openmoji": 1536}
