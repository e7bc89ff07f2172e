"""Makes the interactive page of a search: one HTML file with its figures, which needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import optuna
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from kiloseg.plotting import COLORS
from kiloseg.tuning.callbacks.settings_text import value_text
from kiloseg.tuning.objectives import MEMORY, MIOU, TIME, Objective, pareto_front, priced
from kiloseg.tuning.search_figures import Section, sections
from kiloseg.tuning.trial_row import TrialRow

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } p { color: #555; }
"""


def search_page(
    rows: Sequence[TrialRow],
    *,
    title: str,
    sampled: optuna.Study | None = None,
    within_gib: float | None = None,
) -> str:
    """Returns the page of a search as HTML.

    Args:
        rows: the trials.
        sampled: the study as Optuna knows it; None: the page has only Pareto fronts.
        title: the title of the page.
        within_gib: memory in GiB that is marked in the figure of memory; None: nothing is marked.
    """
    beaten = "Trials on the line are beaten by no other."
    fronts = [
        Section("mIoU against peak memory", beaten, front_figure(rows, MEMORY, within_gib)),
        Section("mIoU against training time", beaten, front_figure(rows, TIME)),
    ]
    known = [front for front in fronts if front.figure is not None]
    return page(title, [*known, *([] if sampled is None else sections(sampled))])


def page(title: str, shown: Sequence[Section]) -> str:
    """Returns an HTML page with a heading, a sentence and a figure per section, and the code that draws the figures.

    Args:
        title: the title of the page.
        shown: the sections; one without a figure has only its sentence.
    """
    parts = []
    for number, (heading, sentence, figure) in enumerate(shown):
        drawn = "" if figure is None else _drawn(figure, f"figure-{number}")
        parts.append(f"<h2>{html.escape(heading)}</h2>\n<p>{html.escape(sentence)}</p>\n{drawn}")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _drawn(figure: go.Figure, identity: str) -> str:
    figure.update_layout(template="plotly_white")
    config = {"displaylogo": False, "responsive": True}
    drawn: str = plotly.io.to_html(
        figure, full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=identity, config=config
    )
    return drawn


def front_figure(rows: Sequence[TrialRow], cost: Objective, limit: float | None = None) -> go.Figure | None:
    """Returns a figure of mIoU against a cost, with each trial's settings under the pointer; None without such trials.

    Args:
        rows: the trials.
        cost: what is to be small.
        limit: a cost that is marked by a line; None: none is.
    """
    shown = priced(rows, cost)
    if not shown:
        return None
    steps = priced(pareto_front(rows, cost), cost)
    figure = go.Figure()
    for name, symbol in (("trial", "circle"), ("stopped early", "circle-open")):
        members = [point for point in shown if (point[2].outcome == "stopped") == (name == "stopped early")]
        if members:
            prices, mious, trials = zip(*members, strict=True)
            figure.add_scatter(
                x=prices, y=mious, mode="markers", name=name, text=[_settings(row) for row in trials],
                hovertemplate="%{text}<extra></extra>", marker={"size": 9, "symbol": symbol, "color": COLORS[0]},
            )  # fmt: skip
    figure.add_scatter(
        x=[price for price, _, _ in steps], y=[miou for _, miou, _ in steps], mode="lines+markers",
        line={"shape": "hv", "color": COLORS[1]}, marker={"symbol": "diamond", "size": 9}, name="Pareto front",
        text=[_settings(row) for _, _, row in steps], hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    if limit is not None:
        figure.add_vline(x=limit, line_dash="dash", annotation_text=f"{limit:.4g} GiB")
    figure.update_layout(xaxis_title=cost.label, yaxis_title=MIOU.label, yaxis_rangemode="tozero")
    return figure


def _settings(row: TrialRow) -> str:
    """Returns a trial's numbers and settings for the box under the pointer, whose lines plotly reads as markup."""
    lines = [f"trial {row.trial}", f"mIoU {row.miou:.4f}"]
    lines += [] if row.peak_memory_gib is None else [f"{row.peak_memory_gib:.3f} GiB"]
    lines += [f"{name} = {value_text(value)}" for name, value in row.overrides.items()]
    return "<br>".join(html.escape(line) for line in lines)
