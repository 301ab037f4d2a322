"""What functions and layers for arrays do with tensors that autograd watches."""

import pytest

import bnext

from .support import torch

from torch.autograd import forward_ad  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

SHAPE = (6, 4)


def arguments():
    x = torch.randn(SHAPE)
    return x, torch.randn(SHAPE), bnext.batch_norm_forward(x)[1]


def forward_in_a_group(out, x):
    group = bnext.sync.ThreadGroup(1)
    group.run(lambda rank, x: bnext.batch_norm_forward(x, out=out, group=group), [x])


WRITES = {
    "forward": lambda out, x, dy, saved: bnext.batch_norm_forward(x, out=out),
    "forward in a group": lambda out, x, dy, saved: forward_in_a_group(out, x),
    "backward": lambda out, x, dy, saved: bnext.batch_norm_backward(dy, x, saved, out=out),
    "normalize": lambda out, x, dy, saved: bnext.normalize(
        x, torch.zeros(4), torch.ones(4), out=out
    ),
    "layer": lambda out, x, dy, saved: bnext.BatchNorm1d(4)(x, out=out),
    "layer in evaluation": lambda out, x, dy, saved: bnext.BatchNorm1d(4).eval()(x, out=out),
}


def assert_counted(tensor, write):
    """What autograd has kept of a tensor is known to be another after `write`."""
    weight = torch.ones_like(tensor, requires_grad=True)
    product = (tensor * weight).sum()
    before = tensor._version
    write()
    assert tensor._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("view", [False, True], ids=["tensor", "view"])
def test_results_written_to_a_tensor_are_counted(name, view):
    out = torch.ones(2, *SHAPE)[0] if view else torch.ones(SHAPE)
    assert_counted(out, lambda: WRITES[name](out, *arguments()))


def test_first_phases_write_nothing():
    x, dy, saved = arguments()
    out, mean, var = torch.ones(SHAPE), torch.zeros(4), torch.ones(4)
    bnext._core.collect_stats(
        x=x, weight=None, bias=None, running_mean=mean, running_var=var, momentum=0.1,
        num_batches_tracked=None, eps=1e-5, channel_axis=1, out=out,
    )  # fmt: skip
    bnext._core.backward_reduce(dy=dy, x=x, saved=saved, weight=None, out=out)
    assert [tensor._version for tensor in (out, mean, var)] == [0, 0, 0]
    assert (out == 1).all()
    assert (var == 1).all()
    assert (mean == 0).all()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_running_statistics_of_layers_are_counted(statistic, steps):
    layer = bnext.BatchNorm1d(4).to(torch.empty(0))
    if steps > 1:
        setattr(layer, statistic, torch.ones(4, steps)[:, 0])
    assert_counted(getattr(layer, statistic), lambda: layer(torch.randn(SHAPE)))
    group = bnext.sync.ThreadGroup(1)
    shared = bnext.BatchNorm1d(4, group=group).to(torch.empty(0))
    assert_counted(
        getattr(shared, statistic),
        lambda: group.run(lambda rank, x: shared(x), [torch.randn(SHAPE)]),
    )


def test_tensors_that_are_only_read_are_not_counted():
    x, dy, saved = arguments()
    weight, mean, var, out = torch.rand(4), torch.rand(4), torch.rand(4), torch.empty(SHAPE)
    bnext.batch_norm_forward(x, weight, weight)
    bnext.batch_norm_backward(dy, x, saved, weight)
    bnext.normalize(x, mean, var, weight)
    layer = bnext.BatchNorm1d(4).to(x).eval()
    layer.backward(layer(x))
    every = (x, dy, weight, mean, var, layer.running_mean, layer.running_var, layer.weight)
    assert [tensor._version for tensor in every] == [0] * len(every)
    with pytest.raises(ValueError, match=r"^out: expected shape"):
        bnext.batch_norm_forward(x, out=out[:3])
    assert out._version == 0


def inference_tensor():
    with torch.inference_mode():
        return torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (inference_tensor, r"got an inference tensor \(call bnext in inference mode, or clone it"),
        (lambda: torch.zeros(1, 4).expand(SHAPE), r"got an expanded one \(pass out.contiguous"),
    ],
    ids=["inference", "expanded"],
)
@pytest.mark.parametrize("name", WRITES)
def test_tensors_that_autograd_lets_nobody_write(name, make, text):
    out = make()
    with pytest.raises(TypeError, match=f"^out: expected a tensor that can be written, {text}"):
        WRITES[name](out, *arguments())
    assert torch.equal(out, torch.zeros(SHAPE))


def test_leaves_are_written_without_gradients_alone():
    x, dy, saved = arguments()
    out = torch.zeros(SHAPE, requires_grad=True)
    for write in WRITES.values():
        with pytest.raises(TypeError, match=r"^out: expected a tensor that requires no gradient"):
            write(out, x, dy, saved)
    assert out._version == 0
    assert torch.equal(out, torch.zeros(SHAPE))
    with torch.no_grad():
        bnext.batch_norm_forward(x, out=out)
    assert out._version == 1


def test_inference_tensors_are_written_in_inference_mode():
    with torch.inference_mode():
        x, out = torch.randn(SHAPE), torch.zeros(SHAPE)
        layer = bnext.BatchNorm1d(4).to(x)
        assert torch.equal(layer(x, out=out), bnext.batch_norm_forward(x)[0])
        assert layer.running_mean.is_inference()
    with pytest.raises(TypeError, match=r"^running_mean: expected a tensor that can be written"):
        layer(torch.randn(SHAPE))
    layer.eval()(torch.randn(SHAPE))


def test_running_statistics_in_one_element():
    layer = bnext.BatchNorm1d(4).to(torch.empty(0))
    layer.running_var = torch.ones(1).expand(4)
    with pytest.raises(TypeError, match=r"^running_var: expected a tensor that can be written"):
        layer(torch.randn(SHAPE))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, torch.zeros(4))


@pytest.mark.parametrize("name", ["x", "dy", "weight", "out"])
def test_tangents_are_not_dropped(name):
    x, dy, saved = arguments()
    tensors = {"x": x, "dy": dy, "weight": torch.ones(4), "out": torch.zeros(SHAPE)}
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name]))
        given = tensors | {name: dual}
        text = f"^{name}: expected a tensor without a tangent, got a dual one; .*pass {name}.detach"
        with pytest.raises(TypeError, match=text):
            bnext.batch_norm_backward(given["dy"], given["x"], saved, given["weight"],
                                      out=given["out"])  # fmt: skip
        given[name] = dual.detach()
        bnext.batch_norm_backward(given["dy"], given["x"], saved, given["weight"])
    bnext.batch_norm_backward(dy, x, saved, tensors["weight"])  # and the rest of a level is plain


def test_tangents_in_layers_of_arrays():
    layer = bnext.BatchNorm1d(4)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(SHAPE), torch.ones(SHAPE))
        for training in (True, False):
            with pytest.raises(TypeError, match=r"^x: expected a tensor without a tangent"):
                layer.train(training)(x)
    assert layer.num_batches_tracked == 0
