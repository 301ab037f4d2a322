"""The options of ``python -m bnext statistics``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from bnext.command_line import at_least, check_output, number_where, positive
from bnext.demo.networks import Kind
from bnext.demo.options import LARGEST_SEED, CommonOptions, add, add_common_options, batch_size
from bnext.demo.training import Case

REFERENCE_BATCH = 32  # the batch size of --rate
MOST_RUNS = 1000

decay: Callable[[str], float] = number_where(
    lambda value: 0 <= value < 1, "a number from 0 to below 1"
)


class Options(CommonOptions):
    """The options of a run."""

    batch_sizes: Sequence[int]
    decays: Sequence[float]
    rate: float
    runs: int
    csv: Path | None

    def check(self, parser: argparse.ArgumentParser) -> None:
        """Sort the sizes and decays, and end with an error if any option is wrong."""
        self.batch_sizes = sorted(set(self.batch_sizes))
        self.decays = sorted(set(self.decays))
        if self.csv is not None:
            check_output(parser, "--csv", self.csv, [".csv"])
        if self.seed + self.runs - 1 > LARGEST_SEED:
            parser.error(
                f"--seed: expected at most {LARGEST_SEED - self.runs + 1} with {self.runs} runs, "
                f"got {self.seed}"
            )
        super().check(parser)

    def cases(self, kind: Kind) -> list[Case]:
        """List all training runs of one network, with rates by the root of the batch size."""
        return [
            Case(kind, size, self.rate * math.sqrt(size / REFERENCE_BATCH), self.epochs, seed)
            for size in self.batch_sizes
            for seed in range(self.seed, self.seed + self.runs)
        ]


def detailed(batch_sizes: Sequence[int]) -> int:
    """Choose the batch size for the tables of layers and costs: a small one."""
    return batch_sizes[len(batch_sizes) // 4]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options on `parser`."""
    add_common_options(
        parser,
        epochs=10,
        output="bnext-statistics.png",
        seed=" of the first run, the next ones following",
    )
    add(
        parser, "--runs", 3, "networks trained at each batch size; what is shown is their mean",
        type=at_least(1, MOST_RUNS), metavar="N",
    )  # fmt: skip
    sizes = [2, 4, 8, 16, 32, 64, 128, 256, 512]
    add(
        parser, "--batch-sizes", sizes, "images per mini-batch",
        type=batch_size, nargs="+", metavar="M",
    )  # fmt: skip
    add(
        parser, "--decays", [0.5, 0.9, 0.99, 0.999], "of the exponential averages",
        type=decay, nargs="+", metavar="A",
    )  # fmt: skip
    add(
        parser, "--rate", 0.1, f"learning rate for batches of {REFERENCE_BATCH}; those of others "
        "go with the square root of their size", type=positive, metavar="R",
    )  # fmt: skip
    parser.add_argument(
        "--csv", type=Path, metavar="PATH", help="also write all numbers of every run there"
    )
