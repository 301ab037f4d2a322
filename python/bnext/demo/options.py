"""The options of the demo, and the check that its extra is installed."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bnext.demo.data import TRAIN_EXAMPLES
from bnext.demo.networks import Kind

# Distributions of the extra bnext[demo], with the module that each of them brings.
EXTRA = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}
PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    kinds: tuple[Kind, ...]
    rates: tuple[float, float]
    epochs: int
    batch_size: int
    seed: int
    output: Path | None


def missing_extra() -> list[str]:
    """List the distributions of the extra that are not installed."""
    return [name for name, module in EXTRA.items() if importlib.util.find_spec(module) is None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options on `parser`."""
    group = parser.add_argument_group("options of the demo")
    add_common_options(group, epochs=15, output="bnext-demo.png")
    group.add_argument(
        "--batch-size",
        type=at_least(2),
        default=64,
        metavar="M",
        help="images per mini-batch (default: 64)",
    )
    group.add_argument(
        "--rates",
        type=positive,
        nargs=2,
        default=(0.1, 1.5),
        metavar=("GENTLE", "LARGE"),
        help="the two learning rates to compare (default: 0.1 1.5)",
    )


def add_common_options(
    group: argparse._ActionsContainer, *, epochs: int, output: str, seed: str = ""
) -> None:
    """Declare what every command that trains the networks has, with its defaults."""
    group.add_argument(
        "--network",
        choices=[*get_args(Kind), "both"],
        default="both",
        help="which network to train (default: both)",
    )
    group.add_argument(
        "--epochs",
        type=at_least(1),
        default=epochs,
        metavar="N",
        help=f"passes over the training images (default: {epochs})",
    )
    group.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        metavar="S",
        help=f"of the split, the initial weights and the batches{seed} (default: 0)",
    )
    group.add_argument(
        "--output",
        type=Path,
        default=Path(output),
        metavar="PATH",
        help=f"where to draw the picture: .png, .svg or .pdf (default: {output})",
    )
    group.add_argument("--no-picture", action="store_true", help="do not draw the picture")


def read_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """Take the options from the parsed `arguments`; end with an error if they cannot be met."""
    if arguments.batch_size > TRAIN_EXAMPLES:
        parser.error(
            f"--batch-size: expected at most the {TRAIN_EXAMPLES} training images, "
            f"got {arguments.batch_size}"
        )
    gentle, large = arguments.rates
    return Options(
        kinds=read_kinds(arguments),
        rates=(gentle, large),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        output=read_output(parser, arguments),
    )


def read_kinds(arguments: argparse.Namespace) -> tuple[Kind, ...]:
    """Give the networks that ``--network`` asks for."""
    return get_args(Kind) if arguments.network == "both" else (arguments.network,)


def read_output(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Path | None:
    """Give where the picture goes, or None; end with an error if it cannot go there."""
    output: Path | None = None if arguments.no_picture else arguments.output
    if output is not None:
        check_path(parser, "--output", output, PICTURES)
    return output


def check_path(
    parser: argparse.ArgumentParser, option: str, path: Path, suffixes: Sequence[str]
) -> None:
    """End with an error unless a file of one of the `suffixes` could be written at `path`."""
    if path.suffix not in suffixes:
        *others, last = suffixes
        names = f"{', '.join(others)} or {last}" if others else last
        parser.error(f"{option}: expected a name ending in {names}, got {path}")
    if not path.absolute().parent.is_dir():
        parser.error(f"{option}: expected an existing folder, got {path.absolute().parent}")


def at_least(smallest: int) -> Callable[[str], int]:
    """Make a type for argparse of the integers from `smallest` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"expected an integer >= {smallest}, got {text}")
        return value

    return parse


def positive(text: str) -> float:
    """Read a finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text}")
    return value
