"""Outputs that are made again in place of being kept: the forward call's, to the bit."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnext
from bnext import _core

from . import reference
from .activations import ACTIVATIONS, KEEP_FLAGS, SMOOTH
from .cases import CASES as LAYOUTS
from .cases import MEMORIES, MEMORIES_SHAPE, Case
from .compare import assert_same_bits, assert_same_memory_order
from .conftest import SCHEDULES, THREADS
from .epilogues import CASES, DTYPES, drawn
from .everywhere import FUSED
from .sixteen import name_of
from .snapshots import raises_exactly
from .test_epilogue_layers import layer_of
from .test_hypothesis import THOROUGH, environments, small_cases

ALL = [*ACTIVATIONS, None]
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])


def forward(inputs, **options):
    return bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, **inputs.options, **options
    )


def spoilt(inputs):
    """Change the parameters, as an optimizer does."""
    for each in (inputs.weight, inputs.bias):
        if each is not None:
            each[...] = np.nan


@pytest.mark.usefixtures("isa")
@RESIDUAL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_the_bits_of_the_forward_call(rng, case, dtype, residual):
    """Of its weight and bias, whatever these are by now."""
    for name in ALL:
        inputs = drawn(rng, case, dtype, name, residual)
        y, saved = forward(inputs)
        spoilt(inputs)
        again = bnext.recompute(inputs.x, saved, residual=inputs.residual)
        assert_same_bits(again, y, name)
        assert_same_memory_order(again, inputs.x)


def test_of_every_layout(rng, case, dtype):
    """Also into `out`, of parameters that may not be there."""
    x, axis = case.x(rng, dtype), case.channel_axis
    weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
    for parameters in ({}, {"weight": weight}, {"bias": bias}):
        y, saved = bnext.batch_norm_forward(x, **parameters, channel_axis=axis)
        out = case.poisoned(dtype)
        assert bnext.recompute(x, saved, out=out) is out
        assert_same_bits(out, y, f"with {list(parameters)}")


@pytest.mark.usefixtures("isa")
def test_of_values_far_from_zero(rng):
    """float64, whose mean has a low part."""
    case = Case("far", (33, 5, 7))
    x = rng.normal(1e9, 1, case.shape)
    y, saved = bnext.batch_norm_forward(x, case.weight(rng, np.float64), activation="tanh")
    assert saved.mean_low.any()
    assert_same_bits(bnext.recompute(x, saved), y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=name_of)
def test_of_values_that_float32_has_no_range_for(rng, dtype):
    """And of what is no number, of a channel without variance, and of subnormal numbers."""
    x = rng.normal(size=(65, 6, 7)).astype(dtype)
    x[:, 0] *= 1e38
    x[:, 1] *= 1e-38
    x[:, 2] = 3
    x[5, 3, 4] = np.nan
    x[5, 4, 4] = np.inf
    with np.errstate(invalid="ignore"):
        y, saved = bnext.batch_norm_forward(x, eps=0.0, activation="silu", residual=x)
        assert_same_bits(bnext.recompute(x, saved, residual=x), y)


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize(
    "case", [each for each in LAYOUTS if "many-chunks" in each.name or "rows" in each.name], ids=str
)
@pytest.mark.parametrize(("name", "dtype"), [("relu", np.float32), (None, np.float16)])
def test_by_other_threads_and_schedules_than_the_forward_call(rng, case, name, dtype):
    inputs = drawn(rng, case, dtype, name, True)
    bnext.set_num_threads(1)
    y, saved = forward(inputs)
    for schedule in SCHEDULES:
        _core.force_schedule(schedule)
        for threads in THREADS:
            bnext.set_num_threads(threads)
            again = bnext.recompute(inputs.x, saved, residual=inputs.residual)
            assert_same_bits(again, y, f"{schedule}, {threads} threads")


def test_by_another_instruction_set_than_the_forward_call(rng):
    inputs = drawn(rng, CASES[0], np.float32, "gelu", True)
    with bnext.use_isa(FUSED[0]):
        y, saved = forward(inputs)
    for isa in FUSED:
        with bnext.use_isa(isa):
            again = bnext.recompute(inputs.x, saved, residual=inputs.residual)
        assert_same_bits(again, y, isa)


@pytest.mark.usefixtures("restore_threads")
@THOROUGH
@given(
    case=small_cases(),
    environment=environments(),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(ALL),
    residual=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_of_random_calls(case, environment, dtype, name, residual, seed):
    inputs = drawn(np.random.default_rng(seed), case, dtype, name, residual)
    isa, threads, schedule = environment
    _core.force_schedule(schedule)
    with bnext.use_isa(isa):
        y, saved = forward(inputs)
        bnext.set_num_threads(threads)
        spoilt(inputs)
        assert_same_bits(bnext.recompute(inputs.x, saved, residual=inputs.residual), y)


@pytest.mark.parametrize("of_x", MEMORIES)
def test_arrays_may_lie_elsewhere_by_then(rng, of_x):
    inputs = drawn(rng, Case("moved", MEMORIES_SHAPE), np.float32, "relu", True)
    y, saved = forward(inputs)
    memories = list(MEMORIES.values())
    for k, memory in enumerate(memories):
        x = MEMORIES[of_x].place(inputs.x)
        residual = memory.place(inputs.residual)
        out = memories[(k + 3) % len(memories)].allocate(x.shape, x.dtype)[1]
        assert bnext.recompute(x, saved, residual=residual, out=out) is out
        assert_same_bits(out, y)


def test_empty_batches(empty_case, dtype):
    x = np.empty(empty_case.shape, dtype)
    _, saved = bnext.batch_norm_forward(x, channel_axis=empty_case.channel_axis)
    assert bnext.recompute(x, saved).shape == x.shape


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_copies_of_what_was_saved(rng, copied, name):
    inputs = drawn(rng, CASES[0], np.float32, name, True)
    y, saved = forward(inputs)
    assert_same_bits(bnext.recompute(inputs.x, copied(saved), residual=inputs.residual), y)
    again = copied(bnext.Recomputed(inputs.x, saved, inputs.residual))
    assert_same_bits(again.value(), y)


def test_pickles_of_older_versions_have_no_parameters(rng):
    x = rng.normal(size=(7, 3))
    _, saved = bnext.batch_norm_forward(x)
    *others, rows, epilogue, _, _ = saved.__getstate__()
    assert rows.size == 7 * 3
    older = bnext.Saved.__new__(bnext.Saved)
    older.__setstate__((*others, rows[: 5 * 3], epilogue))
    text = "saved: expected with the weight and the bias of the forward call, got without them"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.recompute(x, older)
    assert_same_bits(bnext.batch_norm_backward(x, x, older)[0],
                     bnext.batch_norm_backward(x, x, saved)[0])  # fmt: skip


def test_what_is_missing_is_named(rng):
    x, r = rng.normal(size=(2, 7, 3))
    out = np.empty_like(x)
    _, plain = bnext.batch_norm_forward(x)
    _, added = bnext.batch_norm_forward(x, residual=r, activation="relu")
    of_forward = "residual: expected the forward call's, since y follows from it, got None"
    changed = "(their elements differ)"
    for saved, options, text in (
        (added, {}, of_forward),
        (plain, {"residual": r}, "residual: expected None, since the forward call had none"),
        (added, {"residual": r + 1},
         "saved: made from another residual, or it was changed since (its elements differ)"),
        (added, {"residual": r, "x": x + 1},
         f"saved: made from another x, or x was changed since {changed}"),
        (plain, {"x": x[:6]},
         "saved: made from an input of shape (7, 3), got x of shape (6, 3)"),
        (added, {"residual": r[:6]}, "residual: expected shape (7, 3), got (6, 3)"),
        (plain, {"out": x}, "out: expected memory of its own, got an array that overlaps x"),
    ):  # fmt: skip
        arguments = {"x": x, "out": out, **options}
        with raises_exactly(ValueError, text, {"x": x, "out": out}):
            bnext.recompute(saved=saved, **arguments)
    with raises_exactly(
        TypeError, "saved: expected what batch_norm_forward returned, got NoneType", {}
    ):
        bnext.recompute(x, None)
    with raises_exactly(ValueError, of_forward, {}):
        bnext.Recomputed(x, added)
    with raises_exactly(ValueError, "residual: expected None, since the forward call had none", {}):
        bnext.Recomputed(x, plain, r)


# --- layers ---------------------------------------------------------------------------------------


def called(bn, inputs):
    options = {} if inputs.residual is None else {"residual": inputs.residual}
    return bn(inputs.x, **options)


@RESIDUAL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ALL)
def test_layers_give_what_makes_their_output_again(rng, name, dtype, residual):
    """Whatever happens to the layer: steps of an optimizer, its backward pass, further calls."""
    inputs = drawn(rng, CASES[0], dtype, name, residual)
    bn = layer_of(inputs)
    y = called(bn, inputs)
    keeps = name in SMOOTH
    again = bn.recomputed(residual=None if keeps else inputs.residual)
    assert (again.shape, again.dtype) == (y.shape, y.dtype)
    assert_same_bits(again.value(), y)
    bn.weight += 1
    bn.bias *= 2
    assert_same_bits(again.value(), y)
    bn.backward(inputs.dy)
    bn.negative_slope, bn.activation = 0.5, "tanh"
    bn(inputs.dy)
    assert_same_bits(np.asarray(again), y)
    out = np.empty_like(y)
    assert again.value(out) is out
    assert_same_bits(out, y)


def test_the_layer_keeps_one_call(rng):
    """As for `backward`; what was taken before stays good."""
    bn = bnext.BatchNorm1d(3, dtype=np.float64, activation="relu")
    text = (
        "recomputed: expected a forward call before it, since the latest one was consumed or there "
        "was none"
    )
    with raises_exactly(RuntimeError, text, {}):
        bn.recomputed()
    inputs = rng.normal(size=(3, 8, 3))
    outputs, taken = [], []
    for x in inputs:
        outputs.append(bn(x))
        taken.append(bn.recomputed())
    for y, again in zip(outputs, taken, strict=True):
        assert_same_bits(again.value(), y)
    bn.backward(inputs[0])
    with raises_exactly(RuntimeError, text, {}):
        bn.recomputed()
    assert_same_bits(taken[2].value(), outputs[2])
    inputs[1, 0, 0] += 1
    with raises_exactly(
        ValueError,
        "saved: made from another x, or x was changed since (their elements differ)", {},
    ):  # fmt: skip
        taken[1].value()


@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("trains", [True, False])
def test_frozen_layers(rng, name, trains):
    """Without an activation they keep no input, if nothing trains; it is given then."""
    inputs = drawn(rng, CASES[0], np.float32, name, False)
    bn = layer_of(inputs)
    bn(inputs.x)
    bn.freeze(affine=not trains)
    y = bn(inputs.x)
    if name is None and not trains:
        text = (
            "x: expected the input of the forward call, since a frozen layer without an activation "
            "keeps none, got None"
        )
        with raises_exactly(ValueError, text, {}):
            bn.recomputed()
    again = bn.recomputed(inputs.x)
    bn.running_mean += 1
    assert_same_bits(again.value(), y)


def test_the_residual_is_needed_where_the_layer_keeps_none(rng):
    for name in ALL:
        inputs = drawn(rng, CASES[0], np.float32, name, True)
        bn = layer_of(inputs)
        y = called(bn, inputs)
        if name is None or name in KEEP_FLAGS:
            text = "residual: expected the forward call's, since y follows from it, got None"
            with raises_exactly(ValueError, text, {}):
                bn.recomputed()
        assert_same_bits(bn.recomputed(residual=inputs.residual).value(), y)
        with raises_exactly(
            ValueError,
            "saved: made from another residual, or it was changed since (its elements differ)",
            {},
        ):
            bn.recomputed(residual=inputs.residual + 1).value()


def test_a_residual_may_be_one_that_is_made_again(rng):
    first = drawn(rng, CASES[0], np.float32, "relu", False)
    second = drawn(rng, CASES[0], np.float32, "relu", True)
    one, two = layer_of(first), layer_of(second)
    shortcut = one(first.x)
    y = two(second.x, residual=shortcut)
    again = two.recomputed(residual=one.recomputed())
    shortcut[...] = 0  # is not kept
    assert_same_bits(again.value(), y)


@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_groups_exchange_nothing(rng, name):
    """The statistics were merged in the forward call: members make y again by themselves."""
    inputs = drawn(rng, Case("shards", (11, 5, 3)), np.float32, name, True)
    group = bnext.sync.ThreadGroup(2, timeout=30)
    shards = [slice(0, 3), slice(3, None)]
    whole, _ = forward(inputs)

    def member(rank, part):
        options = {**inputs.options, "residual": inputs.residual[part]}
        x = inputs.x[part]
        y, saved = bnext.batch_norm_forward(x, inputs.weight, inputs.bias, group=group, **options)
        if rank == 0:  # alone
            assert_same_bits(bnext.recompute(x, saved, residual=options["residual"]), y)
        return y, bnext.Recomputed(x, saved, options["residual"])

    for part, (y, again) in zip(shards, group.run(member, shards), strict=True):
        assert_same_bits(again.value(), y)
        np.testing.assert_allclose(y, whole[part], rtol=0, atol=1e-5)


def test_layers_of_groups(rng):
    x = rng.normal(size=(9, 3)).astype(np.float32)
    group = bnext.sync.ThreadGroup(2, timeout=30)
    bn = bnext.BatchNorm1d(3, activation="tanh", group=group)

    def member(rank, shard):
        y = bn(shard)
        again = bn.recomputed()
        bn.backward(shard)
        return y, again

    for y, again in group.run(member, [x[:4], x[4:]]):
        assert_same_bits(again.value(), y)


def test_micro_batches(rng):
    """Within a step, of the micro-batch that the layer has just had, by the union's statistics."""
    data = rng.normal(size=(3, 6, 4)).astype(np.float32)
    bn = bnext.BatchNorm1d(4, activation="relu")

    def step(x):
        y = bn(x)
        again = bn.recomputed()
        bn.backward(y)
        return y, again

    with bnext.micro_batches([bn]) as union:
        results = list(union.run(step, list(data)))
    whole = np.maximum(reference.forward(data.reshape(18, 4)), 0)
    np.testing.assert_allclose(np.concatenate([y for y, _ in results]), whole, atol=1e-5)
    for y, again in results:
        assert_same_bits(again.value(), y)


def test_numpy_reads_it_as_an_array(rng):
    inputs = drawn(rng, CASES[0], np.float32, "relu", False)
    bn = layer_of(inputs)
    y = bn(inputs.x)
    again = bn.recomputed()
    assert_same_bits(np.asarray(again), y)
    assert_same_bits(np.asarray(again, np.float64), y.astype(np.float64))
    assert repr(again) == f"<bnext.Recomputed of shape {y.shape}, float32>"
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match=r"^copy: expected True or None, since the array is"):
            np.asarray(again, copy=False)
