"""The common parts of the command lines: exit statuses, option types, output files."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "LARGEST_SEED",
    "MOST_THREADS",
    "USAGE",
    "CommandError",
    "Parser",
    "at_least",
    "check_output",
    "ends_well",
    "existing_file",
    "not_negative",
    "positive",
    "say",
    "write_output",
]

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit statuses; the last is the shells' for Ctrl-C

LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # of scikit-learn, which splits the digits
MOST_THREADS = 1024  # of a measurement
LONGEST = 40  # characters of a wrong argument that a message repeats
ROOM = 1 << 19  # bytes: twice the largest picture

Command = Callable[..., int]


class CommandError(Exception):
    """A command fails for a reason outside of it: one line for the user."""


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
    a `CommandError` with 1; a closed pipe (``| head``) with 1, silently. Other errors are bugs, and
    keep their traceback.

    Parameters
    ----------
    program : str
        The name at the beginning of the line.

    Returns
    -------
    callable
        A decorator of functions that return the exit status.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*arguments: object, **options: object) -> int:
            try:
                try:
                    status = command(*arguments, **options)
                finally:  # also where argparse ends the program
                    if sys.stdout is not None:
                        sys.stdout.flush()  # here, where a failure can still be reported
            except KeyboardInterrupt:
                say(program, "interrupted")
                status = INTERRUPTED
            except BrokenPipeError:
                status = FAILED
            except CommandError as error:
                say(program, str(error))
                status = FAILED
            except OSError as error:
                say(program, _reason(error))
                status = FAILED
            except MemoryError as error:
                say(program, f"not enough memory: {error}".removesuffix(": "))
                status = FAILED
            finally:
                _end_output()
            return status

        return run

    return decorate


def say(program: str, text: str) -> None:
    """Print one line to the standard error, if there is one.

    Parameters
    ----------
    program : str
        The name at the beginning of the line.
    text : str
        The rest; its line breaks become spaces.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"{program}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _reason(error: OSError) -> str:
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
        if value < smallest:
            raise argparse.ArgumentTypeError(
                f"expected an integer >= {smallest}, got {_short(text)}"
            )
        if value > largest:
            raise argparse.ArgumentTypeError(
                f"expected an integer from {smallest} to {largest}, got {_short(text)}"
            )
        return value

    return parse


def positive(text: str) -> float:
    """Read a finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {_short(text)}")
    return value


def not_negative(text: str) -> float:
    """Read a finite number from 0 on, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {_short(text)}")
    return value


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
    """Check, before the work, that its result can be written.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Ends the program with status 2 if the name is wrong.
    option : str
        The option that gave the name.
    path : Path
        The place of the file. An existing file is not touched.
    suffixes : sequence of str
        The name must end in one of them; any name is right if there are none.

    Raises
    ------
    CommandError
        The name is right, but the file cannot be written: it or its folder is protected, or there
        is no room.
    """
    if suffixes and path.suffix not in suffixes:
        *others, last = suffixes
        names = f"{', '.join(others)} or {last}" if others else last
        parser.error(f"{option}: expected a name ending in {names}, got {path}")
    folder = path.absolute().parent
    if not folder.is_dir():
        parser.error(f"{option}: expected an existing folder, got {folder}")
    if path.is_dir():
        parser.error(f"{option}: expected a file, got the folder {path}")
    try:
        _try_to_write(path.resolve())
    except OSError as error:
        raise CommandError(f"{option}: cannot write {path}: {error.strerror}") from None


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : Path
        Its place. An existing file is replaced, and stays if the new one cannot be written.
    content : bytes
        All of it.

    Raises
    ------
    OSError
        It cannot be written; the error has the name.
    """
    target = path.resolve()
    try:
        if not _is_replaced(target):
            target.write_bytes(content)
            return
        part = _beside(target)
        try:
            part.write_bytes(content)
            if target.exists():
                shutil.copymode(target, part)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _try_to_write(target: Path) -> None:
    if _is_replaced(target):
        part = _beside(target)
        try:
            part.write_bytes(bytes(ROOM))
        finally:
            part.unlink(missing_ok=True)
    else:
        with target.open("ab"):  # changes nothing
            pass


def _is_replaced(target: Path) -> bool:
    """Whether a new file replaces `target`; a device, for one, is written to."""
    return (target.is_file() or not target.exists()) and os.access(target.parent, os.W_OK)


def _beside(target: Path) -> Path:
    return target.parent / f".bnext-{os.getpid()}.part"
