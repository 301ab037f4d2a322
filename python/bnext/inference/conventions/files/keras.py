"""Keras' files: .keras, .weights.h5, and the older .h5, read with h5py; no layer is built.

Newer files number a layer's variables and call its group after its class; the group has the layer's
name as an attribute. A .keras file has the configuration of every layer beside them.
"""

from __future__ import annotations

import io
import json
import re
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
    configs = _Configs(config)
    arrays: dict[str, Any] = {}
    facts: dict[str, Facts] = {}
    conventions: tuple[str, ...] = EITHER
    if version:
        conventions = ("keras",) if int(version.partition(".")[0]) >= 3 else ("tf-keras",)
    groups = list(_groups(file))
    if any(name.endswith("/vars") and "name" in group.attrs for name, group in groups):
        conventions = ("keras",)  # Keras 2 writes no names there
    for name, group in groups:
        if name.endswith("/vars"):
            place = name.removesuffix("/vars")
            entry = configs.at(place, _text(group.attrs.get("name", "")))
            layer = _text(group.attrs.get("name", "")) or entry.get("name") or place
            if f"{layer}/{NAMES[2]}" in arrays:
                layer = place  # several layers have this name
            found = _numbered(path, name, layer, group, entry.get("config"))
        else:
            layer = name.removeprefix("model_weights/").partition("/")[2] or name
            entry = configs.at("", layer.rpartition("/")[2])
            found = {key.partition(":")[0]: v for key, v in group.items() if _is_array(v)}
        if NAMES[2] in found:
            facts[f"{layer}/"] = _facts(entry, tf_keras=conventions == ("tf-keras",))
        arrays |= {f"{layer}/{key}": np.asarray(value) for key, value in found.items()}
    return Contents(arrays, conventions, facts, f"Keras {version}".strip())


class _Configs:
    """Configurations of layers: by their groups in the file, or else by names that are unique."""

    def __init__(self, config: Any) -> None:
        self._by_place: dict[str, dict[str, Any]] = {}
        self._by_name: dict[str, list[dict[str, Any]]] = {}
        if isinstance(config, dict):
            self._add_layers(config, "")
        self._add(config)

    def at(self, place: str, name: str) -> dict[str, Any]:
        """Give a layer's entry: its name, config and build_config; empty if it is not known."""
        entry = self._by_place.get(place)
        if entry is not None and name in ("", entry.get("config", {}).get("name")):
            return {"name": entry["config"].get("name"), **entry}
        found = self._by_name.get(name, [])
        return found[0] if len(found) == 1 else {}

    def _add_layers(self, config: dict[str, Any], place: str) -> None:
        """Name the layers of a container as Keras names groups: by class and number."""
        inner = config.get("config")
        counts: dict[str, int] = {}
        for entry in (inner.get("layers") or []) if isinstance(inner, dict) else []:
            kind = _snake(entry["class_name"])
            number = counts[kind] = counts.get(kind, -1) + 1
            here = f"{place}layers/{kind}_{number}" if number else f"{place}layers/{kind}"
            if isinstance(entry.get("config"), dict):
                self._by_place[here] = entry
                self._add_layers(entry, f"{here}/")

    def _add(self, config: Any) -> None:
        """Find every layer, at any depth: also inside of wrappers and of other layers."""
        if isinstance(config, dict):
            inner = config.get("config")
            if config.get("class_name") and isinstance(inner, dict) and "name" in inner:
                self._by_name.setdefault(inner["name"], []).append(config)
            config = list(config.values())
        if isinstance(config, list):
            for value in config:
                self._add(value)


def _snake(name: str) -> str:
    """Give the name of a class as Keras writes it in files: batch_normalization."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _groups(file: Any) -> Iterator[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        is_model_s = not name.startswith(("optimizer", "metrics"))
        if is_model_s and hasattr(item, "items") and any(map(_is_array, item.values())):
            found.append((name, item))

    file.visititems(visit)
    return iter(found)


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype")


def _numbered(path: Path, name: str, layer: str, group: Any, config: Any) -> dict[str, Any]:
    """Give numbered variables their names: gamma, beta, mean, variance, as far as there are any."""
    values = [group[key] for key in sorted(filter(str.isdigit, group), key=int)]
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


def _facts(entry: dict[str, Any], *, tf_keras: bool) -> Facts:
    config, shape = entry.get("config") or {}, (entry.get("build_config") or {}).get("input_shape")
    if "epsilon" not in config:
        return Facts()
    axis = config.get("axis", -1)
    if isinstance(axis, list) and len(axis) == 1:
        (axis,) = axis
    rank = len(shape) if isinstance(shape, list) else None
    bessel = None
    if tf_keras:
        never = config.get("fused") is False or config.get("synchronized") or config.get("renorm")
        if never or rank is not None:
            bessel = not never and rank in (4, 5)
    if rank is not None and axis == rank - 1:
        axis = -1
    return Facts(
        {name: config[name] for name in ("epsilon", "momentum") if name in config},
        bessel,
        axis if isinstance(axis, int) else None,
    )
