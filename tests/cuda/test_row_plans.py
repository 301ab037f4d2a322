"""Launch plans of layer and RMS normalization, which need no GPU: for every kind of device."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ..optional import import_kernels
from .test_plans import DEVICES, DTYPES, KIB

kernels = import_kernels()
LIMITS = {
    name: kernels.Limits(**{"cooperative": True, **device}) for name, device in DEVICES.items()
}
H200 = LIMITS["H200"]


def plan(rows, width, dtype="float32", *, backward=False, centered=True, limits=H200, **more):
    return kernels.row_plan(backward, centered, dtype, rows, width, limits, **more)


@given(
    rows=st.integers(1, 1 << 40), width=st.integers(1, 1 << 24), dtype=st.sampled_from([*DTYPES]),
    backward=st.booleans(), centered=st.booleans(), activated=st.booleans(),
    residual=st.booleans(), wants_parameters=st.booleans(),
    aligned=st.sampled_from([0, 16, 8, 4, 2]), device=st.sampled_from([*LIMITS]),
)  # fmt: skip
def test_every_plan_can_be_launched(
    rows, width, dtype, backward, centered, activated, residual, wants_parameters, aligned, device
):
    item = DTYPES[dtype]
    aligned = max(aligned, item) if aligned else 0
    found = plan(
        rows, width, dtype, backward=backward, centered=centered, limits=LIMITS[device],
        aligned=aligned, activated=activated, residual=residual, wants_parameters=wants_parameters,
    )  # fmt: skip
    unit, lanes, block, grid = (found[name] for name in ("unit", "lanes", "block", "grid"))
    assert width % unit == 0
    assert unit == 1 or aligned % (unit * item) == 0
    assert block in (64, 128, 256)
    assert lanes in (4, 8, 16, 32, block)
    assert found["shared_bytes"] <= LIMITS[device].shared_per_block
    units_of_thread = -(-(width // unit) // lanes)
    assert 0 <= found["kept"] <= units_of_thread
    assert 1 <= grid < 1 << 31
    teams = block // lanes
    if not backward:
        assert found["stride"] == grid * teams
        assert found["stride"] - teams < rows or grid == 1
        assert found["workspace_bytes"] == found["merge_grid"] == 0
        return
    assert found["block_rows"] % teams == 0
    assert (grid - 1) * found["block_rows"] < rows <= grid * found["block_rows"]
    if not wants_parameters:
        assert found["workspace_bytes"] == found["merge_grid"] == found["columns_grid"] == 0
        return
    sums = width * (1 + centered)
    assert found["merge_grid"] == -(-sums // 32)
    slots = found["slots"]
    assert found["workspace_bytes"] == slots * sums * 8
    of_block = teams * (sums + lanes) * (8 if dtype == "float64" else 4)
    if not found["columns_grid"]:
        assert slots == grid
        assert found["shared_bytes"] >= of_block
        return
    # Shared memory has no room for them.
    assert of_block + 2 * KIB > LIMITS[device].shared_per_block
    assert found["columns_grid"] == slots * -(-width // 256) < 1 << 31
    assert 1 <= slots <= -(-rows // 64)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_networks_are_read_once(dtype, backward):
    for rows, width in ((8192, 4096), (16384, 1024), (131072, 128), (4096, 8192)):
        if width * (2 * DTYPES[dtype] + 2 * 8) > H200.shared_per_block and dtype == "float64":
            continue
        found = plan(rows, width, dtype, backward=backward)
        assert found["unit"] * DTYPES[dtype] == 16
        assert found["kept"] * found["lanes"] * found["unit"] >= width
        assert found["columns_grid"] == 0
        teams = found["block"] // found["lanes"]
        assert found["grid"] * teams >= 0.9 * min(rows, H200.multiprocessors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(32, 3 << 20), (132, 100_000), (4, 1 << 24)])
def test_long_rows_take_little_memory(rows, width, dtype):
    """Sums of columns that shared memory has no room for are not made by each block."""
    found = plan(rows, width, dtype, backward=True)
    assert found["columns_grid"] >= H200.multiprocessors
    assert found["workspace_bytes"] <= 16 * max(width, 3 << 20)


def test_few_rows_are_given_to_many_multiprocessors():
    for rows in (2, 100, 132, 1000):
        found = plan(rows, 4096, backward=True)
        assert found["grid"] >= min(rows, H200.multiprocessors) // 2


def test_single_values_where_rows_do_not_begin_with_a_unit():
    assert plan(10, 1024)["unit"] == 4
    assert plan(10, 1024, aligned=4)["unit"] == 1
    assert plan(10, 1001)["unit"] == 1
    assert plan(10, 1024, "bfloat16")["unit"] == 8
    assert plan(10, 1024, "bfloat16", aligned=8)["unit"] == 1
    assert plan(10, 1024, "bfloat16", aligned=8, activated=True)["unit"] == 4
    assert plan(10, 1024, "float64")["unit"] == 2
    assert plan(10, 1024, "float64", activated=True)["unit"] == 1
