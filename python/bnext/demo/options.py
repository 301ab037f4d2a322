"""The options of the demo, and the check that its extra is installed."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bnext.command_line import LARGEST_SEED, at_least, check_output, positive
from bnext.demo.data import TRAIN_EXAMPLES
from bnext.demo.networks import Kind

# The distributions of the extra bnext[demo], each with its module.
EXTRA = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}
FOR_PICTURES = ("matplotlib",)
MOST_EPOCHS = 100_000
PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    kinds: tuple[Kind, ...]
    rates: tuple[float, float]
    epochs: int
    batch_size: int
    seed: int
    output: Path | None


def missing_extra(*, picture: bool = True) -> list[str]:
    """List the distributions of the extra that are needed and not installed."""
    return [
        name
        for name, module in EXTRA.items()
        if (picture or name not in FOR_PICTURES) and importlib.util.find_spec(module) is None
    ]


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
    """Declare the options of every command that trains the networks, with their defaults."""
    group.add_argument(
        "--network",
        choices=[*get_args(Kind), "both"],
        default="both",
        help="which network to train (default: both)",
    )
    group.add_argument(
        "--epochs",
        type=at_least(1, MOST_EPOCHS),
        default=epochs,
        metavar="N",
        help=f"passes over the training images (default: {epochs})",
    )
    group.add_argument(
        "--seed",
        type=at_least(0, LARGEST_SEED),
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
    """Read the options from the parsed `arguments`; end with an error if they are wrong."""
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
    """Give the networks named by ``--network``."""
    return get_args(Kind) if arguments.network == "both" else (arguments.network,)


def read_output(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Path | None:
    """Give the path of the picture, or None; end with an error if it cannot be written."""
    output: Path | None = None if arguments.no_picture else arguments.output
    if output is not None:
        check_output(parser, "--output", output, PICTURES)
    return output
