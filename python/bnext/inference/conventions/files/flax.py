"""Flax' msgpack files, and Orbax' folders: trees of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bnext.arguments import values_of
from bnext.inference.conventions.files.contents import Contents, library
from bnext.inference.conventions.reading import flat

__all__ = ["read_msgpack", "read_orbax"]

OF_ORBAX = ("_METADATA", "_sharding", "manifest.ocdbt", "checkpoint")
VALUE = "/value"  # behind the names of nnx variables


def read_msgpack(path: Path) -> Contents:
    """Read what ``flax.serialization.to_bytes`` wrote, by Flax' own reader."""
    serialization = library("flax.serialization", "Flax' msgpack files")
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a msgpack file of Flax, got {error}") from None
    return _contents(path, tree)


def read_orbax(path: Path) -> Contents:
    """Read a checkpoint of Orbax, by its own reader."""
    orbax = library("orbax.checkpoint", "Orbax' checkpoints")
    if (path / "default").is_dir():  # of a manager of checkpoints
        path = path / "default"
    if not path.is_dir() or not any((path / name).exists() for name in OF_ORBAX):
        raise ValueError(
            f"{path}: expected a folder that Orbax wrote, with {' or '.join(OF_ORBAX)} in it (or "
            "the path of a file)"
        )
    with orbax.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(path.absolute())
        tree = getattr(metadata, "item_metadata", metadata)
        tree = getattr(tree, "tree", tree)
        kinds = _kinds(tree, orbax)
        return _contents(path, reader.restore(path.absolute(), restore_args=kinds))


def _kinds(tree: Any, orbax: Any) -> Any:
    """Ask for NumPy's arrays: on whichever devices a checkpoint was written."""
    if isinstance(tree, dict):
        return {name: _kinds(value, orbax) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_kinds(value, orbax) for value in tree]
    return orbax.RestoreArgs(restore_type=np.ndarray)


def _contents(path: Path, tree: Any) -> Contents:
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a tree of arrays, got a {type(tree).__name__}")
    arrays = {
        name.removesuffix(VALUE): values_of(value, name)
        for name, value in flat(tree).items()
        if hasattr(value, "shape") and hasattr(value, "dtype")
    }
    return Contents(arrays, writer="Flax")
