"""Sphinx's settings for the site of notebooks, documents and API reference: `make site`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

project = "fastdiff_lab"
author = "the fastdiff_lab contributors"
html_title = "fastdiff_lab"

# The source folder is a copy of the repository's pages (Makefile). README.md is its index.md.
root_doc = "index"
exclude_patterns = [
    "conf.py",
    "data/**/report",
    "notebooks/exercises/masters",
    "notebooks/exercises/solutions",
    "docs/site",
    "**/*.py",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "repository_pages", "glossary_hovers"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

# Notebooks stand as committed: nothing is executed, no widget is loaded from elsewhere, no progress bar is shown.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_output_stderr = "remove"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Docstrings have Google's sections, and names between single backticks.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "sphinx_book_theme"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_favicon = "favicon.svg"
html_sidebars = {"**": ["search-button-field.html", "sbt-sidebar-nav.html"]}
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2, "home_page_in_toc": True,
}  # fmt: skip

# A public address, such as https://github.com/owner/fastdiff_lab, brings the launch buttons and the links to files.
repository = os.environ.get("FASTDIFF_REPOSITORY", "").rstrip("/")
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com", "notebook_interface": "jupyterlab",
        },
    }  # fmt: skip
