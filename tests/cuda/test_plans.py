"""Launch plans and the partition of work, which need no GPU.

Each plan must be one that the device can launch, and its partition must touch every element exactly
once. The module of kernels is the real one where a build has it, else the emulated one: both have
the same planner.
"""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ..optional import import_kernels

kernels = import_kernels()

KIB = 1024
# What NVIDIA's tables say of the chips; "tiny" is none of them, so that small problems exceed it.
DEVICES = {
    "A100": {
        "compute_capability": (8, 0), "multiprocessors": 108, "shared_per_block": 163 * KIB,
        "shared_per_multiprocessor": 164 * KIB, "cluster": 1,
    },
    "H200": {
        "compute_capability": (9, 0), "multiprocessors": 132, "shared_per_block": 227 * KIB,
        "shared_per_multiprocessor": 228 * KIB, "cluster": 16,
    },
    "B200": {
        "compute_capability": (10, 0), "multiprocessors": 148, "shared_per_block": 227 * KIB,
        "shared_per_multiprocessor": 228 * KIB, "cluster": 16,
    },
    "RTX 5090": {
        "compute_capability": (12, 0), "multiprocessors": 170, "shared_per_block": 99 * KIB,
        "shared_per_multiprocessor": 100 * KIB, "cluster": 8,
    },
    "without cooperative launches": {
        "compute_capability": (8, 0), "multiprocessors": 40, "shared_per_block": 48 * KIB,
        "shared_per_multiprocessor": 64 * KIB, "cluster": 1,
        "cooperative": False,
    },
    "tiny": {
        "compute_capability": (9, 0), "multiprocessors": 3, "shared_per_block": 24 * KIB,
        "shared_per_multiprocessor": 50 * KIB, "cluster": 4,
    },
}  # fmt: skip
DEVICES |= {
    "H200 beside NCCL": DEVICES["H200"] | {"reserved": 20},
    "H200 with room for one block": DEVICES["H200"] | {"resident_blocks": 1},
    "tiny, and all of it reserved": DEVICES["tiny"] | {"reserved": 7},
}
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
ARRAYS = {
    "forward": 2, "normalize": 2, "collect_stats": 1, "backward": 3, "backward_fixed": 3,
    "backward_reduce": 2, "backward_apply": 3,
}  # fmt: skip
LARGE = [
    (64, 64, 112, 112), (256, 64, 112, 112), (64, 256, 56, 56), (256, 2048, 7, 7), (1, 2048, 7, 7),
    (32, 3, 224, 224), (2, 64, 1024, 1024), (8, 64, 16, 56, 56), (64, 20), (64, 512), (256, 1000),
    (8192, 4096), (100000, 32), (140000, 256), (7, 20000), (2, 1), (50, 257, 31, 33),
    (3, 5, 40000, 40000), (1, 1, 70000, 70000),
]  # fmt: skip
THREADS = 256
MOST_BLOCKS = 2**31 - 1


def limits_of(device):
    return kernels.Limits(**({"cooperative": True} | DEVICES[device]))


def dense_strides(shape, layout):
    order = list(range(len(shape)))
    if layout == "interleaved":
        order = [0, *range(2, len(shape)), 1]
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return strides


def plan_of(operation, dtype, shape, layout, device, path=None, address=0):
    n = ARRAYS[operation]
    strides = [dense_strides(shape, layout)] * n
    return kernels.plan(operation, dtype, shape, strides, [address] * n, 1, limits_of(device), path)


def every_path(operation, *arguments, **keywords):
    """The plan that is chosen, and those of each path that can do it."""
    plans = [plan_of(operation, *arguments, **keywords)]
    for path in kernels.paths(operation):
        try:
            plans.append(plan_of(operation, *arguments, path=path, **keywords))
        except ValueError as error:
            if not str(error).startswith("path: "):
                raise
        else:
            assert plans[-1].path == path
    return plans


def assert_legal(plan, device):
    limits = limits_of(device)
    assert plan.workspace_bytes % 256 == 0
    for launch in plan.launches:
        assert 1 <= launch["grid"] <= MOST_BLOCKS
        assert launch["block"] % 32 == 0
        assert 32 <= launch["block"] <= THREADS
        assert launch["block"] % launch["columns"] == 0
        assert 0 < launch["shared_bytes"] <= limits.shared_per_block
        assert 1 <= launch["cluster"] <= limits.cluster
        assert launch["grid"] % launch["cluster"] == 0
        assert launch["grid"] == launch["groups"] * launch["parts"]
        assert 1 <= launch["groups"] <= launch["slabs"]
        assert 1 <= launch["parts"] <= launch["positions"]
        if launch["cooperative"]:
            assert limits.cooperative
            # All blocks must be able to run at once, by shared memory (of which the system takes a
            # KiB a block); 256 threads with 128 registers each fit twice.
            of_block = launch["shared_bytes"] + KIB
            resident = min(limits.resident_blocks, limits.shared_per_multiprocessor // of_block)
            left = max(1, limits.multiprocessors - limits.reserved)
            assert launch["grid"] <= resident * left
            assert plan.workspace_bytes >= launch["slabs"] * (4 + 32 * launch["parts"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operation", ARRAYS)
def test_every_launch_is_legal(device, operation):
    taken = set()
    for shape in LARGE:
        layouts = ("planar", "interleaved") if len(shape) > 2 else ("interleaved",)
        for layout in layouts:
            for dtype in DTYPES:
                for address in (0, DTYPES[dtype]):
                    plans = every_path(operation, dtype, shape, layout, device, address=address)
                    for plan in plans:
                        assert_legal(plan, device)
                        assert plan.operation == operation
                        assert address == 0 or plan.unit == 1
                    taken.add(plans[0].path)
    if operation in ("forward", "backward") and device.startswith("H200"):
        assert taken == {"block", "cluster", "cooperative", "chunked"}
    if operation in ("forward", "backward") and device == "without cooperative launches":
        assert "two_kernels" in taken


@pytest.mark.parametrize(
    ("shape", "layout", "path"),
    [
        ((64, 512, 7, 7), "planar", "block"),
        ((64, 256, 14, 14), "planar", "block"),
        ((64, 256, 56, 56), "planar", "cluster"),
        ((64, 64, 112, 112), "planar", "cooperative"),
        ((2, 3, 4096, 4096), "planar", "chunked"),
        ((64, 20), "interleaved", "block"),
        ((64, 2048, 7, 7), "interleaved", "cluster"),
        ((256, 64, 112, 112), "interleaved", "chunked"),
    ],
)
def test_what_is_chosen_on_an_h200(shape, layout, path):
    assert plan_of("forward", "float32", shape, layout, "H200").path == path


@pytest.mark.parametrize(("shape", "path"), [((64, 64, 112, 112), "cooperative"),
                                             ((2, 3, 4096, 4096), "chunked")])  # fmt: skip
def test_cooperative_grids_leave_reserved_multiprocessors(shape, path):
    grids = {}
    for device in ("H200", "H200 beside NCCL"):
        plan = plan_of("forward", "float32", shape, "planar", device)
        assert plan.path == path
        grids[device] = plan.launches[0]["grid"]
    assert 232 <= grids["H200"] <= 264
    assert 200 <= grids["H200 beside NCCL"] <= 224
    for path in ("block", "cluster", "two_kernels"):
        shape = (64, 256, 14, 14)
        alone, beside = (
            plan_of("forward", "float32", shape, "planar", device, path).launches
            for device in ("H200", "H200 beside NCCL")
        )
        assert alone == beside


def test_limits_that_no_device_has():
    for wrong in ({"reserved": -1}, {"resident_blocks": 0}, {"resident_blocks": 3}):
        limits = kernels.Limits(**({"cooperative": True} | DEVICES["H200"] | wrong))
        with pytest.raises(ValueError, match=r"^limits: expected reserved >= 0, and resident_"):
            kernels.plan("collect_stats", "float32", (3, 5), [[5, 1]], [0], 1, limits)


def test_what_fits_is_kept():
    """The paths that read once keep everything; the other keeps what there is room for."""
    for operation, inputs in (("forward", 1), ("backward", 2)):
        for shape in LARGE[:6]:
            for plan in every_path(operation, "float32", shape, "planar", "H200"):
                launch = plan.launches[0]
                elements = -(-launch["positions"] // launch["parts"]) * launch["unit"]
                data = inputs * elements * launch["columns"] * 4
                if plan.path in ("block", "cluster", "cooperative"):
                    assert launch["shared_bytes"] >= data
                elif plan.path == "chunked" and data > launch["shared_bytes"]:
                    assert launch["shared_bytes"] > 100 * KIB


def assert_covers_once(plan, shape):
    for number in range(len(plan.launches)):
        for downwards in (False, True):
            times = np.frombuffer(plan.coverage(number, downwards), np.uint8)
            assert times.size == math.prod(shape)
            assert (times == 1).all(), (plan.path, plan.launches[number])


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_every_element_has_one_owner(layout):
    """Exhaustively over small extents: outer, channels and inner from 1 on."""
    for outer in (1, 2, 5):
        for channels in (1, 2, 3, 8, 33):
            for inner in (1, 2, 3, 4, 7, 8, 16, 49):
                shape = (outer, channels, inner)
                for operation in ("forward", "backward"):
                    for plan in every_path(operation, "float32", shape, layout, "tiny"):
                        assert_covers_once(plan, shape)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    outer=st.integers(1, 400), channels=st.integers(1, 300), inner=st.integers(1, 3000),
    layout=st.sampled_from(["planar", "interleaved"]), dtype=st.sampled_from(sorted(DTYPES)),
    operation=st.sampled_from(sorted(ARRAYS)), device=st.sampled_from(sorted(DEVICES)),
    offset=st.integers(0, 1),
)  # fmt: skip
def test_large_problems_too(outer, channels, inner, layout, dtype, operation, device, offset):
    while outer * channels * inner > 300_000:
        outer, inner = -(-outer // 2), -(-inner // 2)
        channels = channels if outer * inner > 1 else -(-channels // 2)
    shape = (outer, channels, inner)
    address = offset * DTYPES[dtype]
    for plan in every_path(operation, dtype, shape, layout, device, address=address):
        assert_legal(plan, device)
        assert_covers_once(plan, shape)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    outer=st.integers(1, 60), channels=st.integers(1, 100), inner=st.integers(1, 300),
    layout=st.sampled_from(["planar", "interleaved"]), dtype=st.sampled_from(sorted(DTYPES)),
    operation=st.sampled_from(sorted(set(ARRAYS) - {"collect_stats"})),
    device=st.sampled_from(sorted(DEVICES)), residual=st.booleans(),
)  # fmt: skip
def test_with_an_activation(outer, channels, inner, layout, dtype, operation, device, residual):
    """Units are of four values or one; a residual is read beside, and its gradient written."""
    shape = (outer, channels, inner)
    writes = operation in ("backward", "backward_fixed", "backward_apply")
    count = ARRAYS[operation] + residual * (1 + writes)
    strides = [dense_strides(shape, layout)] * count
    for path in (None, *kernels.paths(operation)):
        try:
            plan = kernels.plan(
                operation, dtype, shape, strides, [0] * count, 1, limits_of(device), path,
                activated=True, residual=residual,
            )  # fmt: skip
        except ValueError as error:
            if not str(error).startswith("path: "):
                raise
            continue
        assert_legal(plan, device)
        assert plan.unit in ((1,) if dtype == "float64" else (1, 4))
        assert_covers_once(plan, shape)


@given(
    outer=st.integers(1, 2**20), channels=st.integers(1, 2**14), inner=st.integers(1, 2**22),
    layout=st.sampled_from(["planar", "interleaved"]), dtype=st.sampled_from(sorted(DTYPES)),
    operation=st.sampled_from(sorted(ARRAYS)), device=st.sampled_from(sorted(DEVICES)),
)  # fmt: skip
def test_more_than_any_memory(outer, channels, inner, layout, dtype, operation, device):
    """Nothing overflows, whatever the extents."""
    shape = (outer, channels, inner)
    for plan in every_path(operation, dtype, shape, layout, device):
        assert_legal(plan, device)


def test_strides_that_do_not_fit_are_refused():
    strides = [2, 6, 30]  # no axis is contiguous
    with pytest.raises(ValueError, match="layout: neither the innermost axis nor the channels"):
        kernels.plan(
            "collect_stats", "float32", (3, 5, 7), [strides], [0], 1, limits_of("H200"), None
        )


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match=r"operation: expected one of forward, .*got 'sideways'"):
        kernels.plan("sideways", "float32", (3, 5), [], [], 1, limits_of("H200"))
    with pytest.raises(ValueError, match=r"dtype: expected one of .*got 'int8'"):
        kernels.plan("forward", "int8", (3, 5), [[5, 1]] * 2, [0, 0], 1, limits_of("H200"))
    with pytest.raises(ValueError, match=r"path: expected one of block, .*got 'shortcut'"):
        plan_of("forward", "float32", (3, 5), "interleaved", "H200", path="shortcut")
    with pytest.raises(ValueError, match="strides: expected 2 arrays, got 1"):
        kernels.plan("forward", "float32", (3, 5), [[5, 1]], [0], 1, limits_of("H200"))


def test_a_launch_without_its_arrays_is_refused():
    plan = plan_of("forward", "float32", (3, 5), "interleaved", "H200")
    with pytest.raises(ValueError, match="x: expected an address, got none"):
        kernels.launch(plan, 0, 0)
    with pytest.raises(ValueError, match="statistics: expected an address, got none"):
        kernels.launch(plan, 0, 0, x=256, y=256)
    with pytest.raises(ValueError, match="running_var: expected it with running_mean"):
        kernels.launch(plan, 0, 0, x=256, y=256, statistics=256, running_mean=256)
