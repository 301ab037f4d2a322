"""What the tests share of the two roads of PyTorch's tensors into a call on a GPU.

Plain tensors are read by DLPack's table of C functions, others as `bnext.arrays.pytorch` sees them.
Without a GPU: tensors on the CPU stand for tensors there (benchmarks/pretended_gpu.py), and the
kernels are compiled for the CPU. Both roads launch the same kernels, so all bits are equal. The
fixtures are in conftest.py.
"""

import bnext
from bnext import _core, arrays
from bnext.arrays.pytorch import Torch

from ..optional import import_torch

torch = import_torch()
import bnext.torch  # noqa: E402 - of which there is nothing without PyTorch
from bnext.torch import kernels  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(7, 3), (2, 1), (5, 300), (3, 5, 11), (4, 17, 5, 3), (3, 64, 9, 7), (2, 3, 2, 5, 3)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = [(s, False) for s in SHAPES] + [(s, True) for s in SHAPES if len(s) in LAST]


def param(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(shape, dtype, last=False):
    """x, dy, weight, bias, running mean and variance, counter."""
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    if last:
        x, dy = (t.to(memory_format=LAST[len(shape)]) for t in (x, dy))
    vectors = [torch.randn(shape[1]).to(param(dtype)) for _ in range(3)]
    return x, dy, *vectors, torch.rand(shape[1]).to(param(dtype)), torch.tensor(5)


class Roads:
    """Which road tensors take; `entered` counts the views of the general one."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch
        self.entered = 0
        view = Torch.view

        def counted(*given, **options):
            seen = view(*given, **options)
            self.entered += 1
            return seen

        monkeypatch.setattr(Torch, "view", counted)

    def general(self, function, *given, **options):
        """Without a table: no tensor is plain."""
        with self.patch.context() as patch:
            patch.setattr(arrays, "_ENGINES", {})
            patch.setattr(kernels, "_THERE", {})
            calls_on = _core.calls_on
            patch.setattr(_core, "calls_on", lambda *of: calls_on(*of, plain=False))
            before = self.entered
            result = outcome(function, *given, **options)
            return result, self.entered - before

    def short(self, function, *given, **options):
        before = self.entered
        result = outcome(function, *given, **options)
        return result, self.entered - before


def outcome(function, *given, **options):
    """What a call returns, as tensors and plain values; or its error."""
    try:
        return flat(function(*given, **options))
    except Exception as error:
        return [type(error), str(error)]


def flat(result):
    if isinstance(result, tuple | list):
        return [value for each in result for value in flat(each)]
    if isinstance(result, bnext.arrays.DeviceSaved):
        names = ("rows", "count", "eps", "shape", "dtype", "channel_axis", "batch_statistics")
        values = [getattr(result, name) for name in names]
        return [type(result), repr(result), *flat(values)]
    return [result]


def assert_equal(first, second):
    assert len(first) == len(second), (first, second)
    for a, b in zip(first, second, strict=True):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert a.requires_grad == b.requires_grad
            assert torch.equal(bits(a), bits(b))
        else:
            assert type(a) is type(b)
            assert a == b


def bits(tensor):
    tensor = tensor.detach().contiguous()
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(size)


def both_ways(roads, call, *, short=True):
    """The same by either road; `short`: nothing of the general one ran."""
    first, launches = roads.short(call)
    second, _ = roads.general(call)
    assert (launches == 0) == short
    assert_equal(first, second)
    return first


def layer(shape, dtype, **options):
    made = getattr(bnext.torch, f"BatchNorm{max(len(shape) - 2, 1)}d")(shape[1], **options)
    if dtype == torch.float64:
        made.double()
    with torch.no_grad():
        for t in (made.weight, made.bias, made.running_mean):
            if t is not None:
                t.normal_()
    return made
