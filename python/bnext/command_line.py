"""The common parts of the command lines: exit statuses, option types, output files."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit statuses; the last is the shells' for Ctrl-C

LARGEST = 2**31 - 1
MOST_THREADS = 1024  # of a measurement
LONGEST = 40  # characters of a wrong argument that a message repeats
ROOM = 1 << 19  # bytes: twice the largest picture

Command = Callable[..., int]


class CommandError(Exception):
    """A command fails for a reason outside of it: one line for the user, and the exit status."""

    def __init__(self, line: str, status: int = FAILED) -> None:
        super().__init__(line)
        self.status = status


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and end the program with status 2."""
        say(self.prog, f"error: {message} (--help lists the options)")
        raise SystemExit(USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help or the version; unlike argparse, raise where that fails."""
        if message and (file or sys.stderr):
            print(message, end="", file=file or sys.stderr)


def ends_well(program: str) -> Callable[[Command], Command]:
    """Decorate a command: errors from outside end it with a status and one line.

    Ctrl-C ends it with 130; a full disk, a file that cannot be written or read, missing memory and
    a `CommandError` with 1 or its own status; a closed pipe (``| head``) with 1, silently. Other
    errors are bugs, and keep their traceback. Lines begin with the name of the program.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*arguments: object, **options: object) -> int:
            try:
                try:
                    return command(*arguments, **options)
                finally:  # also where argparse ends the program
                    if sys.stdout is not None:
                        sys.stdout.flush()  # here, where a failure can still be reported
            except BrokenPipeError:
                return FAILED
            except (KeyboardInterrupt, CommandError, OSError, MemoryError) as error:
                say(program, _line(error))
                if isinstance(error, KeyboardInterrupt):
                    return INTERRUPTED
                return error.status if isinstance(error, CommandError) else FAILED
            finally:
                _end_output()

        return run

    return decorate


def say(program: str, text: str) -> None:
    """Print a line to the standard error, if there is one; line breaks in it become spaces."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"{program}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}".removesuffix(": ")
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _end_output() -> None:
    """Write the rest of the standard output, or drop it: Python would try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # not a file of the system
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)


# --- types of options -----------------------------------------------------------------------------


def at_least(smallest: int, largest: int = LARGEST) -> Callable[[str], int]:
    """Make a type for argparse of the integers from `smallest` to `largest`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            # Python refuses numbers of thousands of digits.
            value = largest + 1 if text.strip().isdecimal() else smallest - 1
        if not smallest <= value <= largest:
            wanted = f">= {smallest}" if value < smallest else f"from {smallest} to {largest}"
            raise argparse.ArgumentTypeError(f"expected an integer {wanted}, got {_short(text)}")
        return value

    return parse


def number_where(is_right: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """Make a type for argparse of the numbers for which a function holds: `wanted`, in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not is_right(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {_short(text)}")
        return value

    return parse


positive: Callable[[str], float] = number_where(
    lambda value: 0 < value < math.inf, "a finite number > 0"
)
not_negative: Callable[[str], float] = number_where(
    lambda value: 0 <= value < math.inf, "a finite number >= 0"
)


def existing_file(text: str) -> Path:
    """Read the name of an existing file, for argparse."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected an existing file, got {text}")
    return path


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


# --- files to be written --------------------------------------------------------------------------


def check_output(
    parser: argparse.ArgumentParser, option: str, path: Path, suffixes: Sequence[str] = ()
) -> None:
    """Check, before the work, that its result can be written to `path`, given by `option`.

    A wrong name, such as one that does not end in one of the `suffixes`, ends the program with
    status 2. Where the file cannot be written, since it or its folder is protected or there is no
    room, a `CommandError` is raised. An existing file is not touched.
    """
    if suffixes and path.suffix not in suffixes:
        names = " or ".join(", ".join(suffixes).rsplit(", ", 1))
        parser.error(f"{option}: expected a name ending in {names}, got {path}")
    folder = path.absolute().parent
    if not folder.is_dir():
        parser.error(f"{option}: expected an existing folder, got {folder}")
    if path.is_dir():
        parser.error(f"{option}: expected a file, got the folder {path}")
    target = path.resolve()
    try:
        if _is_replaced(target):
            with _part_beside(target) as part:
                part.write_bytes(bytes(ROOM))
        else:
            target.open("ab").close()  # changes nothing
    except OSError as error:
        raise CommandError(f"{option}: cannot write {path}: {error.strerror}") from None


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: an existing file stays if a new one cannot be written.

    An `OSError` has the name.
    """
    target = path.resolve()
    try:
        if not _is_replaced(target):
            target.write_bytes(content)
            return
        with _part_beside(target) as part:
            part.write_bytes(content)
            if target.exists():
                shutil.copymode(target, part)
            part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _is_replaced(target: Path) -> bool:
    """Whether a new file replaces `target`; a device, for one, is written to."""
    return (target.is_file() or not target.exists()) and os.access(target.parent, os.W_OK)


@contextlib.contextmanager
def _part_beside(target: Path) -> Iterator[Path]:
    """Give the name of a file beside `target`, which is gone in the end."""
    part = target.parent / f".bnext-{os.getpid()}.part"
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
