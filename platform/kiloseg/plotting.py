"""Draws the figures of a study with matplotlib, from arrays and rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def curves(
    rows: Sequence[Mapping[str, Any]], *, x: str, y: str, by: str, x_label: str, y_label: str, title: str
) -> Figure:
    """Plots `rows` as points, with a color and marker per value of `by` and a line through the best `y` at each `x`.

    Rows without a finite `y` are left out. Rows whose "complete" is False (stopped early) are drawn hollow and do not
    count for the line. x has a base-2 logarithmic axis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    rows = [row for row in rows if row.get(y) is not None and np.isfinite(row[y])]
    for index, group in enumerate(sorted({str(row[by]) for row in rows})):
        members = [row for row in rows if str(row[by]) == group]
        complete = [(row[x], row[y]) for row in members if row.get("complete", True)]
        best = {position: max(value for other, value in complete if other == position) for position, _ in complete}
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
        axes.plot(sorted(best), [best[position] for position in sorted(best)], alpha=0.5, color=style["color"])
        axes.plot([], [], linestyle="", markersize=7, label=group, **style)
        for row in members:
            inside = style["color"] if row.get("complete", True) else "white"
            axes.plot(row[x], row[y], linestyle="", markersize=7, markerfacecolor=inside, **style)
    if rows:
        positions = sorted({row[x] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(positions, [f"{position:g}" for position in positions])
        axes.minorticks_off()
        axes.legend(title=by, frameon=False)
    if any(not row.get("complete", True) for row in rows):
        title += " (hollow: stopped early)"
    axes.set_ylim(0, 1.08 * max((row[y] for row in rows), default=1.0) or 1.0)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def spread(
    rows: Sequence[Mapping[str, Any]], *, x: str, y: str, by: str, x_label: str, y_label: str, title: str
) -> Figure:
    """Plots the mean of `y` at each `x`, a line per value of `by`, shaded from minimum to maximum; rows are dots.

    Rows whose `y` is None or NaN, such as runs out of memory, are crosses at the lower edge. Both axes are logarithmic because
    heads are compared by ratios and mIoU falls over orders of magnitude; y starts at 0 if no value is above 0.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes: Axes = figure.add_subplot()
    for index, group in enumerate(dict.fromkeys(str(row[by]) for row in rows)):
        members = [row for row in rows if str(row[by]) == group]
        values: dict[float, list[float]] = {}
        for row in members:
            if row[y] is not None and np.isfinite(row[y]):
                values.setdefault(row[x], []).append(row[y])
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        positions = sorted(values)
        means = [float(np.mean(values[position])) for position in positions]
        axes.plot(positions, means, color=color, marker=marker, markersize=6, label=group)
        lows, highs = ([function(values[position]) for position in positions] for function in (min, max))
        axes.fill_between(positions, lows, highs, color=color, alpha=0.15, linewidth=0)
        for position in positions:
            dots = values[position]
            axes.plot([position] * len(dots), dots, color=color, marker=marker, markersize=2.5, linestyle="")
        missing = sorted({row[x] for row in members} - values.keys())
        # The groups' crosses are side by side, so that none hides another.
        heights = [0.02 + 0.03 * index] * len(missing)
        axes.plot(
            missing,
            heights,
            color=color,
            marker="x",
            linestyle="",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    positions = sorted({row[x] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(positions, [f"{position:,g}" for position in positions])
    axes.minorticks_off()
    if any(row[y] is not None and row[y] > 0 for row in rows):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
    else:
        axes.set_ylim(bottom=0)
    if any(row[y] is None or not np.isfinite(row[y]) for row in rows):
        title += " (x: out of memory)"
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def ranking(values: Mapping[str, Sequence[float]], *, label: str, title: str) -> Figure:
    """Draws a row per name, from the top, with its values as dots and their mean as a bar from 0.

    Args:
        values: numbers by name; a name may have none.
        label: the label of the axis.
        title: the title of the figure.
    """
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(values)), layout="constrained")
    axes: Axes = figure.add_subplot()
    for row, numbers in enumerate(values.values()):
        if numbers:
            axes.barh(row, float(np.mean(numbers)), height=0.6, color=COLORS[0], alpha=0.35)
            axes.plot(numbers, [row] * len(numbers), linestyle="", marker="o", markersize=4, color=COLORS[0])
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set(xlabel=label, title=title)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def tradeoff(
    points: Sequence[tuple[float, float, bool]], front: Sequence[tuple[float, float]], *, x_label: str, title: str
) -> Figure:
    """Plots mIoU against a cost: trials as dots, and the Pareto front as steps, below which every trial is beaten.

    Args:
        points: cost, mIoU and whether the trial ran to its end; trials that were stopped early are hollow.
        front: cost and mIoU of the trials on the front, by increasing cost.
        x_label: the label of the cost.
        title: the title of the figure.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    for complete in (True, False):
        members = [(cost, miou) for cost, miou, ended in points if ended == complete]
        inside = COLORS[0] if complete else "white"
        label = "trial" if complete else "trial that was stopped early"
        if members:
            style: dict[str, Any] = {"color": COLORS[0], "markerfacecolor": inside, "markersize": 6}
            axes.plot(*zip(*members, strict=True), linestyle="", marker="o", label=label, **style)
    if front:
        steps: dict[str, Any] = {"color": COLORS[1], "marker": "D", "markersize": 6, "drawstyle": "steps-post"}
        axes.plot(*zip(*front, strict=True), label="Pareto front", **steps)
        axes.legend(frameon=False)
    axes.set_ylim(bottom=0)
    axes.set(xlabel=x_label, ylabel="validation mIoU", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def peaks(rows: Sequence[Mapping[str, Any]], *, budget_gib: float, title: str) -> Figure:
    """Plots peak memory against class count, both logarithmic: a color per head, training solid and evaluation dashed.

    Args:
        rows: rows with "head", "num_classes", "train_gib", "eval_gib" and, where it was measured, "measured_train_gib",
            which is drawn as a hollow marker.
        budget_gib: the memory budget in GiB, drawn as a horizontal line.
        title: the title of the figure.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes: Axes = figure.add_subplot()
    for index, head in enumerate(dict.fromkeys(row["head"] for row in rows)):
        members = sorted((row for row in rows if row["head"] == head), key=lambda row: row["num_classes"])
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
        for name, line in (("train", "-"), ("eval", "--")):
            points = [(row["num_classes"], row[f"{name}_gib"]) for row in members]
            axes.plot(*zip(*points, strict=True), linestyle=line, markersize=5, label=f"{head}, {name}", **style)
        measured = [(row["num_classes"], row["measured_train_gib"]) for row in members if row.get("measured_train_gib")]
        if measured:
            hollow = style | {"linestyle": "", "markersize": 10, "markerfacecolor": "none"}
            axes.plot(*zip(*measured, strict=True), label=f"{head}, train, measured", **hollow)
    axes.axhline(budget_gib, color="#555555", linewidth=1, linestyle=":")
    axes.annotate(
        f"{budget_gib:g} GiB",
        (0.99, budget_gib),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color="#555555",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    positions = sorted({row["num_classes"] for row in rows})
    axes.set_xticks(positions, [f"{position:,}" for position in positions])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set(xlabel="classes", ylabel="peak memory (GiB)", title=title)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def class_colors(num_classes: int, background: int | None) -> np.ndarray:
    """Returns the colors of the classes, uint8 of shape (C + 1, 3).

    Neighboring ids are far apart in hue, the background is gray, and the last color, for ignore (-1), is white.
    """
    ids = np.arange(num_classes)
    golden_ratio = 0.618033988749895
    hsv = np.stack([ids * golden_ratio % 1, 0.55 + 0.4 * (ids % 3) / 2, 0.95 - 0.35 * (ids % 4) / 3], axis=1)
    colors = (matplotlib.colors.hsv_to_rgb(hsv) * 255).astype(np.uint8)
    if background is not None and background < num_classes:
        colors[background] = 70
    return np.concatenate([colors, [[255, 255, 255]]]).astype(np.uint8)


def prediction_sheet(
    samples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    num_classes: int,
    background: int | None,
    title: str,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draws a row per sample: image, labels and prediction, the last two in the same colors. White pixels are ignored.

    With names, each class of the labels is named at its position, and the prediction shows there the class that most of its
    pixels were predicted as: black if that is right, red if not.

    Args:
        samples: uint8 images (H, W, 3), int labels (H, W) with -1 for ignore, int predictions (H, W).
        num_classes: C.
        background: the id of the background, drawn gray, or None.
        title: the title of the figure.
        names: the names of the C classes; with them the figure is twice as large.
    """
    samples = list(samples)
    colors = class_colors(num_classes, background)
    side = 2.2 if names is None else 4.4
    figure = Figure(figsize=(3 * side, side * len(samples) + 0.4), layout="constrained")
    grid = figure.subplots(len(samples), 3, squeeze=False)
    for row, (image, labels, predicted) in zip(grid, samples, strict=True):
        known = labels >= 0
        right = (predicted == labels)[known].mean() if known.any() else float("nan")
        for axes, picture, heading in zip(
            row,
            (image, colors[labels], colors[predicted]),
            ("image", "labels", f"prediction, {right:.0%} right"),
            strict=True,
        ):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(heading, fontsize=9)
            axes.set_axis_off()
        if names is not None:
            hits, count = _write_names(row[1], row[2], labels, predicted, names, background)
            row[2].set_title(f"prediction, {hits} of {count} objects right", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _write_names(
    labeled: Axes,
    predicting: Axes,
    labels: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    background: int | None,
) -> tuple[int, int]:
    """Writes class names on both pictures.

    Returns how many classes of the labels are predicted right on most of their pixels, and how many there are, without the
    background.
    """
    shown = [label for label in np.unique(labels).tolist() if label not in (-1, background)]
    hits = 0
    for label in shown:
        rows, columns = np.nonzero(labels == label)
        taken_for = int(np.bincount(predicted[rows, columns]).argmax())
        hits += taken_for == label
        right_color = "black" if taken_for == label else "#c00000"
        for axes, name, color in ((labeled, names[label], "black"), (predicting, names[taken_for], right_color)):
            axes.text(
                float(np.median(columns)),
                float(np.median(rows)),
                name,
                color=color,
                fontsize=6,
                horizontalalignment="center",
                verticalalignment="center",
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
            )
    return hits, len(shown)
