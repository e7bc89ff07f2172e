"""Draws the figures of an evaluation."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kiloseg.plotting import COLORS, prediction_sheet

if TYPE_CHECKING:
    from kiloseg.inference.evaluation_files import Evaluation

DPI = 110


def evaluation_figures(evaluation: Evaluation) -> dict[str, bytes]:
    """Returns the figures of an evaluation as PNG files by name; leaves out those that lack their numbers."""
    iou_C = np.array([np.nan if row["iou"] is None else row["iou"] for row in evaluation.table], dtype=np.float64)
    samples = evaluation.classes.train_samples
    figures = {"iou_of_classes": _sorted_iou(iou_C)}
    if samples is not None:
        figures["iou_by_frequency"] = _by_frequency(iou_C, samples)
    if evaluation.reliability[0].sum():
        figures["reliability"] = _reliability(evaluation.reliability)
    if evaluation.shown:
        figures["samples"] = prediction_sheet(
            evaluation.shown,
            num_classes=len(evaluation.table),
            background=evaluation.classes.background,
            names=evaluation.classes.names,
            title="The first samples",
        )
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def _axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _sorted_iou(iou_C: np.ndarray) -> Figure:
    """Draws the IoU of all classes from the best to the worst, with their mean."""
    known = np.sort(iou_C[np.isfinite(iou_C)])[::-1]
    figure, axes = _axes("IoU of the classes, the best first", "class", "IoU")
    axes.fill_between(np.arange(len(known)), known, step="mid", color=COLORS[0], alpha=0.35, linewidth=0)
    if len(known):
        axes.axhline(known.mean(), color=COLORS[1], linewidth=1, label=f"mean {known.mean():.4f}")
        axes.legend(frameon=False)
    axes.set_ylim(0, 1)
    return figure


def _by_frequency(iou_C: np.ndarray, samples_C: np.ndarray) -> Figure:
    """Draws IoU against the number of training samples, with the mean of each tenth of the classes."""
    figure, axes = _axes("IoU by frequency in training", "training samples with the class", "IoU")
    known = np.isfinite(iou_C)
    x, y = np.maximum(samples_C[known], 1), iou_C[known]
    axes.plot(x, y, linestyle="", marker="o", markersize=3, alpha=0.5, color=COLORS[0])
    tenths = [part for part in np.array_split(np.argsort(x, kind="stable"), 10) if len(part)]
    means = [(float(np.median(x[part])), float(y[part].mean())) for part in tenths]
    axes.plot(
        *zip(*means, strict=True), color=COLORS[1], marker="s", markersize=5, label="mean of a tenth of the classes"
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


def _reliability(reliability: np.ndarray) -> Figure:
    """Draws the share of correct pixels against confidence; dots grow with the number of pixels."""
    pixels, right, confidence = reliability[:, reliability[0] > 0]
    figure, axes = _axes("Confidence and accuracy", "confidence", "share of correct pixels")
    axes.plot([0.5, 1], [0.5, 1], color="#555555", linewidth=1, linestyle=":")
    axes.scatter(confidence, right, s=20 + 300 * pixels / pixels.sum(), color=COLORS[0], alpha=0.7)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(0, 1.02)
    return figure
