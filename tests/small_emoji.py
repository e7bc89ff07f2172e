"""Small packages of emoji in the exact layout of the real ones, the banks made of them, and scenes drawn from those."""

import dataclasses
import io
import json
import tarfile

import numpy as np
from PIL import Image, ImageDraw

from kiloseg.data.writing.shard import file_sha256
from synthetic.emoji_bank import make_bank, write_bank
from synthetic.emoji_drawings import NAMES, icon_name
from synthetic.emoji_packages import DRAWINGS, PACKAGES, obtain
from synthetic.emoji_photographs import Photograph
from synthetic.emoji_scenes import Scenes, make_scenes

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


def write_packages(folder):
    """Tarballs of three vendors in a folder, and their descriptions."""
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


def write_small_bank(path, small_packages):
    """The file of a bank of 9 classes, and its digest."""
    folder, packages = small_packages
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


def write_drawings(folder):
    """Tarballs of the vendors that draw in SVG, in a folder, and their descriptions. All but OpenMoji lack the dog and one of
    the relaxed face, and Emoji One draws the fox as it draws the cat."""
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


def write_small_bank_2(path, small_packages, small_drawings):
    """The file of a bank of all seven vendors, and its digest."""
    (folder, packages), (drawn_in, drawings) = small_packages, small_drawings
    tarballs = obtain(folder, packages) | obtain(drawn_in, drawings)
    write_bank(path, make_bank(tarballs, photographs(), packages, drawings))
    return path, file_sha256(path)
