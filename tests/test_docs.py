"""The README's Python, run from top to bottom in an empty folder, on each database."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import URL

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import address

README = (Path(__file__).parent.parent / "README.md").read_text()
URL_OF_README = '"sqlite:///app.db"'


def test_every_python_snippet_of_the_readme_runs(empty_url: URL, tmp_path: Path) -> None:
    snippets = re.findall(r"^```python( eric-sse-2.1)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(snippets) == README.count("```python")
    program = tmp_path / "readme.py"
    run = [snippet for is_for_2_1, snippet in snippets if not (is_for_2_1 and ERIC_SSE_2_0)]
    text = "\n".join(run) + "\nprint(len(waiting), waiting[-1].message_type)\n"
    assert text.count(URL_OF_README) > 1
    program.write_text(text.replace(URL_OF_README, repr(address(empty_url))))
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    printed = ["7 1", "8 0", "{'name': 'Ada'} [{'name': 'Ada'}]", "rain"]
    assert done.stdout.splitlines()[:-1] == (printed if ERIC_SSE_2_0 else ["hello", *printed])
    assert done.stdout.endswith(" order\n")
