"""Makes the package torture importable: behind the installed package, which the checkout's would hide."""

from __future__ import annotations

import sys

from support.catalog import REPOSITORY

sys.path.append(str(REPOSITORY))
