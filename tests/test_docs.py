"""The README's Python, run from top to bottom in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_python_snippet_of_the_readme_runs(tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(snippets) == README.count("```python")
    program = tmp_path / "readme.py"
    program.write_text("\n".join(snippets) + "\nprint(len(waiting), waiting[0].message_type)\n")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["hello", "{'name': 'Ada'} [{'name': 'Ada'}]", "1 order"]
