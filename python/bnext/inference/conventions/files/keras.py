"""Keras' files: .keras, .weights.h5, and the older .h5, read with h5py; no layer is built.

Newer files number a layer's variables and call its group after its class; the group has the layer's
name as an attribute. A .keras file has the configuration of every layer beside them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bnext.inference.conventions.files.contents import Contents, Facts, library
from bnext.inference.conventions.libraries import CONVENTIONS

__all__ = ["read_h5", "read_keras"]

GROUP = "batch_normalization"
NAMES = CONVENTIONS["keras"].names
EITHER = ("keras", "tf-keras")


def read_keras(path: Path) -> Contents:
    """Read a .keras file: variables, configuration, version."""
    try:
        with zipfile.ZipFile(path) as file:
            version = str(json.loads(file.read("metadata.json"))["keras_version"])
            config = json.loads(file.read("config.json"))
            weights = file.read("model.weights.h5")
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected a .keras file, got {error}") from None
    with library("h5py", "Keras' files").File(io.BytesIO(weights), "r") as file:
        return _contents(path, file, config, version)


def read_h5(path: Path) -> Contents:
    """Read a .weights.h5 file, or a model in the older .h5 format."""
    h5py = library("h5py", "Keras' files")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: expected an HDF5 file, got {error}") from None
    with file:
        version = _text(file.attrs.get("keras_version", ""))
        config = json.loads(_text(file.attrs.get("model_config", "null")))
        return _contents(path, file, config, version)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _contents(path: Path, file: Any, config: Any, version: str) -> Contents:
    configs = {c["name"]: (c, shape) for c, shape in _configs(config)}
    arrays: dict[str, Any] = {}
    facts: dict[str, Facts] = {}
    conventions: tuple[str, ...] = EITHER
    if version:
        conventions = ("keras",) if int(version.partition(".")[0]) >= 3 else ("tf-keras",)
    for name, group in _groups(file):
        if name.endswith("/vars"):
            layer = _text(group.attrs.get("name", name.removesuffix("/vars")))
            if layer + "/" in facts or f"{layer}/{NAMES[2]}" in arrays:
                layer = name.removesuffix("/vars")  # a name that several layers have
            found = _numbered(path, name, layer, group, configs.get(layer, (None, None))[0])
        else:
            layer = name.removeprefix("model_weights/").partition("/")[2] or name
            found = {key.partition(":")[0]: v for key, v in group.items() if _is_array(v)}
        if NAMES[2] in found:
            facts[f"{layer}/"] = _facts(configs, layer, conventions)
        arrays |= {f"{layer}/{key}": np.asarray(value) for key, value in found.items()}
    return Contents(arrays, conventions, facts, f"Keras {version}".strip())


def _groups(file: Any) -> Iterator[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "items") and any(map(_is_array, item.values())):
            found.append((name, item))

    file.visititems(visit)
    return iter(found)


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype")


def _numbered(path: Path, name: str, layer: str, group: Any, config: Any) -> dict[str, Any]:
    """Give numbered variables their names: gamma, beta, mean, variance, as far as there are any."""
    values = [group[key] for key in sorted(group, key=int) if key.isdigit()]
    shapes = {value.shape for value in values}
    in_class = name.split("/")[-2].startswith(GROUP)
    is_one = len(shapes) == 1 and len(values[0].shape) == 1 and (in_class or len(values) == 4)
    if not is_one or not 2 <= len(values) <= 4:
        return {str(key): value for key, value in enumerate(values)}
    has = {"gamma": len(values) == 4, "beta": len(values) == 4}
    if config is not None:
        has = {"gamma": bool(config.get("scale", True)), "beta": bool(config.get("center", True))}
    elif len(values) == 3:
        raise ValueError(
            f"{path}: expected the configuration, since {layer} has three variables (no scale, or "
            "no center); save the model as .keras"
        )
    names = [key for key in NAMES if has.get(key, True)]
    if len(names) != len(values):
        raise ValueError(f"{path}: expected {names} for {layer}, got {len(values)} variables")
    return dict(zip(names, values, strict=True))


def _configs(config: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Find every layer's configuration, at any depth, with the shape of its input."""
    if isinstance(config, dict):
        inner = config.get("config")
        if config.get("class_name") and isinstance(inner, dict) and "name" in inner:
            yield inner, (config.get("build_config") or {}).get("input_shape")
        for value in config.values():
            yield from _configs(value)
    elif isinstance(config, list):
        for value in config:
            yield from _configs(value)


def _facts(configs: dict[str, Any], layer: str, conventions: tuple[str, ...]) -> Facts:
    config, shape = configs.get(layer.rpartition("/")[2], (None, None))
    if config is None or "epsilon" not in config:
        return Facts()
    axis = config.get("axis", -1)
    if isinstance(axis, list) and len(axis) == 1:
        (axis,) = axis
    bessel = None
    if conventions == ("tf-keras",):
        if config.get("fused") is False or config.get("synchronized"):
            bessel = False
        elif isinstance(shape, list):
            bessel = len(shape) in (4, 5)
    if isinstance(shape, list) and isinstance(axis, int) and axis == len(shape) - 1:
        axis = -1
    return Facts(
        {name: config[name] for name in ("epsilon", "momentum") if name in config},
        bessel,
        axis if isinstance(axis, int) else None,
    )
