"""bnext.torch.update_statistics: the definition, from loaders as people have them."""

import collections
import copy

import pytest

import bnext

from .architectures import ARCHITECTURES
from .support import assert_close, buffers_of, torch

nn = torch.nn
update = bnext.torch.update_statistics
KINDS = ("exact", "pooled", "average")


def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
        nn.BatchNorm1d(5),
    )  # fmt: skip


def layers_of(model):
    return [each for each in model.modules() if hasattr(each, "running_mean")]


def pieces(x, *sizes):
    return list(x.split([*sizes, len(x) - sum(sizes)]))


def inputs_of(model, x):
    """What every layer is given, in evaluation mode."""
    given = {}
    handles = [
        layer.register_forward_pre_hook(lambda each, inputs: given.update({each: inputs[0]}))
        for layer in layers_of(model)
    ]
    with torch.no_grad():
        copy_of_modes = [(each, each.training) for each in model.modules()]
        model.eval()(x)
        for each, mode in copy_of_modes:
            each.training = mode
    for handle in handles:
        handle.remove()
    return given


@pytest.mark.parametrize("converted", [False, True], ids=["torch.nn", "bnext.torch"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exact_statistics_are_those_of_the_whole_data_set(name, converted):
    """Each layer's are of its input, behind layers that use theirs."""
    build, (_, *shape), *_ = ARCHITECTURES[name]
    model = build().double()
    if converted:
        model = bnext.torch.convert(model, fuse=True)
    modes = [each.training for each in model.modules()]
    x = torch.randn(17, *shape).double()
    done = update(model, pieces(x, 2, 1, 9))
    assert done == (4, len(layers_of(model)))
    for layer, given in inputs_of(model, x).items():
        flat = given.transpose(0, 1).flatten(1)
        assert_close(layer.running_mean, flat.mean(1), "mean", 10.0)
        assert_close(layer.running_var, flat.var(1), "var", 10.0)
        assert layer.num_batches_tracked == 4
    assert [each.training for each in model.modules()] == modes


@pytest.mark.parametrize("method", ["pooled", "average"])
def test_statistics_in_one_pass(method):
    model = network().double()
    before = copy.deepcopy(model.state_dict())
    batches = pieces(torch.randn(12, 3, 8, 8).double(), 5, 3)
    assert update(model, batches, method) == (3, 1)
    reference = network().double()
    reference.load_state_dict(before)
    given = collections.defaultdict(list)
    for batch in batches:
        reference.train()
        reference[3].eval()
        handles = [
            layer.register_forward_pre_hook(lambda e, x: given[e].append(x[0].transpose(0, 1)))
            for layer in layers_of(reference)
        ]
        reference(batch)
        for handle in handles:
            handle.remove()
    for ours, theirs in zip(layers_of(model), layers_of(reference), strict=True):
        parts = [each.flatten(1) for each in given[theirs]]
        if method == "pooled":
            mean, var = torch.cat(parts, 1).mean(1), torch.cat(parts, 1).var(1)
        else:
            mean = torch.stack([each.mean(1) for each in parts]).mean(0)
            var = torch.stack([each.var(1) for each in parts]).mean(0)
        assert_close(ours.running_mean, mean, "mean", 10.0)
        assert_close(ours.running_var, var, "var", 10.0)
        assert ours.num_batches_tracked == 3


# --- loaders --------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two arguments, and one with a default."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, a, b, *, scale=1.0, c=None):
        return self.bn(a + b * scale)


class Batch:
    """As other packages have them: an object that knows how to move."""

    def __init__(self, x):
        self.x, self.moved = x, []

    def to(self, device):
        self.moved.append(device)
        return self


class OfBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.seen = nn.BatchNorm1d(3), []

    def forward(self, batch):
        return self.bn(batch.x)


Pair = collections.namedtuple("Pair", "a b label")
A, B = torch.randn(2, 8, 3)
LOADERS = {
    "tensors": (lambda: nn.BatchNorm1d(3), [A + B], {}),
    "images and labels": (lambda: nn.BatchNorm1d(3), [(A + B, torch.arange(8))], {}),
    "lists": (Two, [[A, B, torch.arange(8)]], {}),
    "named tuples": (Two, [Pair(A, B, 0)], {}),
    "dicts": (Two, [{"a": A, "b": B, "labels": torch.arange(8)}], {}),
    "by name only": (Two, [{"a": A, "b": B / 2, "scale": 2.0}], {}),
    "objects": (OfBatch, [Batch(A + B)], {}),
    "a call": (Two, [{"x": {"a": A}, "y": B}], {"call": lambda m, v: m(v["x"]["a"], v["y"])}),
    "a DataLoader": (
        Two,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(A, B, A), 8, shuffle=True),
        {},
    ),
}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("name", LOADERS)
def test_statistics_of_loaders(name, method):
    build, loader, options = LOADERS[name]
    model = build()
    update(model, loader, method, **options)
    (layer,) = layers_of(model)
    x = (A + B).double()
    assert_close(layer.running_mean, x.mean(0).float(), "mean", 1.0)
    assert_close(layer.running_var, x.var(0).float(), "var", 1.0)


def test_statistics_move_batches_to_the_device():
    batch = Batch(A)
    update(OfBatch(), [batch])
    assert batch.moved
    assert {each.type for each in batch.moved} == {"cpu"}
    seen = []
    model = nn.Sequential(nn.BatchNorm1d(3))

    def call(model, batch):
        seen.append(batch)
        return model(torch.zeros(2, 3))

    with pytest.raises(ValueError, match="expected"):
        update(model, [], call=call)
    update(model, [[A, {"b": (B, "text")}]], call=call, device="meta")
    (a, rest), *_ = seen
    assert a.device.type == rest["b"][0].device.type == "meta"
    assert rest["b"][1] == "text"


def test_statistics_hold_one_batch_at_a_time():
    """Memory does not grow with the data: no batch is alive when the next one is made."""
    import weakref

    alive = []

    class Loader:
        def __iter__(self):
            for number in range(5):
                assert not any(each() is not None for each in alive[:-1]), number
                x = torch.randn(6, 3, 8, 8)
                alive.append(weakref.ref(x))
                yield x
                del x

    model = network()
    update(model, Loader())
    assert len(alive) == 5 * 3 + 1


# --- errors, after which nothing has changed ------------------------------------------------------


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        if len(x) == 1:
            raise RuntimeError("of the model")
        y = self.b(self.a(x)) if len(x) != 5 else self.a(self.b(x))
        return y if len(x) == 6 else self.shared(y) if len(x) != 7 else self.shared(self.shared(y))


X = {size: torch.randn(size, 3) for size in range(1, 9)}
WRONG = {
    "no data": ([], {}, ValueError, "loader: expected at least one batch, got none"),
    "an iterator": (iter([X[4]]), {"method": "exact"}, ValueError, "got an iterator"),
    "a number": (3, {}, TypeError, "loader: expected an iterable, got int"),
    "a method": ([X[4]], {"method": "best"}, ValueError, "method: expected one of exact, pooled"),
    "the model": ([X[1]], {}, RuntimeError, "of the model"),
    "not reached": ([X[6]], {}, ValueError, "reach every layer, got no call of shared"),
    "twice": ([X[7]], {}, ValueError, "shared: expected one call for each batch"),
    "another order": ([X[4], X[5]], {"method": "exact"}, ValueError, "the same calls for every"),
    "a layer": ([X[4]], {"layers": [nn.BatchNorm1d(3)]}, ValueError, r"layers\[0\]: expected a la"),
    "no layer": ([X[4]], {"layers": [nn.Linear(3, 3)]}, TypeError, r"layers\[0\]: .* got Linear"),
    "no layers": ([X[4]], {"layers": []}, ValueError, "layers: expected at least one"),
    "a call": ([X[4]], {"call": 3}, TypeError, "call: expected a callable, got int"),
}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("case", WRONG)
def test_statistics_after_an_error_are_as_they_were(case, method):
    loader, options, kind, text = WRONG[case]
    options = {"method": method, **options}
    if case == "the model":
        loader = [X[4], *loader]
    model = Sometimes()
    model(X[4])
    model.b.eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=text):
        update(model, loader, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.training for each in model.children()] == [True, False, True]
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_statistics_of_models_without():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        update(3, [X[4]])
    for model in (nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)):
        with pytest.raises(ValueError, match="expected a layer with running statistics"):
            update(model, [X[4]])
    with pytest.raises(ValueError, match="has been called, got a lazy one"):
        update(nn.LazyBatchNorm1d(), [X[4]])
    grouped = bnext.torch.SyncBatchNorm(3, process_group=bnext.sync.ThreadGroup(2))
    with pytest.raises(ValueError, match="the model itself: expected a layer outside groups"):
        update(grouped, [X[4]])
    with pytest.raises(ValueError, match="batches of at least 2 elements"):
        update(Two(), [(A,)])


def test_statistics_of_some_layers_and_of_compiled_models():
    model = Sometimes()
    before = buffers_of(model.b)
    update(model, [X[4], X[8]], layers=[model.a])
    assert all(torch.equal(before[name], value) for name, value in buffers_of(model.b).items())
    assert model.a.num_batches_tracked == 2
    reference = bnext.torch.convert(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3)))
    compiled = torch.compile(copy.deepcopy(reference), backend="eager")
    compiled(X[4])
    for each in (reference, compiled):
        update(each, [X[4], X[8]])
    for a, b in zip(compiled.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["exact", "pooled", "average"])
def test_batches_that_are_not_finite_are_left_out(method):
    """By layers that skip them; another layer takes them in."""
    clean = [torch.randn(8, 3, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    bad = [each.clone() for each in clean]
    bad[1][2, 1] = bad[3][0, 0] = float("nan")

    def model(skip):
        return torch.nn.Sequential(*(
            layer
            for _ in range(2)
            for layer in (bnext.torch.BatchNorm1d(3, skip_nonfinite=skip), torch.nn.Tanh())
        ))  # fmt: skip

    skipping, other = model(True), model(False)
    assert bnext.torch.update_statistics(skipping, bad, method).batches == 4
    bnext.torch.update_statistics(other, [clean[0], clean[2]], method)
    for one, two in zip(skipping[::2], other[::2], strict=True):
        assert torch.equal(one.running_mean, two.running_mean)
        assert torch.equal(one.running_var, two.running_var)
        assert (int(one.num_batches_tracked), int(one.num_batches_skipped)) == (2, 2)
    with pytest.raises(ValueError, match=r"^loader: expected at least one batch with finite data"):
        bnext.torch.update_statistics(skipping, bad[1::2], method)
    assert int(skipping[0].num_batches_skipped) == 2
    bnext.torch.update_statistics(other, bad, method)
    assert other[0].running_mean.isnan().any()
