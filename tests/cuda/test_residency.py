"""Devices with room for less than their limits say, and launches that fail; in the emulation.

Device 0 runs whatever it is given. The others are as small, and each lacks something.
"""

import re

import numpy as np
import pytest

import bnext
from bnext.rows import ROW

from .. import reference
from ..compare import assert_are_gradients, assert_is_forward
from ..fake_cuda import Array
from ..optional import import_emulated
from ..subprocesses import output_of, run_python
from .test_plans import dense_strides

WHOLE, ONE_BLOCK, NO_BLOCKS, REFUSES, FAILS = 0, 2, 3, 4, 5
# What is chosen on device 0, and where nothing of clusters or of two blocks is resident.
SHAPES = {
    "cluster": (2, 2, 4099), "chunked": (3, 3, 30011), "rows": (4001, 33), "block": (3, 5, 49),
}  # fmt: skip


@pytest.fixture
def kernels(monkeypatch):
    module = import_emulated()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    return module


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def plan_on(kernels, device, operation, shape, path=None):
    arrays = {"forward": 2, "backward": 3}[operation]
    strides = [dense_strides(shape, "planar" if len(shape) > 2 else "interleaved")] * arrays
    limits = kernels.limits(device)
    return kernels.plan(operation, "float32", shape, strides, [0] * arrays, 1, limits, path)


def assert_calls_are_right(device, shape, rng):
    """Training forward with running statistics, and backward."""
    x, dy = rng.normal(1, 2, (2, *shape)).astype(np.float32)
    channels = shape[1]
    weight, bias = rng.normal(size=(2, channels)).astype(np.float32)
    bn = bnext.BatchNorm(channels)
    bn.weight[...], bn.bias[...] = weight, bias
    bn.to(Array(np.empty(0), device))
    y = bn(Array(x, device))
    assert_is_forward(y.values, x, weight, bias)
    running = reference.update_running(
        (np.zeros(channels), np.ones(channels)), reference.moments(x), 0.1
    )
    for name, value in zip(("running_mean", "running_var"), running, strict=True):
        np.testing.assert_allclose(getattr(bn, name).values, value, rtol=1e-5, atol=1e-6)
    dx = bn.backward(Array(dy, device))
    gradients = dx.values, bn.weight_grad.values, bn.bias_grad.values
    assert_are_gradients(gradients, dy, x, weight)


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_what_is_chosen_where_all_fits(kernels, operation):
    paths = [plan_on(kernels, WHOLE, operation, shape).path for shape in SHAPES.values()]
    assert paths == ["cluster", "chunked", "chunked", "block"]


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_a_smaller_grid_where_fewer_blocks_are_resident(kernels, operation, shape):
    plan = plan_on(kernels, ONE_BLOCK, operation, shape)
    launch = plan.launches[0]
    assert launch["cluster"] == 1
    if plan.path in ("cooperative", "chunked"):
        assert launch["grid"] <= 3
    whole = plan_on(kernels, WHOLE, operation, shape)
    if whole.path != "block":
        assert whole.launches[0]["grid"] > 3
        assert plan.path in ("cooperative", "chunked")
    assert (np.frombuffer(plan.coverage(), np.uint8) == 1).all()


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_two_kernels_where_none_is_resident(kernels, operation, shape):
    whole = plan_on(kernels, WHOLE, operation, shape)
    plan = plan_on(kernels, NO_BLOCKS, operation, shape)
    assert plan.path == (whole.path if whole.path == "block" else "two_kernels")
    for path, text in (
        ("cluster", "the device has no room for such a cluster"),
        ("cooperative", "the device has no room for its blocks"),
    ):
        with pytest.raises(ValueError, match=f"^path: {path} cannot do this: {text}$"):
            plan_on(kernels, NO_BLOCKS, operation, SHAPES["cluster"], path)


@pytest.mark.parametrize("device", [WHOLE, ONE_BLOCK, NO_BLOCKS, REFUSES])
def test_results_are_right(kernels, device, shape, rng):
    for _ in range(2):  # the second call knows what was refused
        assert_calls_are_right(device, shape, rng)


def test_a_refused_launch_is_planned_again(kernels, shape, rng):
    for _ in range(3):  # a cluster is refused, then a cooperative grid, then a chunked one
        assert_calls_are_right(REFUSES, shape, rng)
    for operation in ("forward", "backward"):
        whole = plan_on(kernels, WHOLE, operation, shape)
        plan = plan_on(kernels, REFUSES, operation, shape)
        assert plan.path == (whole.path if whole.path == "block" else "two_kernels")


def test_an_older_plan_is_good_after_a_refusal(kernels, rng):
    """As a caller has it who keeps plans, with the workspace that they say."""
    shape = (2, 2, 4111)
    x, y = rng.normal(1, 2, shape).astype(np.float32), np.empty(shape, np.float32)
    strides = [dense_strides(shape, "planar")] * 2
    addresses = [array.__array_interface__["data"][0] for array in (x, y)]
    limits = kernels.limits(REFUSES)
    plan = kernels.plan("forward", "float32", shape, strides, addresses, 1, limits)
    for _ in range(2):
        y[...] = np.nan
        statistics, workspace = np.empty((len(ROW), 2)), np.empty(plan.workspace_bytes + 8)
        arrays = {"x": x, "y": y, "statistics": statistics, "workspace": workspace}
        given = {name: array.__array_interface__["data"][0] for name, array in arrays.items()}
        kernels.launch(plan, REFUSES, 0, **given, eps=1e-5)
        assert_is_forward(y, x)
        np.testing.assert_allclose(statistics[ROW.mean], x.mean((0, 2), np.float64), rtol=1e-7)


def test_a_forced_path_that_is_refused(kernels, rng):
    """It fails in place of taking another, names the launch, and leaves what it would write."""
    bn = bnext.BatchNorm1d(2, dtype=np.float64).to(Array(np.empty(0), REFUSES))
    x = rng.normal(size=(2, 2, 20011))
    out = Array(np.full(x.shape, 7.0), REFUSES)
    with bnext.cuda._forced_path("chunked"):
        with pytest.raises(RuntimeError):
            bn(Array(x, REFUSES))
        with pytest.raises(RuntimeError) as caught:
            bnext.batch_norm_forward(Array(x, REFUSES), out=out)
    assert re.fullmatch(
        r"forward \(kernel fused, float64, planar, unit 1; path chunked, grid \d+, block \d+, "
        r"cluster 1, shared bytes \d+; device 4 \(emulation of a GPU that refuses launches\)\): "
        r"emulated CUDA: run: the launch is too large",
        str(caught.value),
    )
    assert (out.values == 7).all()
    assert (bn.running_mean.values == 0).all()
    assert (bn.running_var.values == 1).all()
    assert bn.num_batches_tracked == 0


def test_a_kernel_that_fails_is_told_by_the_next_call(kernels):
    x = Array(np.ones((4, 3), np.float32), FAILS)
    bnext.moments(x)
    with pytest.raises(RuntimeError) as caught:
        bnext.batch_norm_forward(x)
    assert re.fullmatch(
        r"forward \(kernel fused, float32, interleaved, unit 1; path block, grid 1, block \d+, "
        r"cluster 1, shared bytes \d+; device 5 \(emulation of a GPU that fails\)\): "
        r"emulated CUDA: run: a kernel has failed; a kernel launched before has failed, of bnext "
        r"or of another library \(BNEXT_CUDA_SYNC=1 names it if it is one of bnext\); cooperative "
        r"kernels of bnext end so where a block waits for the others for more than 4 s; the "
        r"process can use this device no more",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("of_device", "shift", "text"),
    [(WHOLE, 4, "emulated launch: a misaligned access"),
     (1, 0, "emulated CUDA: run: too much shared memory")],
)  # fmt: skip
def test_what_a_device_would_refuse(kernels, of_device, shift, text):
    """Emulated launches fail where a GPU would: a plan for other arrays or another device."""
    shape, strides = (16, 4, 1024), [[4096, 1024, 1]] * 2
    plan = kernels.plan("forward", "float32", shape, strides, [0, 0], 1, kernels.limits(of_device))
    assert plan.unit == 4
    x, y = np.zeros((2, 16 * 4096 + 64), np.float32)
    x, y = (each.ctypes.data + -each.ctypes.data % 64 for each in (x, y))
    statistics, workspace = np.zeros((5, 4)), np.zeros(plan.workspace_bytes + 1, np.uint8)
    with pytest.raises(RuntimeError, match=text):
        kernels.launch(
            plan, WHOLE, 0, x=x + shift, y=y, statistics=statistics.ctypes.data,
            workspace=workspace.ctypes.data,
        )  # fmt: skip


def test_a_failed_kernel_is_told_by_kernels_of_cells(kernels):
    x = Array(np.ones((4, 3, 9), np.float32), FAILS)
    bnext.moments(x)
    with pytest.raises(RuntimeError) as caught:
        bnext.instance_norm_forward(x)
    assert re.fullmatch(
        r"norm of cells \(kernel small forward, float32; grid \d+, block \d+; device 5 \(emulation "
        r"of a GPU that fails\)\): emulated CUDA: run: a kernel has failed; a kernel launched "
        r"before has failed, of bnext or of another library .*; the process can use this device "
        r"no more",
        str(caught.value),
    )


LOADED = """
    import numpy as np
    import bnext
    from bnext import _cuda_emulated as kernels
    bnext.cuda._load = lambda: kernels
"""


def test_synchronous_launches(kernels):
    program = (
        LOADED
        + """
    from tests.fake_cuda import Array
    print(bnext.show_config(mode="dicts")["cuda"]["synchronous"])
    x = np.ones((4, 3, 9), np.float32)
    bnext.batch_norm_forward(Array(x))
    for path in ("two_kernels", "chunked"):
        with bnext.cuda._forced_path(path):
            try:
                bnext.batch_norm_forward(Array(x, 5))
            except RuntimeError as error:
                print(error)
    wide = np.ones((4, 8), np.float32)
    for call in (
        lambda: bnext.instance_norm_forward(Array(x, 5)),
        lambda: bnext.layer_norm_forward(Array(wide, 5), 8),
    ):
        try:
            call()
        except RuntimeError as error:
            print(error)
    """
    )
    output = output_of(program, BNEXT_CUDA_SYNC="1").splitlines()
    synchronous, first, second, of_cells, of_rows = output
    assert synchronous == "True"
    assert first.startswith("forward (kernel collect_stats, float32, planar, unit 1; path two_")
    assert first.endswith(
        "synchronize: a kernel has failed; most likely this kernel has failed; the process can use "
        "this device no more"
    )
    assert second.startswith("forward (kernel fused, float32, planar, unit 1; path chunked, grid ")
    assert "; cooperative kernels of bnext end so where a block waits for the others" in second
    for text, kernel in ((of_cells, "small forward"), (of_rows, "normalize_row")):
        assert f"(kernel {kernel}, float32" in text
        assert "; device 5 (emulation of a GPU that fails)): " in text
        assert "a kernel has failed; most likely this kernel has failed; " in text


def test_reserved_multiprocessors(kernels):
    program = (
        LOADED
        + """
    limits = kernels.limits(0)
    strides = [[90033, 30011, 1]] * 2
    plan = kernels.plan("forward", "float32", (3, 3, 30011), strides, [0, 0], 1, limits)
    print(limits.reserved, plan.launches[0]["grid"])
    print(bnext.show_config(mode="dicts")["cuda"]["reserved_multiprocessors"])
    """
    )
    assert output_of(program, BNEXT_CUDA_RESERVE="2").split() == ["2", "2", "2"]
    assert output_of(program, BNEXT_CUDA_RESERVE="").split()[::2] == ["0", "0"]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("BNEXT_CUDA_SYNC", "yes", "0 or 1"),
        ("BNEXT_CUDA_SYNC", "2", "0 or 1"),
        ("BNEXT_CUDA_RESERVE", "-1", "a number of multiprocessors"),
        ("BNEXT_CUDA_RESERVE", "4 SMs", "a number of multiprocessors"),
    ],
)
def test_wrong_variables(kernels, variable, value, expected):
    result = run_python("import bnext._cuda_emulated", **{variable: value})
    assert result.returncode != 0
    assert f"ImportError: {variable}: expected {expected}, got '{value}'" in result.stderr
