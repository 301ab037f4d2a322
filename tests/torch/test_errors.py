"""What torch.nn.functional.batch_norm refuses, and how: the same types and texts from ours."""

import inspect
import itertools

import pytest

import bnext

from .support import DTYPES, Failure, buffers_of, layers, name_of_dtype, outcome_of, torch

THEIRS, OURS = torch.nn.functional.batch_norm, bnext.torch.functional.batch_norm


def one(size=4, dtype=torch.float32, **options):
    return torch.ones(size, dtype=dtype, **options)


def x_of(*shape, **options):
    return torch.randn(*(shape or (3, 4, 5)), **options)


def wanting_gradients(size=4):
    return one(size).requires_grad_()


def of_inference(*tensors):
    with torch.inference_mode():
        copies = tuple(tensor.clone() for tensor in tensors)
    return copies if len(copies) > 1 else copies[0]


def negated(*shape):
    """A tensor of ones whose negation has not been done."""
    return -torch.ones(shape, dtype=torch.complex64).conj().imag.add(-1)


# What is given: the positional arguments, then those by name.
REFUSED = {
    "no axes": lambda: ((torch.tensor(1.0), None, None), {"training": True}),
    "one axis": lambda: ((x_of(4), None, None), {"training": True}),
    "one axis, evaluation": lambda: ((x_of(4), one(), one()), {}),
    "one value": lambda: ((x_of(1, 4), None, None), {"training": True}),
    "one value of five axes": lambda: ((x_of(1, 4, 1, 1, 1), None, None), {"training": True}),
    "no channels": lambda: ((x_of(2, 0), None, None, one(0).requires_grad_()), {"training": True}),
    "no statistics": lambda: ((x_of(), None, None), {}),
    "no variance, training": lambda: ((x_of(), one(), None), {"training": True}),
    "no mean, training": lambda: ((x_of(), None, one()), {"training": True}),
    "no variance": lambda: ((x_of(), one(), None), {}),
    "no mean": lambda: ((x_of(), None, one()), {}),
    "short mean": lambda: ((x_of(), one(3), one()), {"training": True}),
    "short variance": lambda: ((x_of(), one(), one(3)), {"training": True}),
    "long statistics": lambda: ((x_of(), one(5), one(5)), {}),
    "short weight": lambda: ((x_of(), None, None, one(3), one()), {"training": True}),
    "short weight, evaluation": lambda: ((x_of(), one(), one(), one(3)), {}),
    "short bias": lambda: ((x_of(), None, None, one(), one(3)), {"training": True}),
    "scalar weight": lambda: ((x_of(), None, None, torch.tensor(1.0)), {"training": True}),
    "mean of two axes": lambda: ((x_of(), one((1, 4)), one()), {"training": True}),
    "whole numbers": lambda: ((x_of().int(), None, None), {"training": True}),
    "truth values": lambda: ((x_of() > 0, None, None), {"training": True}),
    "complex numbers": lambda: ((x_of() + 0j, None, None), {"training": True}),
    "complex numbers, evaluation": lambda: ((x_of() + 0j, one(), one()), {}),
    "8 bits": lambda: ((x_of().to(torch.float8_e4m3fn), None, None), {"training": True}),
    "sparse": lambda: ((x_of(3, 4).to_sparse(), None, None), {"training": True}),
    "float64 under float32": lambda: ((x_of().double(), one(), one(), one(), one()), {}),
    "a list": lambda: (([[1.0, 2.0]], None, None), {"training": True}),
    "NumPy's": lambda: ((x_of().numpy(), None, None), {"training": True}),
    "nothing": lambda: ((None, None, None), {"training": True}),
    "weight a list": lambda: ((x_of(), None, None, [1.0] * 4), {"training": True}),
    "weight a number": lambda: ((x_of(), None, None, 1.0), {"training": True}),
    "weight elsewhere": lambda: ((x_of(), None, None, one(device="meta")), {"training": True}),
    "mean elsewhere": lambda: ((x_of(), one(device="meta"), one()), {"training": True}),
    "mean wants gradients": lambda: ((x_of(), wanting_gradients(), one()), {"training": True}),
    "variance wants gradients": lambda: ((x_of(), one(), wanting_gradients()), {"training": True}),
    "mean wants gradients, evaluation": lambda: ((x_of(), wanting_gradients(), one()), {}),
    "variance wants gradients, evaluation": lambda: ((x_of(), one(), wanting_gradients()), {}),
    "statistics from inference mode": lambda: (
        (x_of(requires_grad=True), *of_inference(one(), one())), {"training": True}
    ),
    "x from inference mode": lambda: (
        (of_inference(x_of()), one(), one(), wanting_gradients()), {}
    ),
    "eps 0": lambda: ((x_of(), None, None), {"training": True, "eps": 0.0}),
    "eps below 0": lambda: ((x_of(), None, None), {"training": True, "eps": -1}),
    "eps below 0, evaluation": lambda: ((x_of(), one(), one()), {"eps": -1.0}),
    "eps a text": lambda: ((x_of(), one(), one()), {"eps": "small"}),
    "eps none": lambda: ((x_of(), one(), one()), {"eps": None}),
    "momentum none": lambda: ((x_of(), one(), one()), {"training": True, "momentum": None}),
    "momentum none, no statistics": lambda: (
        (x_of(), None, None), {"training": True, "momentum": None}
    ),
    "momentum a text": lambda: ((x_of(), one(), one()), {"training": True, "momentum": "a"}),
    "momentum complex": lambda: ((x_of(), one(), one()), {"training": True, "momentum": 1j}),
    "momentum wants gradients": lambda: (
        (x_of(), one(), one()), {"training": True, "momentum": wanting_gradients(())}
    ),
    "training 1": lambda: ((x_of(), one(), one()), {"training": 1}),
    "training none": lambda: ((x_of(), one(), one()), {"training": None}),
    "training a text": lambda: ((x_of(), one(), one()), {"training": "yes"}),
    "no arguments": lambda: ((), {}),
    "another argument": lambda: ((x_of(), one(), one()), {"group": None}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("case", REFUSED)
def test_functional_refuses_as_torch_does(case):
    arguments, named = REFUSED[case]()
    expected = outcome_of(THEIRS, *arguments, **named)
    assert isinstance(expected, Failure)
    before = [value.clone() if type(value) is torch.Tensor else None for value in arguments[1:3]]
    assert outcome_of(OURS, *arguments, **named) == expected
    for was, value in zip(before, arguments[1:3], strict=False):
        assert was is None or value.is_meta or torch.equal(was, value), "changed"


TAKEN = {
    "keywords": lambda: ((), {"input": x_of(), "running_mean": one(), "running_var": one()}),
    "six axes": lambda: ((x_of(2, 4, 2, 2, 2, 2), one(), one()), {"training": True}),
    "expanded weight": lambda: ((x_of(), None, None, one(1).expand(4)), {"training": True}),
    "strided parameters": lambda: (
        (x_of(), None, None, torch.arange(8.0)[::2], torch.arange(8.0)[1::2]), {"training": True}
    ),
    "strided statistics": lambda: ((x_of(), one(8)[::2], one(8)[1::2]), {"training": True}),
    "weight of two axes": lambda: ((x_of(), None, None, one((4, 1))), {"training": True}),
    "reversed weight": lambda: ((x_of(), one(), one(), torch.arange(4.0).flip(0)), {}),
    "an expanded x": lambda: ((x_of(1, 4, 5).expand(3, 4, 5), one(), one()), {"training": True}),
    "to be negated": lambda: ((negated(3, 4), None, None), {"training": True}),
    "statistics to be negated": lambda: ((x_of(), negated(4), one()), {"training": True}),
    "variance wants gradients, none recorded": lambda: ((x_of(), one(), one()), {}),
    "statistics from inference mode": lambda: ((x_of(), *of_inference(one(), one())), {}),
    "statistics from inference mode move": lambda: (
        (x_of(), *of_inference(one(), one())), {"training": True}
    ),
    "eps 0": lambda: ((x_of(), one(), one()), {"eps": 0}),
    "eps 1": lambda: ((x_of(), one(), one()), {"eps": 1}),
    "eps infinite": lambda: ((x_of(), one(), one()), {"eps": float("inf")}),
    "eps huge": lambda: ((x_of(), one(), one()), {"eps": 1e300}),
    "eps NaN": lambda: ((x_of(), one(), one()), {"eps": float("nan")}),
    "momentum 2": lambda: ((x_of(), one(), one()), {"training": True, "momentum": 2}),
    "momentum below 0": lambda: ((x_of(), one(), one()), {"training": True, "momentum": -0.5}),
    "momentum NaN": lambda: ((x_of(), one(), one()), {"training": True, "momentum": float("nan")}),
    "momentum infinite": lambda: (
        (x_of(), one(), one()), {"training": True, "momentum": float("inf")}
    ),
    "momentum a tensor": lambda: (
        (x_of(), one(), one()), {"training": True, "momentum": torch.tensor(0.25)}
    ),
    "momentum a truth value": lambda: (
        (x_of(), one(), one()), {"training": True, "momentum": True}
    ),
    "of no memory": lambda: ((x_of(device="meta"), one(device="meta"), one(device="meta")), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_functional_takes_what_torch_takes(case):
    """With the same results, in the same memory."""

    def run(function):
        torch.manual_seed(7)
        arguments, named = TAKEN[case]()
        y = function(*arguments, **named)
        return (y, *(value for value in arguments[1:3] if value is not None))

    for actual, expected in zip(run(OURS), run(THEIRS), strict=True):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert (actual.device, actual.stride()) == (expected.device, expected.stride())
        assert actual.is_inference() == expected.is_inference()
        if not expected.is_meta:
            torch.testing.assert_close(actual, expected, equal_nan=True)


def test_functional_refuses_the_same_mixtures_of_dtypes(kernel_calls):
    """Every dtype of x, parameters and statistics with every other, each also absent."""

    def run(function, x, dtypes, training):
        given = [None if dtype is None else one(dtype=dtype) for dtype in dtypes]
        y = outcome_of(function, x, *given, training=training)
        return y if isinstance(y, Failure) else y.dtype

    taken = 0
    kinds = [*DTYPES, None]
    for dtype, *others in itertools.product(DTYPES, *(kinds,) * 4):
        statistics, parameters = ({*pair} - {None} for pair in (others[:2], others[2:]))
        if statistics == {torch.float32} and parameters == {dtype} and dtype.itemsize == 2:
            continue  # as in a sharded model: bnext takes these (`test_sharded`)
        for training in (True, False):
            x = x_of(3, 4, 2).to(dtype)
            expected = run(THEIRS, x, others, training)
            assert run(OURS, x, others, training) == expected, (dtype, others, training)
            taken += not isinstance(expected, Failure)
    assert sum(kernel_calls.values()) == taken == 70


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_functional_without_recording_takes_statistics_that_want_gradients(dtype):
    mean, var = (one(dtype=dtype).requires_grad_() for _ in range(2))
    with torch.no_grad():
        y = OURS(x_of(3, 4).to(dtype), mean, var, training=True)
    assert y.isfinite().all()
    assert not torch.equal(mean, one(dtype=dtype))


def test_functional_has_torch_s_signature():
    """Arguments that PyTorch's has not are by name only."""
    ours, theirs = (inspect.signature(function).parameters for function in (OURS, THEIRS))
    more = {"activation", "residual", "negative_slope"}
    assert {name for name, p in ours.items() if p.kind is p.KEYWORD_ONLY} == more
    ours = {name: p for name, p in ours.items() if name not in more}
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
@pytest.mark.parametrize("rank", range(7))
def test_layers_refuse_the_same_ranks(name, rank):
    x = torch.randn((5,) * rank)
    expected, actual = (outcome_of(layer, x) for layer in layers(name))
    if isinstance(expected, Failure):
        assert actual == expected
    else:
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_layers_refuse_another_number_of_channels(channels, training):
    theirs, ours = (layer.train(training) for layer in layers("BatchNorm2d"))
    before = buffers_of(ours)
    x = torch.randn(3, channels, 2, 2)
    actual = outcome_of(ours, x)
    assert actual == outcome_of(theirs, x)
    assert f"should contain {channels} elements" in actual.text
    after = buffers_of(ours)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_layers_whose_statistics_are_missing_or_want_gradients():
    def without(name):
        def change(layer):
            setattr(layer, name, None)

        return change

    changes = {
        "no mean": without("running_mean"), "no var": without("running_var"),
        "no counter": without("num_batches_tracked"),
        "gradients": lambda layer: layer.running_mean.requires_grad_(),
        "not tracking any more": lambda layer: setattr(layer, "track_running_stats", False),
    }  # fmt: skip
    for (what, change), training, momentum in itertools.product(
        changes.items(), (True, False), (0.1, None)
    ):
        x = x_of()
        results = []
        for library in (torch.nn, bnext.torch):
            layer = library.BatchNorm1d(4, momentum=momentum).train(training)
            change(layer)
            results.append((outcome_of(layer, x), layer))
        (expected, theirs), (actual, ours) = results
        if isinstance(expected, Failure):
            assert actual == expected, what
        else:
            torch.testing.assert_close(actual, expected)
            for name, buffer in theirs.named_buffers():
                torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)
