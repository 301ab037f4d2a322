"""The peers of the benchmark suite compute what bnext does, on the same arrays."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import bnext
from benchmarks import cases, onednn, peers
from benchmarks.shared_libraries import UnavailableError
from bnext.bench.cases import EPS, Case, draw
from bnext.bench.libraries import LIBRARIES

from . import reference
from .optional import marked
from .suite import TINY

TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9}
FORMATS = [
    (case, format)
    for case in TINY
    for format in onednn.FORMATS
    if len(case.shape) > 2 or format == "planar"
]


@pytest.fixture(params=TINY, ids=lambda case: f"{case.name} {case.channels_last}")
def case(request):
    return request.param


def expected(data):
    """The results of each operation in float64."""
    x, dy = (np.asarray(array, np.float64) for array in (data.x, data.dy))
    return {
        "forward": reference.forward(x, data.weight, data.bias, eps=EPS),
        "backward": reference.backward(dy, x, data.weight, eps=EPS),
        "inference": reference.normalize(x, data.mean, data.var, data.weight, data.bias, eps=EPS),
    }


def close(actual, wanted, dtype):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(
        np.asarray(actual, np.float64) / scale, wanted / scale, rtol=0, atol=TOLERANCE[dtype]
    )


@pytest.mark.onednn
@pytest.mark.parametrize(("case", "format"), FORMATS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_onednn_computes_batch_normalization(case, dtype, format):
    data = draw(replace(case, dtype=dtype))
    if dtype == "bfloat16" and "avx512bw" not in Path("/proc/cpuinfo").read_text("utf-8"):
        with pytest.raises(UnavailableError, match="could not create a primitive descriptor"):
            onednn.Layer(data, format)
        return
    layer = onednn.Layer(data, format)
    wanted = expected(data)
    layer.data.out[...] = np.nan
    layer.call("forward", "warm")()
    close(layer.output(), wanted["forward"], dtype)
    batch = reference.moments(data.x)
    close(layer.mean, batch.mean, "float32")
    close(layer.var, batch.var, "float32")
    layer.call("backward", "warm")()
    close(layer.output(), wanted["backward"].dx, dtype)
    close(layer.dweight, wanted["backward"].dweight, "float32")
    close(layer.dbias, wanted["backward"].dbias, "float32")
    layer.call("inference", "warm")()
    close(layer.output(), wanted["inference"], dtype)


@pytest.mark.onednn
def test_onednn_with_fresh_pages_leaves_the_output_alone(case):
    data = draw(case)
    calls = onednn.onednn_calls(data)
    data.out[...] = 7
    for operation in onednn.OPERATIONS:
        calls[operation, "fresh"]()
    assert (data.out == 7).all()


@pytest.mark.onednn
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_onednn_has_as_many_threads_as_bnext(threads):
    bnext.set_num_threads(threads)
    onednn.Layer(draw(TINY[0]), "planar")
    assert onednn.onednn().onednn_set_threads(threads) == threads


@pytest.mark.onednn
def test_onednn_refuses_with_a_reason():
    with pytest.raises(UnavailableError, match="float64"):
        onednn.Layer(draw(replace(TINY[0], dtype="float64")), "planar")
    with pytest.raises(UnavailableError, match="rows have one layout"):
        onednn.best_calls(draw(TINY[2]))


@pytest.mark.onednn
def test_best_layout_is_told_for_each_operation():
    told = []
    calls = onednn.best_calls(draw(TINY[0]), lambda *about: told.append(about))
    assert {operation for operation, _ in calls} == set(onednn.OPERATIONS)
    assert [operation for operation, _, _ in told] == list(onednn.OPERATIONS)
    assert {layout for _, layout, _ in told} <= set(onednn.FORMATS)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", marked(["numpy", "torch", "bnext"]))
def test_libraries_take_other_dtypes(case, name, dtype):
    if name == "bnext" and cases.refusal(dtype):
        pytest.skip(cases.refusal(dtype))
    data = draw(replace(case, dtype=dtype))
    calls, wanted = LIBRARIES[name](data), expected(data)
    for operation in ("forward", "backward", "inference"):
        result = calls[operation, "fresh"]()
        first = result[0] if isinstance(result, tuple) else result
        array = first if isinstance(first, np.ndarray) else first.double().numpy()
        target = wanted[operation].dx if operation == "backward" else wanted[operation]
        close(array, target, "float32" if dtype == "float64" else dtype)


def test_compile_peer_computes_the_same(torch, case, monkeypatch):
    """With a backend that compiles nothing: what is tested is that the arguments are right."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    data = draw(case)
    calls, plain = peers.compile_calls(data), LIBRARIES["torch"](data)
    for operation in ("forward", "backward", "inference"):
        a, b = calls[operation, "fresh"](), plain[operation, "fresh"]()
        a, b = (r[0] if isinstance(r, tuple | list) else r for r in (a, b))
        torch.testing.assert_close(a, b)


def test_what_does_not_compile_is_noted(torch, monkeypatch):
    def fails(function, **_):
        def call(*_):
            raise RuntimeError("no compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    skipped = []
    prepare = peers.prepared("compile", ("forward",), skipped, [])
    assert prepare(draw(TINY[0])) == {}
    assert [item["reason"] for item in skipped] == ["torch.compile: no compiler"]


def test_layers_are_called_in_both_modes():
    data = draw(TINY[2])
    calls = peers.bnext_layers(data)
    y = calls["layer", "fresh"]()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(calls["layer inference", "fresh"](), data.x, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(64, 20), (600, 1024)], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_every_copy_copies(threads, shape, aligned):
    data = draw(Case("rows", shape, aligned=aligned))
    copier = peers.BestCopier(threads)
    calls = copier.calls(data)
    for call in calls.values():
        data.out[...] = 0
        call()
        np.testing.assert_array_equal(data.out, data.x)
    copier.close()
    assert calls
