"""How a call is planned: what is read in place and what is copied, layouts, tiles, schedules."""

import math

import numpy as np
import pytest

import bnext

from .cases import CASES, named
from .conftest import needs_openmp

# Neither the innermost batch axis nor the channels are contiguous, or more than two batch axes are
# left after those that lie one inside the other are merged. All others are read where they are.
COPIED = {
    "channels-every-second-NC",
    "channels-every-second-NHWC",
    "channels-every-second-stored-NHWC",
    "channels-backwards-NC",
    "inner-cropped",
    "inner-every-third",
    "inner-backwards",
    "all-backwards",
    "off-by-1-byte",
    "off-by-1-byte-NC",
}
COPIED_FLOAT64 = {"off-by-4-bytes", "off-by-4-bytes-NC", "off-by-4-bytes-2x2"}


def explain(x, channel_axis=1):
    return bnext._core.explain(x, channel_axis, 2)


def test_only_what_fits_no_layout_is_copied(rng, case, dtype):
    plan = explain(case.x(rng, dtype), case.channel_axis)
    copied = COPIED | (COPIED_FLOAT64 if dtype is np.float64 else set())
    assert plan["copied"] is (case.name in copied)
    if not plan["copied"]:
        assert plan["channels"] == case.channels
        assert plan["outer"] * plan["inner"] == case.count


def test_copied_cases_are_cases():
    assert {case.name for case in CASES} >= COPIED | COPIED_FLOAT64


@pytest.mark.parametrize(
    ("name", "layout", "extents"),
    [
        ("NC", "interleaved", (64, 20, 1)),
        ("NC-stored-CN", "planar", (1, 19, 53)),
        ("NCL", "planar", (3, 17, 29)),
        ("NCHW-7x7", "planar", (5, 50, 49)),
        ("NCHW-one-example", "planar", (1, 6, 143)),
        ("NCHW-inner-1", "interleaved", (33, 17, 1)),
        ("NCDHW", "planar", (2, 6, 105)),
        ("NHWC", "interleaved", (105, 50, 1)),
        ("NDHWC", "interleaved", (210, 6, 1)),
        ("NCHW-stored-NHWC", "interleaved", (105, 50, 1)),
        ("NCHW-stored-CNHW", "planar", (1, 6, 315)),
        ("NCHW-stored-WHCN", "planar", (63, 6, 5)),
        ("C-first", "planar", (1, 3, 53)),
        ("channels-inside-5d", "planar", (6, 5, 12)),
        ("channels-3-to-20", "planar", (5, 17, 49)),
        ("channels-3-to-20-NHWC", "interleaved", (105, 17, 1)),
        ("batch-backwards-NC", "interleaved", (33, 19, 1)),
    ],
)
def test_layouts(rng, name, layout, extents):
    (case,) = named(name)
    plan = explain(case.x(rng, np.float32), case.channel_axis)
    assert plan["layout"] == layout
    assert (plan["outer"], plan["channels"], plan["inner"]) == extents


@pytest.mark.parametrize("values", [2, 4, 9, 15])
def test_small_planes_that_adjoin_are_walked_as_rows(values):
    """They are tiled by rows, of 128 or so, and not by 4096 values."""
    x = np.zeros((1200, 6, values), np.float32)
    rows = explain(x.reshape(1200, -1))["tiles"]
    assert rows == 10
    assert explain(x)["layout"] == "planar"
    assert (
        explain(x)["tiles"] == explain(x[:, 1:4])["tiles"] == explain(x[::2])["tiles"] * 2 == rows
    )
    assert explain(x[:, ::2])["tiles"] == math.ceil(1200 / (4096 // values)) < rows
    larger = np.zeros((1200, 6, 16), np.float32)
    assert explain(larger)["tiles"] == math.ceil(1200 / (4096 // 16))


@pytest.mark.parametrize("values", [2, 3, 4, 7, 9, 15])
@pytest.mark.parametrize("rows", [10**5, 10**6 + 1])
def test_no_tile_of_small_planes_has_more_than_4096_values(values, rows):
    """The error bound of collect_stats counts on it."""
    x = np.broadcast_to(np.float32(0), (2 * rows, 1, values))[::2]
    x = np.lib.stride_tricks.as_strided(x, strides=(2 * values * 4, values * 4, 4))
    plan = explain(x)
    assert (plan["outer"], plan["inner"], plan["copied"]) == (rows, values, False)
    assert rows * values <= 4096 * plan["tiles"]


@needs_openmp
@pytest.mark.usefixtures("restore_threads")
def test_small_planes_go_by_channels_where_a_block_of_them_fits_half_the_cache():
    bnext.set_num_threads(2)
    cpu = bnext.show_config(mode="dicts")["cpu"]
    assert explain(np.zeros((2, 512, 2, 2), np.float32))["schedule"] == "serial"
    if cpu["l2_bytes"] >= 2**19:
        assert explain(np.zeros((64, 512, 2, 2), np.float32))["schedule"] == "channels"
    rows = cpu["l2_bytes"] // 2 // 1024 + 1  # of 256 columns, in two arrays
    assert explain(np.zeros((rows, 512, 2, 2), np.float32))["schedule"] == "split"


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize(
    "shape",
    [(64, 20), (600, 64, 2, 2), (8, 64, 56, 56), (20000, 32), (2, 3, 512, 512), (3, 5, 1)],
    ids=str,
)
def test_what_fixes_the_bits_does_not_depend_on_threads(shape):
    x = np.zeros(shape, np.float32)
    fixed = set()
    for threads in (1, 2, 7, 64):
        bnext.set_num_threads(threads)
        plan = explain(x)
        fixed.add((plan["tiles"], plan["chunks"]))
    assert len(fixed) == 1
    tiles, chunks = fixed.pop()
    assert 1 <= chunks <= min(tiles, 64)
    assert tiles <= math.prod(shape)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_forced_schedule_is_taken(schedule, threads):
    bnext.set_num_threads(threads)
    assert explain(np.zeros((8, 64, 28, 28), np.float32))["schedule"] == schedule


@needs_openmp
@pytest.mark.usefixtures("restore_threads")
def test_small_problems_run_serially():
    bnext.set_num_threads(8)
    assert explain(np.zeros((64, 20), np.float32))["schedule"] == "serial"
    assert explain(np.zeros((8, 64, 56, 56), np.float32))["schedule"] != "serial"


@needs_openmp
@pytest.mark.usefixtures("restore_threads")
def test_what_does_not_fit_the_cache_is_stored_past_it_where_that_pays():
    bnext.set_num_threads(8)
    cpu = bnext.show_config(mode="dicts")["cpu"]
    small = explain(np.zeros((64, 20), np.float32))
    assert small["streams_output"] is False
    if 0 < cpu["l3_bytes"] <= 2**26:
        large = np.zeros((1, 1, cpu["l3_bytes"] // 4), np.float32)
        assert explain(large)["streams_output"] is True
        bnext.set_num_threads(2)
        assert explain(large)["streams_output"] is cpu["zen"]
