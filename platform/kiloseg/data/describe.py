"""Describes a data set: its samples, its sizes, how often each class occurs, and what it looks like.

    python -m kiloseg.data.describe DIR --out FOLDER

It reads the index, and a few samples for the sheet of pictures.
"""

from __future__ import annotations

import sys
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as pc
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from kiloseg.data.codec import IGNORE_ID, decode_image, decode_mask
from kiloseg.data.description import DatasetInfo, read_info
from kiloseg.data.index import class_samples, read_index
from kiloseg.data.raw import raw_samples
from kiloseg.plotting import COLORS, class_colors
from kiloseg.storage.commands import shell
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder

SHOWN = 8
"""Number of lines in a list of classes."""
COLUMNS = 4
"""Number of pictures side by side on the sheet."""
NAMED = 5
"""Number of classes named under a picture: the ones with the most pixels."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Prints what a data set contains; with --out, it also draws frequency.png and samples.png."""

    directory: tyro.conf.Positional[str]
    """Folder that contains dataset.json and index.parquet, or its URL."""
    out: Path | None = None
    """Folder to write the two figures to."""
    rare: int = 10
    """A class is called rare if it occurs in fewer than this many samples of a split."""
    pictures: int = 12
    """Number of samples on the sheet; they come from the first, middle and last shard of a split."""
    split: str | None = None
    """Split whose frequencies are listed and whose samples are drawn. The default is the first one."""

    def __post_init__(self) -> None:
        for name in ("rare", "pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")


def describe(directory: str, *, split: str | None, rare: int) -> str:
    """Returns the text of the description: all splits with their sizes, and the class frequencies of one split.

    Raises:
        DataError: dataset.json or index.parquet is missing or damaged, or there is no such split.
    """
    info = read_info(directory)
    split = _chosen(info, directory, split)
    lines = [f"{info.name}: {info.num_classes} classes, digest {info.digest}"]
    for name in info.splits:
        table = read_index(directory, name)
        counts = class_samples(table, info.num_classes)
        shards = info.shards(name)
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        lines += [
            f"{name}: {table.num_rows} samples, {len(shards)} shards, {megabytes:.1f} MB",
            f"  {_sizes(table)}",
            f"  {_spread(counts)}",
            f"  rare (fewer than {rare} samples): {((counts > 0) & (counts < rare)).sum()} classes; "
            f"in no sample: {(counts == 0).sum()}",
        ]
    table = read_index(directory, split)
    counts, pixels = class_samples(table, info.num_classes), class_pixels(table, info.num_classes)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    head, tail = order[:SHOWN].tolist(), order[SHOWN:][-SHOWN:].tolist()
    total = max(int(pixels.sum()), 1)
    for title, ids in ((f"most frequent classes of {split}", head), (f"least frequent classes of {split}", tail)):
        if ids:
            lines += [title, "      id  samples  pixels"]
            lines += [f"  {c:6d} {counts[c]:8d} {pixels[c] / total:7.3%}  {info.classes[c]}" for c in ids]
    absent = np.flatnonzero(counts == 0).tolist()
    if absent:
        names = ", ".join(f"{c} {info.classes[c]}" for c in absent[:SHOWN])
        lines.append(f"classes in no sample of {split}: {names}" + (", ..." if len(absent) > SHOWN else ""))
    return "\n".join(lines)


def _chosen(info: DatasetInfo, directory: str, split: str | None) -> str:
    if split is None:
        if not info.splits:
            raise DataError(f"data set {info.name} has no splits; build it again: {info.rebuild_command(directory)}")
        return next(iter(info.splits))
    info.shards(split)
    return split


def class_pixels(table: pyarrow.Table, num_classes: int) -> np.ndarray:
    """Returns the number of pixels of each class over all samples of an index: int64 of shape (C,)."""
    ids = table["class_ids"].combine_chunks().flatten().to_numpy()
    pixels = table["class_pixels"].combine_chunks().flatten().to_numpy()
    counts = np.zeros(num_classes, np.int64)
    np.add.at(counts, ids, pixels)
    return counts


def _sizes(table: pyarrow.Table) -> str:
    if not table.num_rows:
        return "no images"
    kinds = table.group_by(["height", "width"]).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
    sizes = [f"{row['height']} x {row['width']} ({row['count_all']})" for row in kinds.slice(0, 3).to_pylist()]
    ranges = [
        f"{name} {pc.min(table[name])} to {pc.max(table[name])}, median {np.median(table[name].to_numpy()):g}"
        for name in ("height", "width")
    ]
    return f"images: {ranges[0]}; {ranges[1]}; {kinds.num_rows} sizes, most often {', '.join(sizes)}"


def _spread(counts: np.ndarray) -> str:
    present = counts[counts > 0]
    if not len(present):
        return "no class occurs"
    ten, half, ninety = np.percentile(present, [10, 50, 90])
    return (
        f"samples a class: {present.min()} to {present.max()}, median {half:g}, from {ten:g} to {ninety:g} for 8 classes "
        f"in 10; {len(present)} classes occur"
    )


def frequency_figure(counts: dict[str, np.ndarray], *, rare: int, title: str) -> Figure:
    """Draws how many samples each class occurs in.

    The left plot is by rank, the right one is a histogram. Both are logarithmic, with one color per split.

    Args:
        counts: number of samples of each class, of shape (C,), by split.
        rare: where the line between rare and other classes is drawn.
        title: the title of the figure.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_rank, histogram = figure.subplots(1, 2)
    most = max((int(split.max()) for split in counts.values()), default=1) or 1  # it is 0 if all pixels are ignored
    bins = np.unique(np.geomspace(1, most + 1, 25).round()) - 0.5  # no bin lies between two whole numbers
    for number, (name, split) in enumerate(counts.items()):
        present = np.sort(split[split > 0])[::-1]
        color = COLORS[number % len(COLORS)]
        absent = f", {(split == 0).sum()} absent" if (split == 0).any() else ""
        by_rank.plot(np.arange(1, len(present) + 1), present, color=color, label=f"{name}{absent}")
        histogram.hist(present, bins=bins, histtype="stepfilled", alpha=0.45, color=color, label=name)
    by_rank.axhline(rare, color="black", linewidth=0.8, linestyle=":")
    histogram.axvline(rare, color="black", linewidth=0.8, linestyle=":", label=f"rare: below {rare}")
    by_rank.set(xlabel="rank of the class", ylabel="samples with the class")
    histogram.set(xlabel="samples with the class", ylabel="classes")
    for axes in (by_rank, histogram):
        if any(
            split.any() for split in counts.values()
        ):  # if all pixels are ignored, there is nothing to take a logarithm of
            axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, parse_math=False)
    return figure


def read_samples(
    directory: str, info: DatasetInfo, split: str, number: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns key, image (H, W, 3) and mask (H, W) of samples from the start of the first, middle and last shard.

    Raises:
        DataError: a shard or sample cannot be read; kiloseg.data.verify gives the details.
    """
    shards = info.shards(split)
    chosen = [shards[n] for n in sorted({0, len(shards) // 2, len(shards) - 1})]
    folder = open_folder(directory)
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for position, shard in enumerate(chosen):
        wanted = (number - len(found)) // (len(chosen) - position)
        try:
            with folder.open(shard.name) as file:
                for (key, parts), _ in zip(raw_samples(file), range(wanted), strict=False):
                    image = decode_image(parts["jpg"] if "jpg" in parts else parts["png"])
                    found.append((key, image, decode_mask(parts["mask.png"])))
        except (KeyError, OSError, EOFError, SyntaxError, ValueError, tarfile.TarError) as error:
            raise DataError(
                f"{folder.at(shard.name)} cannot be read ({error}); run {shell('kiloseg', 'verify', folder.location)}"
            ) from error
    return found


def contact_sheet(samples: list[tuple[str, np.ndarray, np.ndarray]], info: DatasetInfo, *, title: str) -> Figure:
    """Draws images overlaid with their masks in the colors of the classes, and names the largest classes below each.

    White pixels are ignored, and the background is left unchanged.
    """
    colors = class_colors(info.num_classes, info.background)
    rows = -(-len(samples) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 4.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (key, image, mask) in zip(grid.flat, samples, strict=False):
        labels = np.where(mask == IGNORE_ID, info.num_classes, mask)
        strength = np.full(labels.shape, 0.55)
        if info.background is not None:
            strength[labels == info.background] = 0
        gray = image.mean(axis=2, keepdims=True)  # gray under a color, so that the color matches the legend
        below = np.where(strength[..., None] > 0, gray, image)
        overlay = below * (1 - strength[..., None]) + colors[labels] * strength[..., None]
        axes.imshow(overlay.astype(np.uint8), interpolation="nearest")
        axes.set_title(key, fontsize=8, parse_math=False)
        ids, pixels = np.unique(mask[(mask != IGNORE_ID) & (mask != info.background)], return_counts=True)
        order = np.argsort(-pixels, kind="stable")[:NAMED]
        for c in ids[order].tolist():  # thousands of colors look alike, so the numbers tell classes apart
            y, x = _inside(mask == c)
            outline = [withStroke(linewidth=2, foreground="white")]
            axes.text(x, y, str(c), fontsize=7, ha="center", va="center", path_effects=outline)
        names = [Patch(facecolor=colors[c] / 255, label=f"{c} {_cut(info.classes[c])}") for c in ids[order].tolist()]
        if len(ids) > NAMED:
            names.append(Patch(facecolor="none", label=f"and {len(ids) - NAMED} more"))
        if names:
            legend = axes.legend(
                handles=names, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=7, frameon=False, borderpad=0
            )
            for text in legend.get_texts():
                text.set_parse_math(False)  # names may contain dollar signs
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _inside(where_HW: np.ndarray) -> tuple[int, int]:
    """Returns the row and column of the region's pixel that is closest to the mean position of its pixels."""
    cells = np.argwhere(where_HW)
    nearest = cells[np.abs(cells - np.median(cells, axis=0)).sum(1).argmin()]
    return int(nearest[0]), int(nearest[1])


def _cut(name: str) -> str:
    return name if len(name) <= 38 else name[:37] + "\N{HORIZONTAL ELLIPSIS}"


def main(arguments: Arguments) -> int:
    """Prints the description and draws the figures. Returns the exit code."""
    try:
        print(describe(arguments.directory, split=arguments.split, rare=arguments.rare))
        if arguments.out is None:
            return 0
        info = read_info(arguments.directory)
        split = _chosen(info, arguments.directory, arguments.split)
        samples = read_samples(arguments.directory, info, split, arguments.pictures)
    except (ConnectionError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    counts = {name: class_samples(read_index(arguments.directory, name), info.num_classes) for name in info.splits}
    figures = {
        "frequency.png": frequency_figure(
            counts, rare=arguments.rare, title=f"{info.name}: {info.num_classes} classes, how many samples each is in"
        ),
        "samples.png": contact_sheet(samples, info, title=f"{info.name}, {split}: {len(samples)} samples"),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # emoji in names are drawn as boxes
            figure.savefig(arguments.out / name, dpi=110, bbox_inches="tight")
        print(f"drawn: {arguments.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
