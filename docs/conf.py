"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from pygments.lexers.sql import PostgresLexer
from sphinx.application import Sphinx

logging.getLogger("alembic").setLevel(logging.WARNING)  # imported with the migrations
sys.path.insert(0, str(Path(__file__).parent))  # for the extension in figures.py

project = "eric_sse_sql"
author = "The eric_sse_sql maintainers"
version = release = version_of("eric_sse_sql")

extensions = ["myst_parser", "sphinx.ext.autodoc", "figures"]
html_theme = "furo"
html_title = f"eric_sse_sql {version}"
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links lead to headings, as on the pages of a repository

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100


def setup(app: Sphinx) -> None:
    app.add_lexer("sql", PostgresLexer)  # which knows the dollars around functions, too
