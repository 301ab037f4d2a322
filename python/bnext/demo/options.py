"""The options of the demo, and the check that its extra is installed."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any, get_args

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


def add(group: argparse._ActionsContainer, name: str, default: Any, text: str, **more: Any) -> None:
    """Declare an option with its default, which ends the text of the help."""
    shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
    group.add_argument(name, default=default, help=f"{text} (default: {shown})", **more)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options on `parser`."""
    group = parser.add_argument_group("options of the demo")
    add_common_options(group, epochs=15, output="bnext-demo.png")
    add(group, "--batch-size", 64, "images per mini-batch", type=batch_size, metavar="M")
    add(
        group, "--rates", (0.1, 1.5), "the two learning rates to compare",
        type=positive, nargs=2, metavar=("GENTLE", "LARGE"),
    )  # fmt: skip


def add_common_options(
    group: argparse._ActionsContainer, *, epochs: int, output: str, seed: str = ""
) -> None:
    """Declare the options of every command that trains the networks, with their defaults."""
    add(group, "--network", "both", "which network to train", choices=[*get_args(Kind), "both"])
    add(
        group, "--epochs", epochs, "passes over the training images",
        type=at_least(1, MOST_EPOCHS), metavar="N",
    )  # fmt: skip
    add(
        group, "--seed", 0, f"of the split, the initial weights and the batches{seed}",
        type=at_least(0, LARGEST_SEED), metavar="S",
    )  # fmt: skip
    add(
        group, "--output", Path(output), "where to draw the picture: .png, .svg or .pdf",
        type=Path, metavar="PATH",
    )  # fmt: skip
    group.add_argument("--no-picture", action="store_true", help="do not draw the picture")
