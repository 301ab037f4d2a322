"""Gradients of the backward pass on a GPU, without one: by emulated kernels.

Against their definition, in every dtype, layout and epilogue; beside the CPU's.
"""

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from ..activations import ACTIVATIONS
from ..cases import EMPTY, Case, Memory, named
from ..compare import assert_same_bits, assert_same_memory_order
from ..epilogues import CASES, DTYPES
from ..fake_cuda import Array
from ..groups.support import CUTS, members, new_group
from ..groups.test_double_backward import expected_of, forward, joined, parts_of
from ..optional import import_emulated
from ..sixteen import name_of
from ..test_double_backward import (
    WANTED,
    assert_all_same_bits,
    assert_are,
    assert_wanted,
    drawn,
)
from .twice_there import fetched, moved

import_emulated()  # of thousands of tests nearly all need it
pytestmark = pytest.mark.usefixtures("emulated")
ALL = [*ACTIVATIONS, None]
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
# What takes units of four values, and slabs that several blocks have, beside CASES.
MORE = [
    Case("planes-of-four", (3, 5, 4, 10)),
    Case("channels-of-four", (2, 3, 5, 36), channel_axis=-1),
    Case("stored-NHWC-of-four", (2, 24, 3, 5), memory=Memory(order=(0, 2, 3, 1))),
    Case("long-planes", (9, 2, 40, 20)),
    Case("long-rows", (3000, 8)),
    Case("many-channels", (70, 300)),
]


def there(inputs, device=0):
    return moved(inputs, lambda values: Array(values, device))


def here(results):
    return fetched(results, lambda array: array.values)


@RESIDUAL
@DATA
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES + MORE, ids=str)
def test_agrees_with_the_definition(rng, case, name, dtype, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    results = here(there(inputs).twice())
    # Of float32, the statistics and z are a little farther from the definition than the CPU's.
    assert_are(results, inputs, inputs.expected(), 4.0 if dtype == np.float32 else 2.0)
    assert_same_memory_order(results.x, inputs.x)


@pytest.mark.parametrize("device", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("case", [CASES[0], *MORE], ids=str)
def test_the_same_bits_again(rng, case, device):
    inputs = there(drawn(rng, case, np.float32, "silu", True), device)
    assert_all_same_bits(here(inputs.twice()), here(inputs.twice()))


@DATA
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("case", [CASES[0], *MORE[:3]], ids=str)
def test_given_statistics(rng, case, name, dtype):
    parameters = np.float64 if dtype == np.float64 else np.float32
    mean = rng.uniform(-2, 2, case.channels).astype(parameters)
    var = rng.uniform(0.25, 4, case.channels).astype(parameters)
    inputs = drawn(rng, case, dtype, name, given=(mean, var))
    bn = bnext.BatchNorm(
        case.channels, channel_axis=case.channel_axis, dtype=parameters, activation=name
    )
    bn.running_mean[...], bn.running_var[...] = mean, var
    bn.weight[...] = 1 if inputs.weight is None else inputs.weight
    bn.bias[...] = 0 if inputs.bias is None else inputs.bias
    on_gpu = there(inputs)
    bn.to(on_gpu.x).eval()
    saved = bnext.spine.forward(
        on_gpu.x, on_gpu.weight, on_gpu.bias, 1e-5, case.channel_axis, None, given=bn.running,
        epilogue=None if name is None else (None, name, 0.01),
    )[1]  # fmt: skip
    results = here(on_gpu.twice(saved))
    assert_are(results, inputs, inputs.expected((mean, var)), 4.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
@pytest.mark.parametrize("case", [*named("NC", "NHWC"), MORE[0]], ids=str)
def test_means_large_beside_deviations(rng, case, name, dtype):
    ratio = 1e4
    x, dy = (case.memory.place((rng.normal(size=case.shape) + ratio).astype(dtype)) for _ in "ab")
    ddx = case.memory.place((rng.normal(size=case.shape) - ratio).astype(dtype))
    inputs = drawn(rng, case, dtype, name, x=x, dy=dy if name is None else None, ddx=ddx)
    units = 16 * ratio if dtype == np.float64 else 8.0
    assert_are(here(there(inputs).twice()), inputs, inputs.expected(), units)


@pytest.mark.parametrize("given", [(), ("ddx",), ("ddweight",), ("ddbias",), ("ddresidual",)])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_each_outer_gradient_alone(rng, name, given):
    inputs = drawn(rng, CASES[0], np.float32, name, True)
    outer = dict.fromkeys(("ddx", "ddweight", "ddbias", "ddresidual"))
    outer |= {each: getattr(inputs, each) for each in given}
    inputs = inputs._replace(**outer)
    assert_are(here(there(inputs).twice()), inputs, inputs.expected(), 4.0)


@WANTED
def test_what_is_wanted(rng, wanted):
    inputs = there(drawn(rng, CASES[0], np.float32, "silu", True))
    every, some = here(inputs.twice()), here(inputs.twice(wanted=wanted))
    assert_wanted(some, every, wanted)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_without_values(case):
    x = Array(np.zeros(case.shape, np.float32))
    saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)[1]
    result = bnext.batch_norm_double_backward(x, x, x, saved)
    assert result.dy.values.shape == result.x.values.shape == case.shape
    np.testing.assert_array_equal(result.weight.values, np.zeros(case.channels))


def test_arrays_in_the_way(rng):
    """Other strides than x has: copies are made."""
    inputs = there(drawn(rng, Case("strided", (4, 3, 5, 6)), np.float32, "silu", True))
    expected = here(inputs.twice())
    turned = np.ascontiguousarray(inputs.ddx.values.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    assert_all_same_bits(here(inputs._replace(ddx=Array(turned)).twice()), expected)


def test_infinite_gradients_stop_at_a_slope_of_0():
    x = np.array([[-1.0, 2.0], [3.0, -4.0], [0.5, 0.25]], np.float32)
    dy = np.where(x < -0.5, np.inf, 1).astype(np.float32)
    x, dy = Array(x), Array(dy)
    saved = bnext.batch_norm_forward(x, activation="relu")[1]
    result = here(bnext.batch_norm_double_backward(x, dy, x, saved))
    assert np.isfinite(result.dy).all()
    assert np.isfinite(result.x).all()


# --- errors ---------------------------------------------------------------------------------------

X, OTHER = (np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32) for seed in (1, 2))
VECTOR = np.ones(3, np.float32)
# What is given in place of what is right.
REFUSED = {
    "rank": ({"ddx": Array(X[0])}, ValueError, "ddx: expected shape (4, 3), got (3,)"),
    "shape": ({"dy": Array(X[:3])}, ValueError, "dy: expected shape (4, 3), got (3, 3)"),
    "dtype": (
        {"ddx": Array(X.astype(float))}, TypeError, "ddx: expected dtype float32, got float64",
    ),
    "without-dy": (
        {"dy": None}, TypeError, "dy: expected an array on cuda:0, like x, got one on the CPU",
    ),
    "vector": ({"ddbias": Array(X[:, 0])}, ValueError, "ddbias: expected shape (3,), got (4,)"),
    "dtype-of-vector": (
        {"ddweight": Array(np.zeros(3))}, TypeError,
        "ddweight: expected dtype float32, got float64",
    ),
    "residual": (
        {"ddresidual": Array(X)}, ValueError,
        "ddresidual: expected None, since the forward call had no residual",
    ),
    "on-the-CPU": (
        {"ddx": X}, TypeError, "ddx: expected an array on cuda:0, like x, got one on the CPU",
    ),
    "on-another-GPU": (
        {"ddweight": Array(VECTOR, 1)}, TypeError,
        "ddweight: expected an array on cuda:0, like x, got one on cuda:1",
    ),
    "all-on-the-CPU": (
        {"ddx": X, "dy": X, "x": X}, TypeError,
        "saved: made from an input on cuda:0, got x on the CPU",
    ),
    "wanted": (
        {"wanted": ["dx"]}, ValueError,
        "wanted: expected names among dy, x, weight, bias, residual, got 'dx'",
    ),
}  # fmt: skip


@pytest.fixture
def requests(emulated):
    """Ends a record of launches and copies, and gives it."""
    emulated.record(True)
    yield lambda: emulated.record(False)
    emulated.record(False)


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments(emulated, requests, name):
    """Nothing is launched, and nothing is written."""
    replaced, kind, text = REFUSED[name]
    x = Array(X.copy())
    saved = bnext.batch_norm_forward(x, Array(VECTOR), activation="silu")[1]
    given = {"ddx": Array(OTHER), "dy": Array(OTHER), "x": x, "saved": saved} | replaced
    before = saved.rows.values.copy()
    emulated.record(True)
    with pytest.raises(kind) as caught:
        bnext.batch_norm_double_backward(weight=Array(VECTOR), **given)
    assert str(caught.value) == text
    assert requests() == []
    assert_same_bits(saved.rows.values, before)
    assert_same_bits(x.values, X)


def test_given_residual_is_asked_for():
    x = Array(X)
    saved = bnext.batch_norm_forward(x, residual=Array(OTHER), activation="silu")[1]
    with pytest.raises(ValueError, match=r"^residual: expected the forward call's"):
        bnext.batch_norm_double_backward(x, x, x, saved)


def test_launches_of_a_pass(emulated, requests):
    x = Array(X)
    saved = bnext.batch_norm_forward(x)[1]
    requests()
    emulated.record(True)
    bnext.batch_norm_double_backward(x, x, x, saved)
    assert [what for what, _ in requests()].count("run") == 4


def test_a_kernel_that_failed_before_is_told():
    x = Array(X, 5)
    saved = bnext.batch_norm_forward(x)[1]  # its kernel fails
    text = (
        r"^double_backward \(kernel find_twice_pilots, float32, interleaved, unit 1; grid 1, block "
        r"128, shared bytes 0; device 5 \(emulation of a GPU that fails\)\): emulated CUDA: "
        r".*a kernel has failed"
    )
    with pytest.raises(RuntimeError, match=text):
        bnext.batch_norm_double_backward(x, x, x, saved)


# --- in groups ------------------------------------------------------------------------------------


def in_group(parts, on_cpu=(), **options):
    """Results of members whose arrays are on a GPU, but for some."""
    group = new_group(len(parts))

    def member(rank, part):
        if rank in on_cpu:
            return part.twice(forward(part, group), **options)
        part = there(part)
        return here(part.twice(forward(part, group), **options))

    return group.run(member, parts)


@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("cut", ["unequal", "empty-in-between"])
@pytest.mark.parametrize("case", named("NC", "NCHW-7x7", "NHWC"), ids=str)
def test_members_on_a_gpu(rng, case, cut, name):
    """One of them on the CPU."""
    inputs = drawn(rng, case, np.float32, name, name is not None)
    parts = parts_of(rng, inputs, cut)
    results = in_group(parts, on_cpu=(1,))
    assert_are(joined(inputs, results), inputs, expected_of(inputs, parts), 4.0)


@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@DATA
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", named("NCHW-7x7", "NHWC"), ids=str)
def test_totals(rng, case, cut, dtype, name):
    check_totals(rng, case, cut, dtype, name)


def check_totals(rng, case, cut, dtype, name, on_cpu=()):
    """Gradients by one dweight and dbias of the batch, the same bits for all members."""
    inputs = drawn(rng, case, dtype, name, name is not None)
    parts = parts_of(rng, inputs, cut)
    results = in_group(parts, on_cpu, parameter_gradients="total")
    expected = expected_of(inputs, parts, total=True)
    units = 4.0 if dtype == np.float32 else 2.0
    assert_are(joined(inputs, results, total=True), inputs, expected, units)


@pytest.mark.parametrize("on_cpu", [(0,), (1, 2)], ids=str)
@pytest.mark.parametrize("cut", ["unequal", "empty-in-between"])
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
def test_totals_of_members_on_either(rng, name, cut, on_cpu):
    check_totals(rng, named("NCHW-7x7")[0], cut, np.float32, name, on_cpu)


@pytest.mark.parametrize("given", [(), ("ddx",), ("ddweight",), ("ddbias",)], ids=str)
def test_totals_of_each_outer_gradient_alone(rng, given):
    """What a member does not give is 0, of it alone or of all."""
    inputs = drawn(rng, named("NHWC")[0], np.float32, "silu")
    parts = parts_of(rng, inputs, "unequal")
    zeros = {name: np.zeros_like(getattr(inputs, name)) for name in ("ddx", "ddweight", "ddbias")}
    lacking = {name: None for name in zeros if name not in given}
    as_zeros = [part._replace(**{n: np.zeros_like(getattr(part, n)) for n in lacking})
                for part in parts]  # fmt: skip
    results = in_group([part._replace(**lacking) for part in parts], parameter_gradients="total")
    inputs = inputs._replace(**{name: zeros[name] for name in lacking})
    expected = expected_of(inputs, as_zeros, total=True)
    assert_are(joined(inputs, results, total=True), inputs, expected, 4.0)


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias", "dy"), ()], ids=str)
def test_wanted_totals(rng, wanted):
    inputs = drawn(rng, named("NC")[0], np.float32, "silu", True)
    parts = parts_of(rng, inputs, "empty-in-between")
    every = in_group(parts, parameter_gradients="total")
    some = in_group(parts, parameter_gradients="total", wanted=wanted)
    for one, other in zip(some, every, strict=True):
        assert_wanted(one, other, wanted)


@pytest.mark.parametrize("kind", ["local", "total"])
@pytest.mark.parametrize("on_cpu", [(), (1,)], ids=str)
def test_large_means_in_a_group(rng, on_cpu, kind):
    """Pilots are the same numbers for every member, wherever its arrays are."""
    case, ratio = named("NCHW-7x7")[0], 1e4
    x, ddx, dy = (
        case.memory.place((rng.normal(size=case.shape) + mean).astype(np.float32))
        for mean in (ratio, -ratio, ratio)
    )
    inputs = drawn(rng, case, np.float32, None, x=x, dy=dy, ddx=ddx)
    parts = parts_of(rng, inputs, "unequal")
    total = kind == "total"
    results = joined(inputs, in_group(parts, on_cpu, parameter_gradients=kind), total)
    expected = expected_of(inputs, parts, total)
    if not total:  # each share is as large as ddx, and rounded
        results = results._replace(weight=expected.weight.astype(np.float32))
    assert_are(results, inputs, expected, 8.0)


def test_totals_beside_sums_are_told(rng):
    """By a member on a GPU as by one on the CPU."""
    group = new_group(2)
    x = rng.normal(size=(4, 3)).astype(np.float32)

    def member(rank):
        data = Array(x) if rank == 0 else x
        saved = bnext.batch_norm_forward(data, group=group)[1]
        kind = "total" if rank == 0 else "local"
        bnext.batch_norm_double_backward(data, data, data, saved, parameter_gradients=kind)

    for error in members(group, member):
        assert isinstance(error, GroupError)
        assert "channels instead of" in str(error)
