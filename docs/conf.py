"""Settings of the documentation. `make docs` builds it; a warning, such as of a link that leads nowhere, is an error."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "docs")]

import kiloseg  # noqa: E402

project = "kiloseg"
author = "The kiloseg authors"
copyright = "2026, the kiloseg authors"
version = release = kiloseg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_extension",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4

# Every reference must lead somewhere. Other projects' names would need their inventories, and a build that is offline has none.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!kiloseg\.).*|kiloseg\..*\.(T|[A-Z]\w*T)")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
# A single pair of backticks in a docstring is code.
default_role = "code"

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "kiloseg"
html_static_path = ["_static"]
html_css_files = ["kiloseg.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False
