"""Who imports PyTorch, and what it costs: bnext never does, bnext.torch says so where it cannot."""

import importlib.util
import os
import pathlib
import pkgutil
import re

from ..optional import import_torch
from ..subprocesses import output_of

import_torch()


def test_torch_is_not_imported_by_bnext():
    """By none of its modules but those of bnext.torch: not when imported, nor when used."""
    program = """
        import sys
        import numpy as np
        import bnext, bnext.demo, bnext.bench, bnext.sync, bnext.inference
        layer = bnext.BatchNorm1d(3)
        layer(np.ones((4, 3), np.float32))
        layer.backward(np.ones((4, 3), np.float32))
        found = [name for name in sys.modules if name.split(".")[0] == "torch"]
        print(found, hasattr(bnext, "torch"))
    """
    assert output_of(program) == "[] False"


def test_torch_is_imported_by_no_other_file():
    package = pathlib.Path(importlib.util.find_spec("bnext").origin).parent
    named = re.compile(r"^(import|from) torch\b|^(import|from) bnext\.torch\b", re.MULTILINE)
    for file in package.rglob("*.py"):
        if file.parent != package / "torch":
            assert not named.search(file.read_text()), file


WITHOUT_TORCH = """
    import sys
    sys.modules["torch"] = None  # as if it were not installed
    import bnext
    try:
        import bnext.torch
    except ImportError as error:
        print(type(error).__name__, error.name, error)
"""


def test_nothing_hides_a_module():
    """A public name of bnext.torch that is named like a module in it is that module."""
    import bnext.torch

    names = [found.name for found in pkgutil.iter_modules(bnext.torch.__path__)]
    assert {"functional", "reports", "sync"} <= set(names)
    for name in names:
        module = importlib.import_module(f"bnext.torch.{name}")
        assert getattr(bnext.torch, name) is module, name


def test_missing_is_said():
    said = output_of(WITHOUT_TORCH)
    assert said.startswith("ModuleNotFoundError torch bnext.torch: expected PyTorch 2.6 or later")
    assert "pip install torch" in said


def test_broken_is_its_own_error(tmp_path):
    """An installation that is there and lacks a part is not reported as missing."""
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("import part_of_torch_that_is_missing\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    program = """
        import bnext
        try:
            import bnext.torch
        except ImportError as error:
            print(error.name)
    """
    assert output_of(program, PYTHONPATH=os.pathsep.join(paths)) == "part_of_torch_that_is_missing"


def test_torch_s_compiler_is_not_imported_before_it_is_used():
    """It takes as long to import as all the rest of PyTorch."""
    program = """
        import sys, torch
        before = set(sys.modules)
        import bnext.torch
        layer = bnext.torch.BatchNorm1d(3)
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
        bnext.torch.SyncBatchNorm(3)(torch.randn(4, 3))
        new = set(sys.modules) - before
        print(sorted(new & {"torch._dynamo", "torch._inductor"}), "sympy" in new)
    """
    assert output_of(program) == "[] False"


PRIVATE = {
    "_len_torch_dispatch_stack": "torch._C", "_are_functorch_transforms_active": "torch._C",
    "_current_graph_task_id": "torch._C", "_is_tracing": "torch._C",
    "_current_level": "torch.autograd.forward_ad", "increment_version": "torch.autograd.graph",
    "is_legacy_batchedtensor": "torch._C._functorch",
}  # fmt: skip


def test_versions_without_a_private_name_are_served():
    """Each is taken away in a process: results are the same, by PyTorch's ways if need be."""
    program = f"""
        import operator, os, sys, torch
        import torch.distributed, torch.library, torch.testing
        import bnext  # all that a process need not import again
        torch.set_num_threads(1)

        def check(name, where):
            x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
            expected = torch.nn.BatchNorm1d(3, dtype=torch.float64)
            (wanted,) = torch.autograd.grad(expected(x).pow(3).sum(), x)
            delattr(operator.attrgetter(where.removeprefix("torch."))(torch), name)
            import bnext.torch
            layer = bnext.torch.BatchNorm1d(3, dtype=torch.float64)
            (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
            torch.testing.assert_close(dx, wanted)
            torch.testing.assert_close(layer.running_var, expected.running_var)
            assert layer.num_batches_tracked == 1

        for name, where in {PRIVATE}.items():
            child = os.fork()
            if child == 0:
                try:
                    check(name, where)
                except BaseException as error:
                    print(name, repr(error), flush=True)
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, name
        print("served")
    """
    assert output_of(program) == "served"
