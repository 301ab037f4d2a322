"""The options of ``python -m bnext statistics``."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from bnext.command_line import LARGEST_SEED, at_least, check_output, positive
from bnext.demo.data import TRAIN_EXAMPLES
from bnext.demo.networks import Kind
from bnext.demo.options import add_common_options, read_kinds, read_output
from bnext.demo.statistics.experiment import Case

REFERENCE_BATCH = 32  # the batch size of --rate
MOST_RUNS = 1000


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    kinds: tuple[Kind, ...]
    batch_sizes: tuple[int, ...]
    decays: tuple[float, ...]
    rate: float
    epochs: int
    runs: int
    seed: int
    output: Path | None
    csv: Path | None

    @property
    def detailed(self) -> int:
        """The batch size for the table of layers: a small one."""
        return self.batch_sizes[len(self.batch_sizes) // 4]

    def rate_of(self, batch_size: int) -> float:
        """Learning rate for a batch size, in proportion to its square root."""
        return self.rate * math.sqrt(batch_size / REFERENCE_BATCH)

    def cases(self, kind: Kind) -> list[Case]:
        """List all training runs of one network."""
        return [
            Case(kind, size, self.rate_of(size), self.epochs, self.seed + run)
            for size in self.batch_sizes
            for run in range(self.runs)
        ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options on `parser`."""
    add_common_options(
        parser,
        epochs=10,
        output="bnext-statistics.png",
        seed=" of the first run, the next ones following",
    )
    parser.add_argument(
        "--runs",
        type=at_least(1, MOST_RUNS),
        default=3,
        metavar="N",
        help="networks trained at each batch size; what is shown is their mean (default: 3)",
    )
    sizes = [2, 4, 8, 16, 32, 64, 128, 256, 512]
    parser.add_argument(
        "--batch-sizes",
        type=_batch_size,
        nargs="+",
        default=sizes,
        metavar="M",
        help=f"images per mini-batch (default: {' '.join(map(str, sizes))})",
    )
    decays = [0.5, 0.9, 0.99, 0.999]
    parser.add_argument(
        "--decays",
        type=_decay,
        nargs="+",
        default=decays,
        metavar="A",
        help=f"of the exponential averages (default: {' '.join(map(str, decays))})",
    )
    parser.add_argument(
        "--rate",
        type=positive,
        default=0.1,
        metavar="R",
        help=f"learning rate for batches of {REFERENCE_BATCH}; those of others go with the square "
        "root of their size (default: 0.1)",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="PATH",
        help="also write all numbers of every run there",
    )


def read_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """Read the options from the parsed `arguments`; end with an error if they are wrong."""
    if arguments.csv is not None:
        check_output(parser, "--csv", arguments.csv, [".csv"])
    if arguments.seed + arguments.runs - 1 > LARGEST_SEED:
        parser.error(
            f"--seed: expected at most {LARGEST_SEED - arguments.runs + 1} with {arguments.runs} "
            f"runs, got {arguments.seed}"
        )
    return Options(
        kinds=read_kinds(arguments),
        batch_sizes=tuple(sorted(set(arguments.batch_sizes))),
        decays=tuple(sorted(set(arguments.decays))),
        rate=arguments.rate,
        epochs=arguments.epochs,
        runs=arguments.runs,
        seed=arguments.seed,
        output=read_output(parser, arguments),
        csv=arguments.csv,
    )


def _batch_size(text: str) -> int:
    value = at_least(2)(text)
    if value > TRAIN_EXAMPLES:
        raise argparse.ArgumentTypeError(
            f"expected at most the {TRAIN_EXAMPLES} training images, got {text}"
        )
    return value


def _decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value
