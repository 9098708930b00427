"""The README and the pages of docs, and the snippets in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from support.catalog import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```(python|sql|sh)\b *([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL_OF_PAGES = "sqlite:///app.db"


class Snippet(NamedTuple):
    """A fence of a page."""

    language: str
    label: str
    code: str
    line: int  # of the page, on which the code begins

    @property
    def is_run(self) -> bool:
        return not self.label.startswith("not run: ")

    @property
    def file(self) -> str | None:
        return self.label.removeprefix("file ") if self.label.startswith("file ") else None

    @property
    def labels(self) -> set[str]:
        return set(self.label.split()) if self.is_run and self.file is None else set()


def snippets(page: Path) -> list[Snippet]:
    source = page.read_text()
    return [
        Snippet(language, label, code, source.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(source)
        for language, label, code in [found.groups()]
    ]
