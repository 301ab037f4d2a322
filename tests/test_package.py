"""The package itself: versions agree, stubs match the module, everything public is documented."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pathlib
import pkgutil
import re
import types

import pytest

import bnext

from .subprocesses import output_of

ROOT = pathlib.Path(bnext.__file__).parent
PUBLIC = sorted(bnext.__all__)
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(bnext, name))]
CLASSES = [name for name in PUBLIC if inspect.isclass(getattr(bnext, name))]


def test_versions_agree():
    version = importlib.metadata.version("bnext")
    assert bnext.__version__ == bnext._core.__version__ == version
    assert bnext.show_config(mode="dicts")["version"] == version


def test_typed_marker_is_installed():
    assert (ROOT / "py.typed").is_file()
    assert (ROOT / "_core.pyi").is_file()


def modules_of(package):
    """Every module of a package, at any depth, that can be imported here."""
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name in ("bnext._core", "bnext._cuda", "bnext.__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # PyTorch, matplotlib and others may be missing
            continue
        yield package, found.name.rpartition(".")[2], module
        if found.ispkg:
            yield from modules_of(module)


def test_an_import_is_light_and_names_are_all_there():
    """Layers, groups and conventions are imported when they are first used."""
    loaded = output_of("import bnext, sys; print(*sys.modules)").split()
    for module in ("layers", "sync", "estimators", "inference", "groups.mpi"):
        assert f"bnext.{module}" not in loaded
    names = output_of(
        "import bnext; print(*(n for n in bnext.__all__ if getattr(bnext, n)))"
    ).split()
    assert sorted(names) == PUBLIC
    with pytest.raises(AttributeError, match="module 'bnext' has no attribute 'BatchNorm4d'"):
        _ = bnext.BatchNorm4d


def test_nothing_hides_a_module():
    """An attribute of a package that is named like a module in it is that module."""
    seen = []
    for package, name, module in modules_of(bnext):
        seen.append(module.__name__)
        attribute = getattr(package, name)
        assert attribute is module, f"{package.__name__}.{name} is {attribute!r}"
    assert {"bnext.functional", "bnext.groups.threads", "bnext.inference.update"} <= set(seen)
    assert isinstance(bnext.functional, types.ModuleType)


def test_metadata():
    project = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    (script,) = re.findall(r'^bnext = "([\w.]+):(\w+)"$', text, re.MULTILINE)
    assert callable(getattr(importlib.import_module(script[0]), script[1]))
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"$', text, re.MULTILINE)[1]
    versions = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert versions == [str(int(oldest) + n) for n in range(len(versions))]
    assert len(versions) >= 4
    systems = re.findall(r'"Operating System :: (.*)"', text)
    assert systems == ["POSIX :: Linux"]  # what the tests run on


def names_in(body):
    """The public names that the statements of a stub define."""
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign):
            names.update(ast.unparse(target) for target in node.targets)
    return {name for name in names if is_public(name)}


def is_public(name):
    return not name.startswith("_") or name == "__version__"


STUB = ast.parse((ROOT / "_core.pyi").read_text()).body


def test_stub_names_what_the_module_has():
    assert names_in(STUB) == {name for name in dir(bnext._core) if is_public(name)}


def test_stub_names_what_its_classes_have():
    classes = {n.name: n for n in STUB if isinstance(n, ast.ClassDef) and is_public(n.name)}
    assert classes
    for name, node in classes.items():
        actual = {member for member in dir(getattr(bnext._core, name)) if is_public(member)}
        inherited = {
            member for base in getattr(bnext._core, name).__mro__[1:] for member in dir(base)
        }
        assert names_in(node.body) == actual - inherited, name


def test_stub_gives_the_parameters_of_every_function():
    """As the interpreter reads it; or as pybind11 puts it into the docstring, with the names."""
    for node in STUB:
        if isinstance(node, ast.FunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            names = [argument.arg for argument in arguments]
            function = getattr(bnext._core, node.name)
            if function.__text_signature__ is not None:
                assert list(inspect.signature(function).parameters) == names, node.name
                continue
            documented = function.__doc__.splitlines()[0]
            for name in names:
                assert f"{name}:" in documented, (node.name, documented)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name):
    function = getattr(bnext, name)
    signature = inspect.signature(function)
    text = inspect.getdoc(function)  # without the indentation, which Python 3.13 drops by itself
    assert text
    if signature.parameters:
        assert "\nParameters\n----------\n" in text
        section = text.split("Parameters\n")[1]
        for parameter in signature.parameters:
            assert parameter in section, parameter
    returns = signature.return_annotation
    assert returns is not inspect.Signature.empty, "public functions are typed"
    if returns not in (None, "None"):
        assert "\nReturns\n-------\n" in text


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name):
    for member_name, member in inspect.getmembers(getattr(bnext, name)):
        if inspect.isfunction(member) and not member_name.startswith("_"):
            assert inspect.getdoc(member), f"{name}.{member_name}"
    assert getattr(bnext, name).__doc__.strip()


def test_public_names_of_the_design():
    expected = {
        "batch_norm_forward", "batch_norm_backward", "moments", "normalize", "Moments", "Saved",
        "BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "set_num_threads",
        "get_num_threads", "use_isa", "show_config", "empty_cache", "cuda", "functional", "sync",
    }  # fmt: skip
    assert expected <= set(dir(bnext))
    assert expected - {"cuda", "functional", "sync"} <= set(bnext.__all__)
    assert all(hasattr(bnext, name) for name in bnext.__all__)


def test_import_brings_in_numpy_and_no_framework():
    program = """
        import sys
        import bnext
        heavy = {"torch", "jax", "tensorflow", "mpi4py", "scipy", "matplotlib", "pytest"}
        print(sorted(heavy & set(sys.modules)), "numpy" in sys.modules)
    """
    assert output_of(program) == "[] True"


def test_configuration_is_plain_data():
    config = bnext.show_config(mode="dicts")
    assert json.loads(json.dumps(config)) == config
    assert {"version", "isa", "threads", "cpu", "pool", "compiler", "cuda"} <= set(config)
    assert config["threads"]["number"] == bnext.get_num_threads() >= 1
    assert config["cuda"]["available"] is bnext.cuda.is_available()
    assert bool(config["cuda"]["reason"]) is not config["cuda"]["available"]


def test_configuration_has_two_modes():
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got 'json'$"):
        bnext.show_config(mode="json")


def test_configuration_prints(capsys):
    assert bnext.show_config() is None
    printed = capsys.readouterr().out
    config = bnext.show_config(mode="dicts")
    for text in (config["version"], config["isa"]["active"], config["cuda"]["reason"]):
        assert text in printed


def test_names_are_listed_before_they_are_used():
    """As the completion of an interpreter asks for them: also names that are imported later."""
    program = "import bnext; print(*dir(bnext)); print(*dir(bnext.inference))"
    names, of_inference = (line.split() for line in output_of(program).splitlines())
    assert set(bnext.__all__) | {"inference", "layers"} <= set(names)
    assert set(bnext.inference.__all__) <= set(of_inference)
