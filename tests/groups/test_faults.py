"""One member does something wrong: all the others are told, nobody hangs, a reset helps.

BNEXT_FAULTS sets how many faults of each kind are injected (over 2 to 16 threads).
"""

import os
import time

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from ..compare import assert_same_bits
from ..limits import NEVER, TEST
from .support import members, new_group

FAULTS = int(os.environ.get("BNEXT_FAULTS", "10"))
SIZES = (2, 3, 4, 7, 16)
STEPS = 3
CALLS = 4  # exchanges of a step: two layers, forward and backward
CHANNELS = 6


class OwnError(Exception):
    pass


class Program:
    """Two layers that all members share, trained for some steps; the culprit errs at one call."""

    def __init__(self, group, fault=None, culprit=None, at=None):
        self.group, self.fault, self.culprit, self.at = group, fault, culprit, at
        self.layers = [bnext.BatchNorm1d(CHANNELS, group=group) for _ in range(2)]

    def __call__(self, rank):
        x = np.random.default_rng(rank).normal(size=(1 + rank % 3, CHANNELS)).astype(np.float32)
        first, second = self.layers
        value = x
        for step in range(STEPS):
            # The same calls by name, so that a fault can put another one in the place of any.
            for number, (layer, backward) in enumerate(
                [(first, False), (second, False), (second, True), (first, True)]
            ):
                if rank == self.culprit and (step, number) == self.at:
                    self.fault(self, layer, backward, value)
                value = layer.backward(value) if backward else layer(value)
        return value


def raises(program, layer, backward, value):
    raise OwnError("mine")


def ends(program, layer, backward, value):
    raise SystemExit  # how a thread ends itself


def is_slow(program, layer, backward, value):
    while not program.group.broken:  # however late the others are
        time.sleep(program.group.timeout)


def header(program, layer, direction, channels=CHANNELS, dtype="float32"):
    number = program.layers.index(layer)
    step = program.at[0]
    return bnext.sync.Header(number, step, direction, channels, dtype, id(layer))


def brings(program, layer, backward, channels, dtype):
    merge = program.group.merge_sums if backward else program.group.merge_moments
    direction = "backward" if backward else "forward"
    rows = np.zeros(channels)
    merge(header(program, layer, direction, channels, dtype), 1, rows, rows)


def other_direction(program, layer, backward, value):
    brings(program, layer, not backward, CHANNELS, "float32")


def other_channels(program, layer, backward, value):
    brings(program, layer, backward, CHANNELS + 1, "float32")


def other_dtype(program, layer, backward, value):
    brings(program, layer, backward, CHANNELS, "float64")


def other_layer(program, layer, backward, value):
    first, second = program.layers
    brings(program, first if layer is second else second, backward, CHANNELS, "float32")


# What happens, and what the reason must say besides the culprit's rank.
KINDS = {
    "raises": (raises, "raised OwnError: mine"),
    "ends": (ends, "raised SystemExit"),
    "is-slow": (is_slow, "time-out after"),
    "other-direction": (other_direction, "instead of"),
    "other-channels": (other_channels, "channels instead of"),
    "other-dtype": (other_dtype, "float"),
    "other-layer": (other_layer, "layer"),
}


@pytest.mark.timeout(TEST + FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_survivor_is_told(kind):
    fault, expected = KINDS[kind]
    groups = {size: new_group(size, 0.05 if kind == "is-slow" else NEVER) for size in SIZES}
    patient = {size: new_group(size) for size in SIZES}
    good = {size: members(group, Program(group)) for size, group in patient.items()}
    for number in range(FAULTS):
        size = SIZES[number % len(SIZES)]
        group = groups[size]
        culprit = number * 5 % size
        # Before the first exchange, in between, and after the last one of a step.
        at = divmod(number * 3 % ((STEPS - 1) * CALLS + 1), CALLS)
        results = members(group, Program(group, fault, culprit, at))
        survivors = [result for rank, result in enumerate(results) if rank != culprit]
        for error in survivors:
            assert isinstance(error, GroupError), (number, error)
            assert expected in str(error)
            assert error.reason == group.broken
            if error.layer is None:  # it came after all was over
                assert str(error) == f"entering the group: {group.broken}"
            else:
                assert str(error).startswith(f"layer {error.layer}, step {error.step}, ")
                assert error.layer in (0, 1)
        if kind != "is-slow":  # under load, others may be late as well
            assert "time-out" not in group.broken, "told at once"
            assert str(culprit) in group.broken
        own = {"raises": OwnError, "ends": SystemExit}.get(kind, GroupError)
        assert isinstance(results[culprit], own)
        with pytest.raises(GroupError):  # whoever comes later
            members_of_broken(group)
        group.reset()
        if kind == "is-slow":
            continue  # with this time-out even good members may be late
        for actual, wanted in zip(members(group, Program(group)), good[size], strict=True):
            assert_same_bits(actual, wanted)
        group.reset()  # layers are numbered from 0 again


def members_of_broken(group):
    with group.member(0):
        raise AssertionError("a broken group took a member")


def test_the_slow_member_is_told_when_it_comes():
    group = new_group(3, 0.1)
    layer = bnext.BatchNorm1d(CHANNELS, group=group)

    def member(rank):
        if rank == 1:
            while not group.broken:
                time.sleep(0.001)
        return layer(np.ones((2, CHANNELS), np.float32))

    results = members(group, member)
    reason = "time-out after 0.1 s: rank 1 is missing"
    assert [error.reason for error in results] == [reason] * 3
    assert str(results[0]) == f"layer 0, step 0, forward: {reason}"
    assert (results[0].layer, results[0].step, results[0].rank) == (0, 0, 1)
    group.reset()
    assert (
        members(group, lambda rank: layer(np.ones((2, CHANNELS), np.float32)).shape)
        == [(2, CHANNELS)] * 3
    )


def test_fewer_calls_are_noticed_at_once():
    group = new_group(3)
    layer = bnext.BatchNorm1d(CHANNELS, group=group)

    def member(rank):
        for _ in range(2 if rank == 2 else 5):
            layer(np.ones((2, CHANNELS), np.float32))

    results = members(group, member)
    assert results[2] is None
    assert str(results[0]) == "layer 0, step 2, forward: rank 2 has left the group"
    assert results[0].rank == results[1].rank == 2


def test_layers_called_in_another_order_are_noticed_in_the_first_step():
    group = new_group(2)
    layers = [bnext.BatchNorm1d(CHANNELS, group=group) for _ in range(2)]
    x = np.ones((2, CHANNELS), np.float32)

    def member(rank):
        for layer in layers if rank == 0 else layers[::-1]:
            layer(x)

    results = members(group, member)
    assert all(isinstance(error, GroupError) for error in results)
    assert "calls layer 0 where layer 1 is next" in group.broken


@pytest.mark.parametrize("what", ["weight", "x", "dy", "out", "backward's out"])
def test_an_error_of_the_call_itself_is_announced(what):
    group = new_group(2)
    x = np.ones((4, CHANNELS), np.float32)

    def member(rank):
        bad = what if rank == 1 else None
        weight = np.ones(CHANNELS + (bad == "weight"), np.float32)
        for _ in range(2):
            out = np.empty((4, 1), np.float32) if bad == "out" else None
            _, saved = bnext.batch_norm_forward(
                x[:, 0] if bad == "x" else x, weight, group=group, out=out
            )
            out = np.empty((4, 1), np.float32) if bad == "backward's out" else None
            bnext.batch_norm_backward(x[:2] if bad == "dy" else x, x, saved, weight, out=out)

    survivor, culprit = members(group, member)
    assert isinstance(survivor, GroupError)
    # In the exchange of that very pass, before anybody has written anything.
    assert (survivor.step, survivor.layer) == (0, -1)
    assert ("backward:" if what in ("dy", "backward's out") else "forward:") in str(survivor)
    assert "rank 1 raised ValueError" in survivor.reason
    assert isinstance(culprit, ValueError)
    assert not isinstance(culprit, GroupError)
