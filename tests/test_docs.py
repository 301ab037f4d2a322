"""``help()``: every public class and function explains each of its arguments and attributes."""

import inspect
import re
import types

import pytest

import bnext

MODULES = {"bnext": bnext, "bnext.functional": bnext.functional, "bnext.sync": bnext.sync,
           "bnext.cuda": bnext.cuda}  # fmt: skip
# Made by calls, and not by users: they have attributes to explain, and no arguments.
RESULTS = (
    "DeviceRowSaved",
    "DeviceSaved",
    "Saved",
    "SplitRowSaved",
    "SplitSaved",
    "SyncSaved",
    "Update",
)
FORMULA = "(x - mean) / sqrt(var + eps) * weight + bias"


def public(modules):
    """Names and objects, each once."""
    found = {}
    for prefix, module in modules.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                found.setdefault(id(value), (f"{prefix}.{name}", value))
    return list(found.values())


def parameters_of(function):
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of an extension
        return []
    hidden = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = [p.name for p in signature.parameters.values() if p.kind not in hidden]
    return [name for name in found if name not in ("self", "cls")]


def assert_explains(name, value):
    """Each parameter has an entry in the docstring; one that does in a word may name it there."""
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    if "see `Group`" in text:  # where it is explained, for every kind of group
        return
    for parameter in parameters_of(value):
        entry = rf"^(\w+, )*{parameter}(, \w+)*( :|$)"
        in_a_word = rf"`[^`]*\b{parameter}\b[^`]*`"
        assert re.search(f"{entry}|{in_a_word}", text, re.MULTILINE), f"{name}: {parameter}"


def assert_is_explained(name, value):
    if not inspect.isclass(value):
        assert_explains(name, value)
        return
    assert value.__doc__, name
    if value.__name__ not in RESULTS:
        assert_explains(name, value)
    own = [kind for kind in value.__mro__ if kind.__module__.startswith("bnext")]
    for kind in own:
        for member, attribute in vars(kind).items():
            if member.startswith("_"):
                continue
            if isinstance(attribute, property):
                assert attribute.__doc__, f"{name}.{member}"
            elif inspect.isfunction(attribute) or isinstance(attribute, classmethod):
                assert_explains(f"{name}.{member}", getattr(value, member))


@pytest.mark.parametrize(
    ("name", "value"), public(MODULES), ids=lambda v: v if type(v) is str else ""
)
def test_everything_public_is_explained(name, value):
    assert_is_explained(name, value)


@pytest.mark.torch
def test_everything_public_is_explained_with_torch():
    import bnext.torch

    found = public({"bnext.torch": bnext.torch})
    assert len(found) >= 6
    for name, value in [*found, ("batch_norm", bnext.torch.functional.batch_norm)]:
        assert_is_explained(name, value)


@pytest.mark.parametrize("kind", [bnext.BatchNorm1d, bnext.BatchNorm2d, bnext.BatchNorm3d])
def test_the_layers_of_a_rank_say_what_the_general_one_does(kind):
    text = inspect.getdoc(kind)
    assert FORMULA in text
    assert "Ioffe and Szegedy 2015" in text
    general = inspect.getdoc(bnext.BatchNorm)
    sections = general[general.index("Parameters\n---") :]
    assert text.endswith(sections)
    for section in ("Parameters", "Attributes", "Raises"):
        assert f"\n{section}\n---" in text
    assert "(N, C" in text.splitlines()[0]


def test_attributes_of_saved_say_shape_and_meaning():
    properties = {
        name: value.__doc__
        for name, value in vars(bnext.Saved).items()
        if isinstance(value, types.GetSetDescriptorType)
    }
    assert set(properties) >= {
        "count", "mean", "m2", "var", "rstd", "eps", "shape", "dtype", "channel_axis",
        "batch_statistics",
    }  # fmt: skip
    for name in ("mean", "m2", "var", "rstd"):
        assert "float64" in properties[name]
        assert "(C,)" in " ".join(properties[name].split())
    assert all(properties.values())


def test_python_without_docstrings_imports():
    from .subprocesses import run_python

    result = run_python("import bnext; print(bnext.BatchNorm2d.__doc__)", PYTHONOPTIMIZE="2")
    assert (result.returncode, result.stdout.strip()) == (0, "None"), result.stderr
