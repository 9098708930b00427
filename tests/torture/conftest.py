"""Lets the tests import the torture, which is not installed."""

from __future__ import annotations

import sys

from support.catalog import REPOSITORY

sys.path.append(str(REPOSITORY))  # at the end: the checkout's own package would hide the installed one
