"""`python -m services.score.checkpoint inspect PATH`: what it is and needs; exits 1 on a misfit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.inspection import inspect
from services.score.checkpoint.lora import Lora


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.score.checkpoint")
    inspected = parser.add_subparsers(required=True).add_parser(
        "inspect", help="say what a checkpoint is and what it needs; reads no weights"
    )
    inspected.add_argument("path", type=Path, help="a folder or a weights file")
    inspected.add_argument("--audio", type=Path, help="audio weights published apart")
    inspected.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="PATH[=ALPHA]",
        help="adapters to merge, with their alpha where no file says it",
    )
    options = parser.parse_args(arguments)
    try:
        lines = inspect(options.path, audio=options.audio, loras=options.lora)
    except BadCheckpoint as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _lora(text: str) -> Lora:
    """`PATH` or `PATH=ALPHA`; a path may hold `=` itself."""
    path, equals, alpha = text.rpartition("=")
    if not equals or Path(text).exists():
        return Lora(Path(text))
    try:
        return Lora(Path(path), float(alpha))
    except ValueError as error:
        why = f"expected PATH or PATH=ALPHA with a number, got {text!r}"
        raise argparse.ArgumentTypeError(why) from error


if __name__ == "__main__":
    sys.exit(main())
