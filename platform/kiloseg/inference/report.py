"""Makes the HTML report of an evaluation: one file with numbers, figures and tables that can be sorted and searched."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiloseg.inference.evaluation_files import Evaluation


def report_page(evaluation: Evaluation, figures: Mapping[str, bytes]) -> str:
    """Returns the report as a single HTML file.

    Args:
        evaluation: the evaluation.
        figures: PNG files by name.
    """
    metrics = evaluation.metrics
    content: dict[str, Any] = {
        "title": f"{metrics['source']} on {metrics['data']}",
        "numbers": [[name, value] for name, value in metrics.items() if isinstance(value, int | float | str)],
        "levels": metrics["group_miou"] or [],
        "absent": metrics["absent"],
        "confused": [list(pair.values()) for pair in metrics["confused"]],
        "classes": [list(row.values()) for row in evaluation.table],
        "columns": list(evaluation.table[0]),
        "groups": [list(row.values()) for row in evaluation.groups],
        "figures": {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in figures.items()},
    }
    return fill_page("report.html", content)


def fill_page(template: str, content: Any) -> str:
    """Returns a page of this package with its content: the word CONTENT is replaced by JSON."""
    # Names come from data sets: without escaping, a name could end the script element around it.
    text = json.dumps(content).replace("<", "\\u003c")
    before, after = (importlib.resources.files("kiloseg.inference") / template).read_text().split("CONTENT", 1)
    return before + text + after
