"""The command line: ``python -m bnext [config | doctor | bench | convert | statistics]``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

import bnext
from bnext.command_line import Parser, ends_well

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
  doctor                the same for a bug report: versions, results, and what is wrong here
  bench                 measure the kernels on this machine
  convert FILE          show a checkpoint's statistics, and move them to another library
  statistics            train the networks, and compare the statistics for inference
  COMMAND --help        the options of a command
"""

SECONDS_OF_LOAD = 0.2  # for which config measures the load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the one of ``sys.argv``, and return the exit status.

    It is 0; 1 where a result could not be made or written, 2 for a wrong command line, 130 after
    Ctrl-C. Results until then have been shown.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    called = os.path.basename(sys.argv[0]) if sys.argv else ""
    name, command = "bnext" if called in ("bnext", "bnext.exe") else "python -m bnext", demo
    commands = {
        "config": config, "doctor": doctor, "bench": bench, "convert": convert,
        "statistics": statistics,
    }  # fmt: skip
    if words and words[0] in commands:
        name, command = f"{name} {words[0]}", commands[words[0]]
        words = words[1:]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # letters that cannot be encoded do not end the program
            stream.reconfigure(errors="replace")
    return ends_well(name)(command)(words, name)


def demo(words: list[str], name: str) -> int:
    """``python -m bnext``: the demo."""
    parser = Parser(
        prog=name,
        usage="%(prog)s [options]\n"
        "       %(prog)s {config,doctor,bench,convert,statistics} [options]",
        description=DESCRIPTION,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnext {bnext.__version__}")
    return _run("bnext.demo", parser, words)


def statistics(words: list[str], name: str) -> int:
    """``python -m bnext statistics``: the estimators of the statistics, side by side."""
    parser = Parser(prog=name, description=STATISTICS_DESCRIPTION)
    return _run("bnext.demo.statistics", parser, words)


def _run(package: str, parser: Parser, words: list[str]) -> int:
    """Read the options of a package that trains networks, check them, and let it run."""
    module = importlib.import_module(f"{package}.options")
    module.add_options(parser)
    options = parser.parse_args(words, module.Options())
    options.check(parser)
    importlib.import_module(f"{package}.run").run(options)  # needs the extra
    return 0


def config(words: list[str], name: str) -> int:
    """``python -m bnext config``: version, instruction sets, threads, compiler."""
    Parser(prog=name, description="Show how bnext was built and what it runs on.").parse_args(words)
    from bnext.bench.load import LoadMeter

    meter = LoadMeter()
    time.sleep(SECONDS_OF_LOAD)
    load = meter.read()
    bnext.show_config()
    print(f"load:\n  now: {load}")
    return 0


def doctor(words: list[str], name: str) -> int:
    """``python -m bnext doctor``: what a bug report needs, and what is wrong."""
    from bnext.doctor import main

    return main(words, name)


def bench(words: list[str], name: str) -> int:
    """``python -m bnext bench``: the benchmark, with its own options."""
    from bnext.bench.command import measure_and_report

    return measure_and_report(words, name)


def convert(words: list[str], name: str) -> int:
    """``python -m bnext convert``: the statistics of a checkpoint, in another convention."""
    from bnext.inference.conventions.command import convert

    return convert(words, name)


if __name__ == "__main__":
    sys.exit(main())
