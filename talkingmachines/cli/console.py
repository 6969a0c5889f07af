"""Where the command line prints: text, in which brackets of names and paths mean nothing."""

from __future__ import annotations

from rich.console import Console

OUT = Console(markup=False)
ERRORS = Console(stderr=True, markup=False)
