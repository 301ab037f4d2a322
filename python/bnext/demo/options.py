"""The options of the demo, and the check that its extra is installed."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import get_args

from bnext.command_line import USAGE, CommandError, at_least, check_output, positive
from bnext.demo.data import TRAIN_EXAMPLES
from bnext.demo.networks import Kind

# The distributions of the extra bnext[demo], each with its module.
EXTRA = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}
FOR_PICTURES = ("matplotlib",)
LARGEST_SEED = 2**32 - 1  # of scikit-learn, which splits the digits
MOST_EPOCHS = 100_000
PICTURES = (".png", ".svg", ".pdf")


class CommonOptions(argparse.Namespace):
    """The options of every command that trains the networks, as argparse fills them in."""

    network: str
    epochs: int
    seed: int
    output: Path | None
    no_picture: bool

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The networks."""
        return get_args(Kind) if self.network == "both" else (self.network,)

    def check(self, parser: argparse.ArgumentParser) -> None:
        """End with an error if the picture cannot be drawn; without one, there is no `output`."""
        if self.no_picture:
            self.output = None
        if self.output is not None:
            check_output(parser, "--output", self.output, PICTURES)
        if missing := missing_extra(picture=self.output is not None):
            raise CommandError(
                f"expected {' and '.join(missing)}, not installed here: pip install 'bnext[demo]'",
                USAGE,
            )


class Options(CommonOptions):
    """The options of a run."""

    rates: tuple[float, float]
    batch_size: int


def missing_extra(*, picture: bool = True) -> list[str]:
    """List the distributions of the extra that are needed and not installed."""
    return [
        name
        for name, module in EXTRA.items()
        if (picture or name not in FOR_PICTURES) and importlib.util.find_spec(module) is None
    ]


def batch_size(text: str) -> int:
    """Read a number of images that the training set has, for argparse."""
    value = at_least(2)(text)
    if value > TRAIN_EXAMPLES:
        raise argparse.ArgumentTypeError(
            f"expected at most the {TRAIN_EXAMPLES} training images, got {value}"
        )
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options on `parser`."""
    group = parser.add_argument_group("options of the demo")
    add_common_options(group, epochs=15, output="bnext-demo.png")
    group.add_argument(
        "--batch-size",
        type=batch_size,
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
