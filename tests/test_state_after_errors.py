"""A call that ends in an error leaves every array of every layer as it was, or has written all."""

import itertools
import warnings

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .interruptions import interrupted
from .snapshots import assert_unchanged, layer_state, snapshot

F4 = np.float32
ARRAYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
STATISTICS = ARRAYS[2:]


def data(rows=8, scale=3.0):
    return np.random.default_rng(1).normal(1, scale, (rows, 4)).astype(F4)


def trained(**options):
    bn = bnext.BatchNorm1d(4, **options)
    bn(data())
    bn.weight[...] = 5
    return bn


def using_and_moving():
    bn = trained()
    bn.use_running_stats = bn.update_running_stats = True
    return bn


def load(bn):
    other = trained()
    other(data(12))
    bn.load_state_dict(other.state_dict())


def update(method):
    def act(bn):
        front = bnext.BatchNorm1d(4)
        batches = [data(), data(5)]
        bnext.update_statistics(lambda x: bn(front(x)), batches, [front, bn], method)

    return act


def unite(bn):
    with bnext.micro_batches([bn]) as union:
        list(union.run(bn, [data(), data(5)]))


# name: (how the layer is made, the call, which of its arrays it writes)
MUTATORS = {
    "load_state_dict": (trained, load, ARRAYS),
    "reset_running_stats": (trained, lambda bn: bn.reset_running_stats(), STATISTICS),
    "reset_parameters": (trained, lambda bn: bn.reset_parameters(), ARRAYS),
    "train": (trained, lambda bn: bn(data()), STATISTICS),
    "use and move": (using_and_moving, lambda bn: bn(data()), STATISTICS),
    "exact": (trained, update("exact"), STATISTICS),
    "pooled": (trained, update("pooled"), STATISTICS),
    "average": (trained, update("average"), STATISTICS),
    "micro_batches": (trained, unite, STATISTICS),
}
WRITTEN = [
    pytest.param(mutator, name, id=f"{mutator}-{name}")
    for mutator, (_, _, names) in MUTATORS.items()
    for name in names
]


def read_only(array):
    array.flags.writeable = False
    return array


def memory_map(array, tmp_path):
    path = tmp_path / "checkpoint.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("kind", ["read-only", "memory map", "masked", "list"])
@pytest.mark.parametrize(("mutator", "name"), WRITTEN)
def test_an_array_that_cannot_be_written(mutator, name, kind, tmp_path):
    make, act, _ = MUTATORS[mutator]
    bn = make()
    bn._latest.clear()
    array = getattr(bn, name)
    if kind == "list":
        setattr(bn, name, array.tolist())
    elif kind == "masked":
        setattr(bn, name, np.ma.array(array, mask=True))
    else:
        setattr(bn, name, read_only(array) if kind == "read-only" else memory_map(array, tmp_path))
    before = snapshot(layer_state(bn))
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        act(bn)
    assert_unchanged(layer_state(bn), before)
    assert bn.group is None


@pytest.mark.parametrize(("mutator", "name"), WRITTEN)
def test_an_immutable_array_of_jax(jax, mutator, name):
    make, act, _ = MUTATORS[mutator]
    bn = make()
    setattr(bn, name, jax.numpy.asarray(getattr(bn, name)))
    before = {k: np.array(v) for k, v in bn.state_dict().items()}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        act(bn)
    for key, value in before.items():
        assert_same_bits(np.array(getattr(bn, key)), value, key)


@pytest.mark.parametrize("mutator", MUTATORS)
def test_under_any_error_state_results_are_the_same(mutator):
    """Variances that float32 does not hold, and some that only it does not hold as normal ones."""
    make, act, _ = MUTATORS[mutator]
    plain, strict = make(), make()
    for bn in (plain, strict):
        bn.running_var[...] = [1, 1e-38, 3e38, np.inf]
        bn.running_mean[...] = [1, 1e-38, 3e38, np.nan]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act(plain)
        with np.errstate(all="raise"):
            act(strict)
    for name in ARRAYS:
        assert_same_bits(getattr(strict, name), getattr(plain, name), name)


def test_a_variance_beyond_float32_is_infinite_under_any_error_state():
    big = np.random.default_rng(1).normal(size=(8, 4)).astype(F4) * np.array([1, 1, 1, 1e25], F4)
    front, bn = bnext.BatchNorm1d(4), bnext.BatchNorm1d(4)
    with np.errstate(all="raise"):
        bnext.update_statistics(lambda x: bn(front(x)), [big, big], [bn, front])
    assert front.running_var[3] == np.inf
    assert np.isfinite(front.running_var[:3]).all()


# Ctrl-C in a finalizer, as of a generator that dies, is reported by Python and not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mutator", MUTATORS)
def test_ctrl_c_comes_before_all_writes_or_after(mutator):
    make, act, names = MUTATORS[mutator]
    bn = make()
    before = snapshot(layer_state(bn))
    done = make()
    act(done)
    after = snapshot(layer_state(done))
    interruptions = 0
    for _ in interrupted(lambda: act(bn)):  # noqa: B023 - the layer of the time
        interruptions += 1
        assert bn.group is None
        assert bn.use_running_stats in (None, True)
        changed = {n for n in names if not np.array_equal(getattr(bn, n), before[n])}
        if changed:
            for name in names:
                assert_same_bits(getattr(bn, name), after[name], name)
            bn = make()
    assert interruptions > 3 or mutator == "train"


def test_ctrl_c_in_the_middle_of_to_and_freeze():
    for act in (lambda bn: bn.to(np.ones(1)), lambda bn: bn.freeze(), lambda bn: bn.unfreeze()):
        bn = trained()
        bn(data())
        bn.backward(data())
        switches = (bn.use_running_stats, bn.update_running_stats, bn.train_affine)
        for _ in interrupted(lambda act=act, bn=bn: act(bn)):
            assert (bn.use_running_stats, bn.update_running_stats, bn.train_affine) == switches
            assert (bn.weight_grad is None) == (bn.bias_grad is None)


def test_freeze_looks_at_its_argument_first():
    bn = trained()
    with pytest.raises(ValueError, match="ambiguous"):
        bn.freeze(affine=np.ones(2))
    assert not bn.frozen
    assert bn.train_affine


def test_tensors_that_cannot_be_written_give_the_others_back(torch):
    """A tensor of inference mode refuses writes, and nothing says so before."""
    bn = trained().to(torch.ones(1))
    with torch.inference_mode():
        bn.running_var = torch.ones(4)
    before = {name: getattr(bn, name).tolist() for name in ARRAYS}
    with pytest.raises(RuntimeError, match="nference"):
        load(bn)
    assert {name: getattr(bn, name).tolist() for name in ARRAYS} == before


def test_tensors_that_require_gradients_are_refused_by_name(torch):
    bn = trained().to(torch.ones(1))
    bn.bias.requires_grad_()
    with pytest.raises(RuntimeError, match="bias: expected a tensor that requires no gradient"):
        load(bn)
    assert bn.weight.tolist() == [5.0] * 4
    with torch.no_grad():
        load(bn)


@pytest.mark.parametrize("method", ["exact", "pooled", "average"])
@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("where", ["network", "batches"])
def test_an_error_of_the_caller_s(method, keep, where):
    layers = [trained(), trained()]
    before = [snapshot(layer_state(bn)) for bn in layers]
    for at in range(3):
        calls = itertools.count()
        left = []

        def network(x, at=at, calls=calls, left=left):
            number = next(calls)
            try:
                if where == "network" and number == at:
                    raise KeyError("mine")
                return layers[1](layers[0](x))
            finally:
                left.append(number)

        def batches(at=at):
            for number in range(3):
                if where == "batches" and number == at:
                    raise KeyError("mine")
                yield data(5 + number)

        class Batches:
            __iter__ = staticmethod(batches)

        with pytest.raises(KeyError, match="mine") as kept:
            bnext.update_statistics(network, Batches(), layers, method, keep=keep)
        # Nothing of the network is left in the middle, where the error's traceback would keep it.
        assert len(left) == next(calls)
        del kept
        for bn, state in zip(layers, before, strict=True):
            assert_unchanged(layer_state(bn), state)
            assert bn.group is None
            assert bn.use_running_stats is None


def test_layers_move_together_in_a_union():
    """The second layer's statistics cannot be written when the union ends: neither moves."""
    layers = [trained(), trained()]

    def step(x):
        y = layers[1](layers[0](x))
        layers[1].running_var.flags.writeable = False
        return y

    before = snapshot(layer_state(layers[0]))
    with bnext.micro_batches(layers) as union, pytest.raises(ValueError, match=r"layers\[1\]\."):
        list(union.run(step, [data(), data(5)]))
    assert_unchanged(layer_state(layers[0]), before)


@pytest.mark.parametrize("name", STATISTICS)
def test_use_and_move_in_a_group(name):
    group = bnext.sync.ThreadGroup(2, timeout=30)
    layers = [bnext.BatchNorm1d(4, group=group) for _ in range(2)]
    for bn in layers:
        bn.use_running_stats = bn.update_running_stats = True
    read_only(getattr(layers[1], name))
    outs = [np.full((8, 4), 7, F4) for _ in layers]
    with pytest.raises((ValueError, TypeError), match=name):
        group.run(lambda rank, x: layers[rank](x, out=outs[rank]), [data(), data()])
    assert np.all(outs[1] == 7), "refused before any memory is touched"
    assert layers[1].num_batches_tracked == 0
    assert layers[1].running_mean.tolist() == [0.0] * 4
