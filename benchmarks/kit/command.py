"""Command lines: options that several suites have, what a suite needs, how it ends."""

import argparse
from pathlib import Path

from bnext.bench.libraries import import_torch
from bnext.command_line import (
    MOST_THREADS,
    USAGE,
    CommandError,
    Parser,
    at_least,
    ends_well,
    existing_file,
    positive,
)


def option(*names, **properties):
    """An option of `command`: the arguments of argparse's `add_argument`."""
    return names, properties


def flag(name, text):
    return option(name, action="store_true", help=text)


def checked(text="fail where a bound is not kept"):
    return flag("--check", text)


def threads(default=2):
    kind, text = at_least(1, MOST_THREADS), f"(default: {default})"
    return option("--threads", type=kind, default=default, metavar="N", help=text)


def seconds(default, of, kind=positive):
    """How long each row, case or network is measured."""
    text = f"for each {of} (default: {default:g})"
    return option("--seconds", type=kind, default=default, metavar="S", help=text)


def names(name, known, **properties):
    """An option for some of the known names, with commas between them."""

    def parse(text):
        found = tuple(text.split(","))
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}"
            )
        return found

    words = {"metavar": "NAME[,NAME]", "help": ", ".join(known), **properties}
    return option(name, type=parse, **words)


def folder(text="for the results"):
    return option("--out", type=Path, metavar="FOLDER", help=text)


def report_again(text="write the report of results again"):
    return option("--report", type=existing_file, metavar="FILE", help=text)


def parser_of(program, about, options, **properties):
    """A parser of these options; what it parses has itself as `parser`, for errors."""
    parser = Parser(prog=program, description=about, **properties)
    for words, how in options:
        parser.add_argument(*words, **how)
    parser.set_defaults(parser=parser)
    return parser


def command(program, about, *options, needs_torch=False):
    """Make a program of a function of its options, whose result is the exit status.

    The description is the first paragraph of `about`. Where there is no PyTorch, a program that
    needs it, and which is given it, ends with status 2.
    """

    def decorate(run):
        def parse(arguments=None):
            return parser_of(program, about.split("\n\n")[0], options).parse_args(arguments)

        @ends_well(program)
        def main(arguments=None):
            given = [parse(arguments)]
            if needs_torch:
                given.append(import_torch())
                if given[1] is None:
                    raise CommandError("needs PyTorch to compare with", USAGE)
            return run(*given)

        main.parse = parse
        return main

    return decorate


def ended(options, broken):
    """Print the broken promises; the exit status, which is 1 for them with `--check`."""
    for line in broken:
        print(f"NOT KEPT: {line}")
    return int(options.check and bool(broken))
