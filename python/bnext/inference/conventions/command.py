"""The command ``python -m bnext convert``: a checkpoint's batch normalizations, moved."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bnext.command_line import (
    CommandError,
    Parser,
    at_least,
    check_output,
    not_negative,
    number_where,
    write_output,
)
from bnext.inference.conventions.convert import to_convention
from bnext.inference.conventions.files import FORMATS, WRITERS
from bnext.inference.conventions.hyperparameters import bessel_of
from bnext.inference.conventions.libraries import CONVENTIONS
from bnext.inference.conventions.loading import Entry, entries_of
from bnext.inference.conventions.record import Convention
from bnext.terminal import TextTable, text_width

__all__ = ["convert"]

DESCRIPTION = """\
Show the batch normalizations in a checkpoint, what their numbers mean, and what changes when they
move to another library. Nothing is written without --write."""

CORRECTIONS = {"yes": True, "no": False}


class Options(argparse.Namespace):
    """The options of the command, as argparse fills them in."""

    path: Path
    source: str | None
    to: str
    format: str | None
    prefix: str
    count: int | None
    steps: int | float | None
    bessel: str | None
    to_bessel: str | None
    eps: float | None
    decay: float | None
    ndim: int | None
    write: Path | None
    force: bool


def convert(words: list[str], name: str) -> int:
    """Run the command, and return its exit status."""
    parser = Parser(prog=name, description=DESCRIPTION)
    _add_options(parser)
    options = parser.parse_args(words, Options())
    if options.write is not None:
        check_output(parser, "--write", options.write, tuple(WRITERS))
        if options.write.exists() and not options.force:
            parser.error(f"--write: expected a new file, got {options.write} (--force replaces it)")
        if options.write.resolve() == options.path.resolve():
            parser.error("--write: expected another file than the one that is read")
    try:
        contents, entries = entries_of(options.path, options.source, options.format, options.prefix)
    except (ValueError, TypeError, ImportError) as error:
        raise CommandError(_by_options(error)) from None
    rows: list[dict[str, str]] = []
    arrays: dict[str, Any] = {}
    notes: list[str] = []
    for entry in entries:
        try:
            row, given, more = _moved(entry, options)
        except (ValueError, TypeError) as error:
            raise CommandError(_by_options(error, entry.name)) from None
        rows.append(row)
        arrays |= given
        notes += [text for text in more if text not in notes]
    writer = f", written by {contents.writer}" if contents.writer else ""
    notes.append(_left_out(len(contents.arrays) - sum(len(each.arrays) for each in entries)))
    _show(f"{options.path}{writer}", rows, [text for text in notes if text], options)
    if options.write is not None:
        write_output(options.write, WRITERS[options.write.suffix](arrays))
        print(f"\nWritten: {options.write} ({len(arrays)} arrays)")
        print(textwrap.fill(_beside(CONVENTIONS[options.to]), text_width()))
    else:
        print("\nNothing was written: --write FILE writes the arrays (.npz, .safetensors).")
    return 0


def _add_options(parser: Parser) -> None:
    parser.add_argument("path", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--from", dest="source", choices=[*CONVENTIONS], metavar="NAME",
        help="the convention of the checkpoint, where its format leaves it open",
    )  # fmt: skip
    parser.add_argument(
        "--to", choices=[*CONVENTIONS], default="pytorch", metavar="NAME",
        help=f"the convention to move to (default: %(default)s): {', '.join(CONVENTIONS)}",
    )  # fmt: skip
    parser.add_argument("--format", choices=[*FORMATS], help="of the file (default: its suffix)")
    parser.add_argument("--prefix", default="", help="only layers whose names begin with it")
    parser.add_argument(
        "--count", type=at_least(2), metavar="N",
        help="values per channel of every batch that it was trained with (rows x height x width): "
        "statistics become what the other library would have stored; without it and --steps, "
        "inference stays the same",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_steps, metavar="K", help="batches that it was trained with, or inf"
    )
    parser.add_argument(
        "--bessel", choices=[*CORRECTIONS],
        help="whether the stored variance has Bessel's correction, m2/(n - 1), where that depends "
        "on more than the library",
    )  # fmt: skip
    parser.add_argument(
        "--to-bessel", choices=[*CORRECTIONS], help="the same of the convention to move to"
    )
    parser.add_argument("--eps", type=not_negative, help="where the file does not say it")
    parser.add_argument(
        "--decay", type=number_where(math.isfinite, "a finite number"),
        help="weight of the old average, where the file does not say it",
    )  # fmt: skip
    parser.add_argument(
        "--ndim", type=at_least(2, 32), metavar="D",
        help="axes of the input, for libraries whose arrays have as many",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="a new .npz or .safetensors file"
    )
    parser.add_argument("--force", action="store_true", help="replace the file of --write")


def _steps(text: str) -> int | float:
    return math.inf if text == "inf" else at_least(0)(text)


def _by_options(error: Exception, layer: str = "") -> str:
    """Give an error's text with the names of options in place of arguments."""
    text = str(error)
    if layer and not text.startswith(f"{layer}: "):
        text = f"{layer}: {text}"
    text = re.sub(r"\b(count|steps|bessel|eps|decay): (?=expected)", r"--\1: ", text)
    return re.sub(r"\bconvention: (?=expected)", "--from: ", text)


def _moved(entry: Entry, options: Options) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Convert one layer: its row of the table, its arrays, and what is to be known of it."""
    source, target = CONVENTIONS[entry.convention], CONVENTIONS[options.to]
    bessel = CORRECTIONS.get(options.bessel or "")
    if _is_trained(options) and bessel is None and entry.facts.bessel is None:
        bessel_of(source, None)  # which asks for it, where the default is a guess
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bn = entry.layer(bessel=bessel, eps=options.eps, decay=options.decay, steps=options.steps)
        given = to_convention(
            bn, options.to, count=options.count, steps=options.steps,
            bessel=CORRECTIONS.get(options.to_bessel or ""), ndim=options.ndim,
        )  # fmt: skip
    arrays = {
        entry.prefix_in(target) + name: value for name, value in given.items()
        if name not in target.hyperparameters()
    }  # fmt: skip
    row = {
        "layer": entry.name or "-",
        "channels": str(bn.num_features),
        "from": entry.convention,
        "eps": f"{bn.eps:g}",
        "decay": "cumulative" if bn.decay is None else f"{bn.decay:g}",
        "variance": _variance(source, bn.estimator.bessel),
        "batches": str(bn.num_batches_tracked) if source.counters else "not stored",
        "variance changes by": _change(bn.running_var, given, target),
        target.momentum_name: _number(given.get(target.momentum_name)),
    }
    notes = [str(warning.message) for warning in caught]
    if assumed := _assumed(entry, options):
        notes.append(f"The file does not say {assumed}: taken as {source.title}'s default.")
    notes += [f"{r.title}: {r.note}." for r in (source, target) if r.note]
    return row, arrays, notes


def _left_out(count: int) -> str:
    """Say that a file has other layers, too."""
    return f"Other arrays in the file are left out: {count}." if count else ""


def _beside(target: Convention) -> str:
    """Say what the other library has to be told besides the arrays."""
    numbers = [target.eps_name] if target.start is None else [target.eps_name, target.momentum_name]
    if target.folded:
        return "They are a scale and a shift."
    return (
        f"The file has arrays alone: give the layers {' and '.join(numbers)} as the table has them."
    )


def _is_trained(options: Options) -> bool:
    """Whether statistics become what the other library would have stored."""
    return options.count is not None or options.steps is not None


def _assumed(entry: Entry, options: Options) -> str:
    """Name the options whose values neither the file nor the user has given."""
    record = CONVENTIONS[entry.convention]
    given = {"--eps": options.eps, "--decay": options.decay}
    names = {"--eps": record.eps_name, "--decay": record.momentum_name if record.start else None}
    return " and ".join(
        option
        for option, name in names.items()
        if name is not None and given[option] is None and name not in entry.facts.numbers
    )


def _variance(record: Convention, bessel: bool) -> str:
    if record.start is None:
        return "as given"
    return "m2/(n-1)" if bessel else "m2/n"


def _change(before: Any, given: dict[str, Any], target: Convention) -> str:
    name = target.names[3]
    if not name:
        return "folded"
    with np.errstate(all="ignore"):
        ratio = np.reshape(given[name], -1).astype(float) / before
    ratio = ratio[np.isfinite(ratio)]
    if not ratio.size or (ratio == 1).all():
        return "nothing"
    low, high = ratio.min() - 1, ratio.max() - 1
    return f"{low:+.3%}" if low == high else f"{low:+.3%} to {high:+.3%}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):g}"


def _show(title: str, rows: list[dict[str, str]], notes: list[str], options: Options) -> None:
    header = [*rows[0]]
    table = TextTable(title, header, [[row[key] for key in header] for row in rows])
    table.show_plain()
    target = CONVENTIONS[options.to].title
    meaning = (
        f"Statistics become what {target} would have stored after the same batches."
        if _is_trained(options)
        else f"{target} infers as the source does; --count and --steps give what it would have "
        "stored after the same batches."
    )
    print()
    for text in (meaning, *notes):
        print(textwrap.fill(text, text_width()))
