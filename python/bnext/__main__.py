"""The command line: ``python -m bnext [config | bench | statistics]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import bnext

DESCRIPTION = """\
Train two small networks with and without batch normalization on handwritten digits,
and show what normalization does: a table, and a picture."""

STATISTICS_DESCRIPTION = """\
Train the two networks with batch normalization, at many batch sizes, and compare the
statistics that inference can use: exact, pooled and averaged ones, made from the training set
afterwards, and running averages, made on the way. Shows test accuracy and loss, the distance
of each layer's statistics from the exact ones, and what they cost: tables, and a picture."""

COMMANDS = """\
commands:
  config                show how bnext was built and what it runs on
  bench                 measure the kernels on this machine
  statistics            train the networks, and compare the statistics for inference
  COMMAND --help        the options of a command
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"config": config, "bench": bench, "statistics": statistics}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return demo(words)


def demo(words: list[str]) -> int:
    """``python -m bnext``: the main job."""
    from bnext.demo.options import add_options, read_options

    parser = argparse.ArgumentParser(
        prog="python -m bnext",
        usage="%(prog)s [options]\n       %(prog)s {config,bench,statistics} [options]",
        description=DESCRIPTION,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnext {bnext.__version__}")
    add_options(parser)
    options = read_options(parser, parser.parse_args(words))
    if extra_is_missing(parser):
        return 2

    from bnext.demo.run import run

    run(options)
    return 0


def statistics(words: list[str]) -> int:
    """``python -m bnext statistics``: the estimators of the statistics, side by side."""
    from bnext.demo.statistics.options import add_options, read_options

    parser = argparse.ArgumentParser(
        prog="python -m bnext statistics", description=STATISTICS_DESCRIPTION
    )
    add_options(parser)
    options = read_options(parser, parser.parse_args(words))
    if extra_is_missing(parser):
        return 2

    from bnext.demo.statistics.run import run

    run(options)
    return 0


def extra_is_missing(parser: argparse.ArgumentParser) -> bool:
    """Whether the networks cannot be trained here; if so, says what to install."""
    from bnext.demo.options import missing_extra

    if missing := missing_extra():
        print(
            f"{parser.prog}: expected {' and '.join(missing)}, not installed here: "
            "pip install 'bnext[demo]'",
            file=sys.stderr,
        )
    return bool(missing)


def config(words: list[str]) -> int:
    """``python -m bnext config``: version, instruction sets, threads, compiler."""
    parser = argparse.ArgumentParser(
        prog="python -m bnext config",
        description="Show how bnext was built and what it runs on.",
    )
    parser.parse_args(words)
    bnext.show_config()
    return 0


def bench(words: list[str]) -> int:
    """``python -m bnext bench``: the benchmark, which has its own options."""
    import bnext.bench

    return bnext.bench.main(words)


if __name__ == "__main__":
    sys.exit(main())
