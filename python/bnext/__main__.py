"""The command line: ``python -m bnext [config | bench]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import bnext

DESCRIPTION = """\
Train two small networks with and without batch normalization on handwritten digits,
and show what normalization does: a table, and a picture."""

COMMANDS = """\
commands:
  config                show how bnext was built and what it runs on
  bench                 measure the kernels on this machine
  COMMAND --help        the options of a command
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["config"]:
        return config(words[1:])
    if words[:1] == ["bench"]:
        return bench(words[1:])
    return demo(words)


def demo(words: list[str]) -> int:
    """``python -m bnext``: the main job."""
    from bnext.demo.options import add_options, missing_extra, read_options

    parser = argparse.ArgumentParser(
        prog="python -m bnext",
        usage="%(prog)s [options]\n       %(prog)s {config,bench} [options]",
        description=DESCRIPTION,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnext {bnext.__version__}")
    add_options(parser)
    options = read_options(parser, parser.parse_args(words))
    if missing := missing_extra():
        print(
            f"python -m bnext: expected {' and '.join(missing)}, not installed here: "
            "pip install 'bnext[demo]'",
            file=sys.stderr,
        )
        return 2

    from bnext.demo.run import run

    run(options)
    return 0


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
