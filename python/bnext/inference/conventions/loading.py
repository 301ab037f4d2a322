"""`load_statistics`: the batch normalizations of a checkpoint, as layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bnext.inference.conventions.convert import from_convention
from bnext.inference.conventions.files import Contents, Facts, read
from bnext.inference.conventions.finding import chosen, find_layers
from bnext.inference.conventions.hyperparameters import text_of
from bnext.inference.conventions.libraries import CONVENTIONS, convention_of
from bnext.inference.conventions.reading import SEPARATORS
from bnext.inference.conventions.record import Convention
from bnext.inference.conventions.rules import Steps
from bnext.layers import BatchNorm

__all__ = ["Entry", "entries_of", "load_statistics"]

SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Entry:
    """One layer of a checkpoint, before it is made."""

    prefix: str
    convention: str
    arrays: Mapping[str, Any]  # by full names; collections may stand before the prefix
    facts: Facts

    @property
    def name(self) -> str:
        """The prefix without what separates it from names."""
        underscore = "_" if CONVENTIONS[self.convention].underscores else ""
        return self.prefix.rstrip("".join(SEPARATORS) + underscore)

    def prefix_in(self, record: Convention) -> str:
        """Give the prefix with another library's separators."""
        name = self.name
        for separator in SEPARATORS:
            name = name.replace(separator, record.separator)
        return name + record.separator if name else ""

    def layer(self, **options: Any) -> BatchNorm:
        """Make the layer; what the file says gives way to `options` that are not None."""
        given = {name: value for name, value in options.items() if value is not None}
        values = {**self.arrays, **self.facts.numbers}
        known = {"bessel": self.facts.bessel, "channel_axis": self.facts.channel_axis}
        given = {k: v for k, v in known.items() if v is not None} | given
        try:
            return from_convention(self.convention, values, prefix=self.prefix, **given)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self.name or 'the layer'}: {error}") from None


def entries_of(
    path: str | os.PathLike[str],
    convention: str | None = None,
    format: str | None = None,
    prefix: str = "",
) -> tuple[Contents, list[Entry]]:
    """Read a file and find its layers."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path: expected a str or a path, got {type(path).__name__} (from_convention takes "
            "arrays)"
        )
    text_of(prefix, "prefix")
    if convention is not None:
        convention_of(convention)
    contents = read(path, format)
    possible = (convention,) if convention is not None else contents.conventions
    found = find_layers(contents.arrays, possible, prefix)
    if not found:
        names = sorted(contents.arrays)
        text = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        kind = CONVENTIONS[convention].title if convention else "any known convention"
        where = f" with the prefix {prefix!r}" if prefix else ""
        raise ValueError(
            f"{path}: expected statistics by the names of {kind}{where}, got {text or 'nothing'}"
        )
    entries = []
    for layer in found:
        facts = contents.facts.get(layer.prefix, Facts())
        key = chosen(_known_by_facts(layer.candidates, facts), layer.prefix)
        arrays = {name: contents.arrays[name] for name in layer.names}
        entries.append(Entry(layer.prefix, key, arrays, facts))
    return contents, entries


def _known_by_facts(candidates: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    known = facts.numbers.keys()
    return tuple(c for c in candidates if known <= CONVENTIONS[c].hyperparameters()) or candidates


def load_statistics(
    path: str | os.PathLike[str],
    convention: str | None = None,
    *,
    format: str | None = None,
    prefix: str = "",
    channel_axis: int | None = None,
    count: int | None = None,
    steps: Steps | None = None,
    bessel: bool | None = None,
    eps: float | None = None,
    decay: float | None = None,
    train_as: Literal["pytorch"] | None = None,
) -> dict[str, BatchNorm]:
    """Make layers of the batch normalizations in a file of another library.

    No code of the file is run, and no model is built.

    Parameters
    ----------
    path : str or path
        A file: .safetensors, .npz, a PyTorch state dict (.pt, .pth, .bin), Keras' .keras,
        .weights.h5 and .h5, Flax' .msgpack, an Orbax folder, .onnx, MXNet's .params, Paddle's
        .pdparams. PyTorch's, Keras', Flax', Orbax' and ONNX's need the packages torch, h5py, flax,
        orbax-checkpoint and onnx.
    convention : str, optional
        Name of the convention, as for `from_convention`. Needed where the format leaves it open and
        the names fit several that mean different things.
    format : str, optional
        "npz", "safetensors", "torch", "keras", "h5", "msgpack", "orbax", "onnx", "mxnet" or
        "paddle"; by the suffix if not given.
    prefix : str
        Only layers whose names begin with it.
    channel_axis, count, steps, bessel, eps, decay, train_as
        As for `from_convention`, for every layer; in place of what the file says.

    Returns
    -------
    dict of str to BatchNorm
        Layers by their names in the file, in its order. Most formats have neither epsilon nor
        momentum: the convention's defaults are taken, unless `eps` and `decay` are given. Keras'
        .keras and .h5 and ONNX have both.

    Raises
    ------
    ValueError
        The file is not what its format says, has no layers, or `from_convention` refuses one;
        the names fit several conventions; an argument is needed.
    ImportError
        The package that reads the format is not installed.
    OSError
        The file cannot be read.
    TypeError
        An argument is of the wrong type.
    """
    _, entries = entries_of(path, convention, format, prefix)
    return {
        entry.name: entry.layer(
            channel_axis=channel_axis, count=count, steps=steps, bessel=bessel, eps=eps,
            decay=decay, train_as=train_as,
        )
        for entry in entries
    }  # fmt: skip
