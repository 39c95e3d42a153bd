"""Sphinx: ``make docs``. Pages are Markdown (MyST), docstrings reStructuredText, the theme is that of SB3's documentation."""

import os
import re
import sys
from importlib.util import find_spec

sys.path.insert(0, os.path.abspath(".."))

from sphinx.util.inspect import signature
from sphinx.util.typing import stringify_annotation

import sb3_cpo

project = "sb3-cpo"
author = "the contributors of sb3-cpo"
copyright = "2026, the contributors of sb3-cpo"
release = version = sb3_cpo.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    # With MathJax inside the site where that is installed, so that formulas need no network
    "sphinx-mathjax-offline" if find_spec("sphinx-mathjax-offline") else "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Prompts are not copied
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {"CostLimit": "CostLimit", "GymEnv": "GymEnv", "Schedule": "Schedule"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 3, "collapse_navigation": False}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"sb3-cpo {release}"


def mend_docstring(app, what, name, obj, options, lines):
    """
    A quoted word with an underscore at its end ("cost_") is a prefix of keys in our docstrings, and a link in reST. Fields of
    named tuples that have no docstring say that they are aliases of themselves.
    """
    lines[:] = [
        re.sub(r'(?<!`)"(\w+_)"', r'``"\1"``', line) for line in lines if not line.startswith("Alias for field number")
    ]


def mend_types(app, what, name, obj, options, lines):
    """Of an argument and an attribute with one name, Sphinx shows the attribute's type as the argument's."""
    annotations = app.env.current_document.autodoc_annotations.get(name, {})
    if what == "class" and annotations:
        for param in signature(obj.__init__, type_aliases=app.config.autodoc_type_aliases).parameters.values():
            if param.name in annotations and param.annotation is not param.empty:
                annotations[param.name] = stringify_annotation(param.annotation, "smart")


def setup(app):
    app.connect("autodoc-process-docstring", mend_docstring)
    app.connect("autodoc-process-docstring", mend_types)
