"""`python -m services.score.models verify|plan|convert`: what the command line asks of weights.

The part of `talkingmachines models` that reads tensors: that package holds no torch, and runs this
where there is a checkout. Exits 1 when something does not fit, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.converting import convert
from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import Checkpoint, expected_shapes, open_checkpoint
from services.score.checkpoint.planning import GPUS, SHARE, lines, plan
from services.score.checkpoint.recipes import RECIPES, sized
from services.score.checkpoint.tensors import count
from services.score.checkpoint.verifying import verify
from services.score.config import DitConfig
from services.score.presets import NAMES, preset
from talkingmachines.weights import known


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BadCheckpoint as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="talkingmachines models")
    commands = parser.add_subparsers(required=True)
    verified = commands.add_parser("verify", help="whether a download is whole")
    _weights(verified)
    verified.add_argument("--no-hashes", action="store_true", help="compare sizes alone")
    verified.set_defaults(run=_verify)
    planned = commands.add_parser("plan", help="memory, time and sessions on a GPU")
    _weights(planned)
    planned.add_argument("--gpu", choices=GPUS, default="h200")
    planned.add_argument("--share", type=_share, default=SHARE, help="of the GPU's speed, 0 to 1")
    planned.set_defaults(run=_plan)
    converted = commands.add_parser("convert", help="write as our own sharded safetensors")
    _weights(converted)
    converted.add_argument("out", type=Path)
    converted.add_argument("--dtype", choices=("float32", "bf16", "fp8"), default="bf16")
    converted.set_defaults(run=_convert)
    return parser


def _weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a folder or file; for plan also a known name")
    parser.add_argument("--audio", type=Path, help="audio weights published apart")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="adapters to merge")
    parser.add_argument("--alpha", type=float, help="of the adapters, where they do not say")
    parser.add_argument("--recipe", choices=RECIPES, help="how a public student is drawn with")
    parser.add_argument("--size", type=_size, metavar="WIDTHxHEIGHT", help="of the picture")


def _verify(options: argparse.Namespace) -> int:
    findings = verify(
        options.path,
        loras=_loras(options),
        audio=options.audio,
        recipe=options.recipe,
        hashes=not options.no_hashes,
    )
    print("\n".join(map(str, findings)))
    return 0 if all(finding.good for finding in findings) else 1


def _plan(options: argparse.Namespace) -> int:
    name = str(options.path)
    if name in NAMES and not options.path.exists():
        config = preset(name)
        if options.size is not None:
            config = sized(name, config, *options.size)
        parameters = _parameters(config)
    elif options.path.exists():
        opened = _opened(options)
        config, parameters = opened.config, count(opened.weights)
    else:
        raise BadCheckpoint(name, why=_unplanned(name))
    gpu = GPUS[options.gpu]
    made = plan(config, parameters, gpu, share=options.share)
    print("\n".join(lines(config, made, gpu, share=options.share)))
    return 0


def _unplanned(name: str) -> str:
    """Why no plan is made of what is neither there nor built in."""
    there = f"names that need no files: {', '.join(NAMES)}"
    if known(name) is None:
        return f"there is no such file or folder; {there}"
    return f"its sizes are not built in: give its files (plan PATH --audio FILE); {there}"


def _convert(options: argparse.Namespace) -> int:
    convert(_opened(options), options.out, options.dtype)
    print(f"{options.out}: written as {options.dtype}; encoders, wav2vec and VAE stay as they are")
    return 0


def _opened(options: argparse.Namespace) -> Checkpoint:
    return open_checkpoint(
        options.path,
        audio=options.audio,
        loras=_loras(options),
        recipe=options.recipe,
        size=options.size,
    )


def _loras(options: argparse.Namespace) -> list[Lora]:
    return [Lora(path, options.alpha) for path in options.lora]


def _parameters(config: DitConfig) -> int:
    total = 0
    for shape in expected_shapes(config).values():
        numbers = 1
        for size in shape:
            numbers *= size
        total += numbers
    return total


def _size(text: str) -> tuple[int, int]:
    width, by, height = text.partition("x")
    if not by or not width.isdigit() or not height.isdigit():
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}")
    return int(width), int(height)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return share


if __name__ == "__main__":
    sys.exit(main())
