"""Errors that a first user meets name what to do: tracers of JAX, packages that are missing."""

import re
import sys

import numpy as np
import pytest

import bnext

F4 = np.float32
TRACER = "expected an array, got a tracer of JAX"


CALLS = {
    "forward": lambda x: bnext.batch_norm_forward(x)[0],
    "normalize": lambda x: bnext.normalize(x, np.zeros(4, F4), np.ones(4, F4)),
    "moments": lambda x: bnext.moments(x).mean,
    "layer": lambda x: bnext.BatchNorm1d(4)(x),
    "layer in evaluation": lambda x: bnext.BatchNorm1d(4).eval()(x),
}


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_tracers_of_jax(jax, call, transform):
    x = jax.numpy.ones((3, 8, 4) if transform == "vmap" else (8, 4))
    function = (lambda x: call(x).sum()) if transform == "grad" else call
    with pytest.raises(TypeError, match=f"^x: {TRACER}") as caught:
        getattr(jax, transform)(function)(x)
    for remedy in ("inside of jax.jit, jax.grad and jax.vmap, call bnext.jax.batch_norm",
                   "jax.pure_callback"):  # fmt: skip
        assert remedy in str(caught.value)


@pytest.mark.parametrize("x_of_jax", [False, True])
def test_tracers_among_parameters(jax, x_of_jax):
    x = np.ones((8, 4), F4)
    x = jax.numpy.asarray(x) if x_of_jax else x
    with pytest.raises(TypeError, match=f"^weight: {TRACER}"):
        jax.jit(lambda weight: bnext.batch_norm_forward(x, weight)[0])(jax.numpy.ones(4))


def test_the_remedy_for_tracers_works(jax):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(F4)

    def normalized(x):
        result = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(bnext.batch_norm_forward(x)[0]), result, x)

    np.testing.assert_array_equal(jax.jit(normalized)(x), bnext.batch_norm_forward(x)[0])


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("mpi4py", lambda: bnext.sync.MPIGroup(None), "mpi"),
        ("torch", lambda: bnext.sync.TorchDistributedGroup(), "torch"),
    ],
)
def test_missing_packages(monkeypatch, package, make, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    text = re.escape(f"expected {package} to be installed (pip install 'bnext[{extra}]')")
    with pytest.raises(ModuleNotFoundError, match=text) as caught:
        make()
    assert caught.value.name == package


def test_a_package_that_lacks_one_of_its_own_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("")
    (tmp_path / "mpi4py" / "MPI.py").write_text("import a_library_of_mpi")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_library_of_mpi"):
        bnext.sync.MPIGroup(None)
    for name in ("mpi4py.MPI", "mpi4py"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_read_only_statistics_name_the_copy(rng):
    bn = bnext.BatchNorm1d(3)
    x = rng.normal(size=(4, 3)).astype(F4)
    bn.running_var.flags.writeable = False
    text = r"^running_var: expected a writeable array, got a read-only one \(running_var\.copy\(\)"
    with pytest.raises(ValueError, match=text):
        bn(x)
    bn.running_var = bn.running_var.copy()
    bn(x)
