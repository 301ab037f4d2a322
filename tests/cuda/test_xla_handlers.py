"""The handlers for CUDA by themselves: values, errors, and what they ask of the runtime.

They are the handlers of the module of kernels, over the emulated kernels, in call frames that tests
make. `test_xla_programs.py` has programs of JAX.
"""

import numpy as np
import pytest

from .. import reference
from ..activations import ACTIVATIONS
from ..cases import Case
from ..epilogues import DTYPES, Expected, computed, drawn
from ..sixteen import name_of
from .frames import (
    INTERNAL,
    INVALID_ARGUMENT,
    MODULE,
    STREAM,
    TARGETS,
    backward,
    forward,
    gradients,
    words,
)
from .gpu import PATHS

RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
# In C order, as XLA has arrays; single values and units of four.
CASES = [
    Case("odd-planes", (3, 5, 7, 9)),
    Case("rows", (37, 19)),
    Case("channels-last", (2, 3, 5, 33), channel_axis=-1),
    Case("planes-of-four", (3, 5, 4, 10)),
    Case("channels-of-four", (2, 3, 5, 36), channel_axis=-1),
    Case("channels-first", (6, 5, 9), channel_axis=0),
    Case("one-channel", (19, 1, 5)),
]
LONG = [Case("long-planes", (9, 2, 40, 20)), Case("long-rows", (1300, 8))]


@pytest.mark.parametrize("stage", ["execute", "initialize"])
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_command_buffers_may_have_calls(target, stage):
    assert MODULE.may_be_captured(TARGETS[target][stage])


@RESIDUAL
@DATA
@pytest.mark.parametrize(
    ("case", "name"),
    [*((case, name) for case in CASES for name in (None, "relu")),
     *((CASES[k], name) for k, name in enumerate(sorted(ACTIVATIONS.keys() - {"relu"}), -4))],
    ids=str,
)  # fmt: skip
def test_both_passes(rng, case, name, dtype, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    found = forward(inputs).run()
    again = backward(inputs, found["statistics"]).run()
    Expected(inputs).assert_are_results((found["y"], *gradients(inputs, again)))


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
@DATA
def test_what_is_shown_of_statistics(rng, case, dtype):
    """In the dtype of parameters, the mean with its low part, so that no digit is lost."""
    inputs = drawn(rng, case, dtype, None, False)
    if dtype in (np.float32, np.float64):
        inputs = inputs._replace(x=inputs.x + dtype(1000))
    found = forward(inputs).run()
    rows = found["statistics"].view(np.float64)[..., 0]
    mean, m2, low = found["values"]
    assert found["values"].dtype == computed(dtype)
    np.testing.assert_array_equal(mean, rows[0].astype(computed(dtype)))
    np.testing.assert_array_equal(m2, rows[1].astype(computed(dtype)))
    of_mean = rows[0] - mean.astype(np.float64) + rows[4]
    np.testing.assert_array_equal(low, of_mean.astype(computed(dtype)))
    expected = reference.moments(inputs.x, case.channel_axis)
    np.testing.assert_allclose(rows[0], expected.mean, rtol=1e-6)
    np.testing.assert_allclose(rows[1], expected.m2, rtol=1e-4)


@RESIDUAL
@DATA
@pytest.mark.parametrize("name", [None, "relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_given_statistics(rng, case, name, dtype, residual):
    parameters = computed(dtype)
    mean = rng.uniform(-2, 2, case.channels).astype(parameters)
    var = rng.uniform(0.25, 4, case.channels).astype(parameters)
    inputs = drawn(rng, case, dtype, name, residual, (mean, var))
    expected = Expected(inputs, (mean, var))
    found = forward(inputs, "normalize", (mean, var)).run()
    expected.assert_is_y(found["y"])
    again = backward(inputs, found["statistics"], "backward_given").run()
    expected.assert_are_gradients(*gradients(inputs, again))


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_may_be_absent(rng, weight, bias):
    inputs = drawn(rng, CASES[0], np.float32, None, False)
    inputs = inputs._replace(
        weight=inputs.weight if weight else None, bias=inputs.bias if bias else None
    )
    found = forward(inputs).run()
    again = backward(inputs, found["statistics"]).run()
    Expected(inputs).assert_are_results((found["y"], *gradients(inputs, again)))


@pytest.fixture
def force():
    """Makes calls take a path, where they have it; None: the plan's own."""
    yield MODULE.force_path
    MODULE.force_path(None)


# Of any device, one that refuses launches included; and by every path.
@pytest.mark.parametrize(
    ("device", "path"), [*((d, None) for d in range(5)), *((d, p) for d in (0, 1) for p in PATHS)]
)
@pytest.mark.parametrize("case", [*LONG, CASES[0]], ids=str)
def test_nothing_but_launches_on_the_stream(rng, force, case, device, path):
    """No memory is taken, and nothing waits, so that a command buffer may have the call."""
    inputs = drawn(rng, case, np.float32, "silu", True)
    first = forward(inputs)
    second = backward(inputs, first.results["statistics"])
    force(path)
    for frame in (first, second):
        MODULE.record(True)
        code, text = frame.call(device=device)
        asked = MODULE.record(False)
        if path is not None and code == INVALID_ARGUMENT:
            assert text.startswith(f"path: {path} cannot do this: ")
            return
        assert (code, text) == (0, "")
        names = [what for what, _ in asked]
        assert {"allocate", "synchronize"}.isdisjoint(names)
        assert names.count("run") >= 2  # and one of a thread for each channel
        assert {stream for what, stream in asked if what != "prepare"} == {STREAM}
    Expected(inputs).assert_are_results((first.results["y"], *gradients(inputs, second.results)))


@pytest.mark.parametrize("device", [0, 1, 4])
def test_before_a_program_runs(rng, device):
    """Kernels are loaded, arrays stay as they are, and the execution has nothing left to ask."""
    inputs = drawn(rng, LONG[0], np.float32, "relu", False)
    frame = forward(inputs)
    MODULE.record(True)
    assert frame.call(stage="initialize", device=device) == (0, "")
    asked = MODULE.record(False)
    assert {what for what, _ in asked} == {"prepare"}
    assert np.isnan(frame.results["y"]).all()
    assert not frame.results["statistics"].any()
    before = MODULE.plan_figures()["made"]
    frame.run(device=device)
    if device != 4:  # which refuses what was planned, so that plans are forgotten
        assert MODULE.plan_figures()["made"] == before


def test_the_same_bits_in_every_call(rng):
    inputs = drawn(rng, LONG[1], np.float32, "gelu", True)
    first, second = forward(inputs).run(), forward(inputs).run()
    for name in ("y", "statistics", "values"):
        np.testing.assert_array_equal(first[name], second[name])


def test_slices_of_vmap(rng):
    """Axes in front: of x alone, and of the weight alone."""
    case = Case("rows", (37, 19))
    several = [drawn(rng, case, np.float32, "relu", False) for _ in range(6)]
    x = np.stack([each.x for each in several]).reshape(2, 3, 37, 19)
    weight = np.stack([several[0].weight, several[1].weight]).reshape(2, 1, 19)
    frame = forward(several[0]._replace(x=x, weight=weight, bias=several[0].bias[None, None]))
    frame.results |= {
        "y": np.full_like(x, np.nan), "statistics": words(2, 3, 5, 19),
        "values": np.zeros((2, 3, 3, 19), np.float32), "workspace": np.zeros((2, 3, 1 << 17), "u1"),
    }  # fmt: skip
    frame.attributes["rank"] = 2
    y = frame.run()["y"]
    for outer, inner in np.ndindex(2, 3):
        one = several[0]._replace(x=x[outer, inner], weight=weight[outer, 0])
        Expected(one).assert_is_y(y[outer, inner])


def test_arrays_without_values(rng):
    """Nothing is launched, and every result is 0."""
    inputs = drawn(rng, CASES[0], np.float32, None, False)
    empty = np.empty((0, 5, 7), np.float32)
    inputs = inputs._replace(x=empty, dy=empty)
    frame = backward(inputs, words(5, 5))
    MODULE.record(True)
    found = frame.run()
    assert {what for what, _ in MODULE.record(False)} == {"zero"}
    assert not found["dweight"].any()
    assert not found["dbias"].any()


WRONG = {
    "weight's shape": (
        lambda f: f.arguments.update(weight=np.ones(4, np.float32)),
        "weight: expected shape (5,), got (4,)",
    ),
    "weight's dtype": (
        lambda f: f.arguments.update(weight=np.ones(5, np.float64)),
        "weight: expected dtype float32, got float64",
    ),
    "x's dtype": (
        lambda f: f.arguments.update(x=np.ones((3, 5, 7, 9), np.int32)),
        "x: expected dtype float16, bfloat16, float32 or float64, got ",
    ),
    "y's shape": (
        lambda f: f.results.update(y=np.ones((3, 5, 7), np.float32)),
        "y: expected 945 values ",
    ),
    "statistics' shape": (
        lambda f: f.results.update(statistics=words(4, 5)), "statistics: expected 50 values ",
    ),
    "values' dtype": (
        lambda f: f.results.update(values=np.ones((3, 5))), "values: expected 15 values of type ",
    ),
    "no room": (
        lambda f: f.results.update(workspace=np.zeros(8, np.uint8)),
        "workspace: expected 256 bytes or more, got 8",
    ),
    "eps": (lambda f: f.attributes.update(eps=-1.0), "eps: expected "),
    "axis": (lambda f: f.attributes.update(channel_axis=7), "channel_axis: expected "),
    "one value": (
        lambda f: (f.arguments.update(x=np.ones((1, 5), np.float32)), f.attributes.update(rank=2)),
        "Expected more than 1 value per channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_errors_name_the_argument(rng, case):
    change, expected = case
    frame = forward(drawn(rng, CASES[0], np.float32, None, False))
    change(frame)
    code, text = frame.call()
    assert code == INVALID_ARGUMENT
    assert text.startswith(expected)


def test_the_room_that_is_missing(rng):
    """Where blocks wait for each other there is more to keep than two kernels need."""
    inputs = drawn(rng, LONG[0], np.float32, None, False)
    code, text = forward(inputs, room=256).call()
    assert code == INVALID_ARGUMENT
    assert text.startswith("workspace: expected ")
    assert text.endswith(" bytes, got 0")


def test_errors_of_a_device_name_the_kernel(rng):
    """One kernel fails, and the next launch tells."""
    inputs = drawn(rng, CASES[0], np.float32, None, False)
    code, text = forward(inputs).call(device=5)
    assert code == INTERNAL
    assert "a kernel has failed" in text
