"""The options of the demo, and the check that its extra is installed."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bnext.demo.data import TRAIN_EXAMPLES
from bnext.demo.networks import Kind

# Distributions of the extra bnext[demo], with the module that each of them brings.
EXTRA = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}


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
    group.add_argument(
        "--network",
        choices=[*get_args(Kind), "both"],
        default="both",
        help="which network to train (default: both)",
    )
    group.add_argument(
        "--epochs",
        type=_at_least(1),
        default=15,
        metavar="N",
        help="passes over the training images (default: 15)",
    )
    group.add_argument(
        "--batch-size",
        type=_at_least(2),
        default=64,
        metavar="M",
        help="images per mini-batch (default: 64)",
    )
    group.add_argument(
        "--rates",
        type=_positive,
        nargs=2,
        default=(0.1, 1.5),
        metavar=("GENTLE", "LARGE"),
        help="the two learning rates to compare (default: 0.1 1.5)",
    )
    group.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="S",
        help="of the split, the initial weights and the batches (default: 0)",
    )
    group.add_argument(
        "--output",
        type=Path,
        default=Path("bnext-demo.png"),
        metavar="PATH",
        help="where to draw the picture: .png, .svg or .pdf (default: bnext-demo.png)",
    )
    group.add_argument("--no-picture", action="store_true", help="do not draw the picture")


def read_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """Take the options from the parsed `arguments`; end with an error if they cannot be met."""
    output: Path | None = None if arguments.no_picture else arguments.output
    if output is not None:
        if output.suffix not in (".png", ".svg", ".pdf"):
            parser.error(f"--output: expected a name ending in .png, .svg or .pdf, got {output}")
        if not output.absolute().parent.is_dir():
            parser.error(f"--output: expected an existing folder, got {output.absolute().parent}")
    if arguments.batch_size > TRAIN_EXAMPLES:
        parser.error(
            f"--batch-size: expected at most the {TRAIN_EXAMPLES} training images, "
            f"got {arguments.batch_size}"
        )
    gentle, large = arguments.rates
    return Options(
        kinds=get_args(Kind) if arguments.network == "both" else (arguments.network,),
        rates=(gentle, large),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        output=output,
    )


def _at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"expected an integer >= {smallest}, got {text}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text}")
    return value
