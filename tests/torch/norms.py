"""What tests of norms of examples share: pairs of layers of PyTorch, and what comes of a step."""

import pytest

from .support import LIBRARIES, assert_close, bound_of, torch

SLOPE = 0.25
NORMS = [
    # PyTorch's own, when it first loads inductor, and about what it uses itself.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.*is deprecated"),
]


def _made(kind, *given):
    """A layer of a library."""
    return lambda library, **options: getattr(library, kind)(*given, **options)


# Layers, and a shape of an input.
LAYERS = {
    "layer": (_made("LayerNorm", (5, 3)), (4, 6, 5, 3)),
    "rms": (_made("RMSNorm", 9), (4, 6, 9)),
    "group": (_made("GroupNorm", 3, 6), (4, 6, 5, 3)),
    "group of 2 axes": (_made("GroupNorm", 2, 6), (5, 6)),
    "group of channels": (_made("GroupNorm", 6, 6), (2, 6, 7)),
    "instance 1": (_made("InstanceNorm1d", 6), (4, 6, 9)),
    "instance 2": (_made("InstanceNorm2d", 6), (4, 6, 5, 3)),
    "instance 3": (_made("InstanceNorm3d", 6), (2, 6, 5, 3, 2)),
    "example": (_made("InstanceNorm2d", 6), (6, 5, 3)),
}
ROWS = ("layer", "rms")
CELLS = tuple(name for name in LAYERS if name not in ROWS)
EVERY = pytest.mark.parametrize("name", LAYERS)
OF_ROWS = pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"], ids=ROWS)


def drawn(theirs, *ours):
    """Layers with the same random parameters."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(0.5, 1.5)
    for each in ours:
        each.load_state_dict(theirs.state_dict())
    return theirs, *ours


def pair(name, dtype=torch.float32, **given):
    """torch.nn's layer and ours, with the same random parameters, and the shape of an input."""
    make, shape = LAYERS[name]
    return *drawn(*(make(library, dtype=dtype, **given) for library in LIBRARIES.values())), shape


def row_pair(kind, *given, **options):
    return drawn(*(getattr(library, kind)(*given, **options) for library in LIBRARIES.values()))


def run(layer, x, dy):
    """y, gradients of x and of parameters, and buffers, by name."""
    layer.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    named = {"y": y.detach(), "dx": leaf.grad}
    named |= {n.removeprefix("_orig_mod."): p.grad for n, p in layer.named_parameters()}
    return named | {n.removeprefix("_orig_mod."): b.clone() for n, b in layer.named_buffers()}


def check(theirs, ours, x, dy, units=None):
    """A step of both has the same results, in the same memory formats."""
    expected, actual = run(theirs, x, dy), run(ours, x, dy)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, name, units or 4 * bound_of(x.dtype))
        if name in ("y", "dx") and x.is_contiguous():
            assert actual[name].stride() == value.stride()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Kernels take small calls as well."""
    monkeypatch.setattr("bnext.torch.cell_functional.LEAST_VALUES", 0)
    monkeypatch.setattr("bnext.torch.row_functional.LEAST_VALUES", 0)
