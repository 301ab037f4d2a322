"""What conventions once got wrong, one test or more for each fault, in this order.

1. Bessel's correction of the initial 1.  2. tf-keras on images.  3. ONNX exported from PyTorch.
4. MindSpore under Keras' names.  5. Impossible variances.  6. Arrays with axes of size 1.
7. ONNX' older names.  8. Conventions that were missing.  9. Names with a prefix.
10. What the page about them says.  11. What the comparison says of PyTorch at a large mean.
"""

import math
import pathlib

import numpy as np
import pytest

import bnext
from bnext.inference.conventions.libraries import CONVENTIONS

from .checkpoints import FEW as C
from .checkpoints import KERAS, PYTORCH, trained, values
from .compare import assert_same_bits

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_start_gets_no_correction(rng):
    """Five steps of four rows by Keras' own rule, beside the correction of the whole variance."""
    bn = bnext.BatchNorm1d(C, dtype=np.float64, momentum=0.1)
    stored = np.ones(C)
    for _ in range(5):
        x = rng.normal(1, 2, (4, C))
        bn(x)
        stored = 0.9 * stored + 0.1 * x.var(0)
    given = bnext.to_convention(bn, "keras", count=4)["moving_variance"]
    np.testing.assert_allclose(given, stored, rtol=1e-13)
    assert (abs(bn.running_var * 3 / 4 / stored - 1) > 0.03).all()  # what would be wrong
    keras = {"moving_mean": bn.running_mean, "moving_variance": stored, "momentum": 0.9}
    back = bnext.from_convention("keras", keras, count=4, steps=5)
    np.testing.assert_allclose(back.running_var, bn.running_var, rtol=1e-13)


def test_an_unknown_number_of_steps_warns(rng):
    arrays = values(rng, KERAS)
    with pytest.warns(UserWarning, match=r"^steps: not given and not stored; .*math\.inf"):
        bn = bnext.from_convention("keras", arrays, count=8)
    np.testing.assert_allclose(bn.running_var, arrays["moving_variance"] * 8 / 7, rtol=1e-15)
    # A layer whose counter was never moved does not know it either.
    loaded = bnext.from_convention("keras", arrays)
    with pytest.warns(UserWarning, match=r"^steps: not given") as caught:
        given = bnext.to_convention(loaded, "pytorch", count=8)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(given["running_var"], bn.running_var, rtol=1e-15)


def test_fused_layers_of_tf_keras_store_the_unbiased_variance(rng):
    arrays = values(rng, KERAS)
    image = bnext.from_convention("tf-keras", arrays, count=8, bessel=True)
    np.testing.assert_array_equal(image.running_var, arrays["moving_variance"])
    row = bnext.from_convention("tf-keras", arrays, count=8, steps=math.inf, bessel=False)
    np.testing.assert_allclose(row.running_var, arrays["moving_variance"] * 8 / 7, rtol=1e-15)
    assert bnext.from_convention("tf-keras", arrays, bessel=True).estimator.bessel
    assert bnext.from_convention("keras", arrays, bessel=True).estimator.bessel
    for convention in ("tf-keras", "sonnet", "mlx"):
        names = CONVENTIONS[convention].names
        given = (
            values(rng, names) | {"decay_rate": 0.9}
            if convention == "sonnet"
            else values(rng, names)
        )
        with pytest.raises(
            ValueError, match=r"^bessel: expected True or False for .*; it depends on"
        ):
            bnext.from_convention(convention, given)
        with pytest.raises(
            ValueError, match=r"^bessel: expected True or False for .*; it depends on"
        ):
            bnext.to_convention(trained(rng), convention, count=4)


def test_onnx_models_exported_from_pytorch_keep_its_variance(rng):
    arrays = values(rng, CONVENTIONS["onnx"].names)
    bn = bnext.from_convention("onnx", arrays, count=8, bessel=True)
    np.testing.assert_array_equal(bn.running_var, arrays["input_var"])
    with pytest.raises(ValueError, match=r"^bessel: expected True or False for ONNX.*PyTorch"):
        bnext.from_convention("onnx", arrays, count=8)
    layer = trained(rng)
    written = bnext.to_convention(layer, "onnx", count=4, bessel=True)
    assert_same_bits(written["input_var"], layer.running_var)


def test_mindspore_is_not_keras(rng):
    arrays = values(rng, KERAS)
    bn = bnext.from_convention("mindspore", arrays)
    assert (bn.eps, bn.channel_axis, bn.estimator.bessel) == (1e-5, 1, True)
    alone = dict(zip(("gamma", "beta", "mean", "variance"), arrays.values(), strict=True))
    assert_same_bits(bnext.from_convention("mindspore", alone).running_var, bn.running_var)
    assert bnext.guess_convention(arrays) == ["keras", "tf-keras", "mindspore"]


@pytest.mark.parametrize("wrong", [-8.0, -1e-30, math.nan, math.inf])
@pytest.mark.parametrize("convention", ["keras", "pytorch", "haiku", "caffe"])
def test_impossible_variances_name_their_channel(rng, convention, wrong):
    record = CONVENTIONS[convention]
    arrays = values(rng, record.names) | {"decay_rate": 0.9, "scale_factor": np.ones(1)}
    arrays = {
        n: a for n, a in arrays.items() if n in {*record.names, record.momentum_name, record.factor}
    }
    arrays[record.names[3]][1] = wrong
    text = f"^{record.names[3]}: expected a finite variance >= 0, got {wrong} in channel 1$"
    with pytest.raises(ValueError, match=text):
        bnext.from_convention(convention, arrays, steps=3)
    bn = trained(rng)
    bn.running_var[2] = wrong
    with pytest.raises(ValueError, match=r"^running_var: .* in channel 2$"):
        bnext.to_convention(bn, convention)
    arrays = values(rng, KERAS)
    arrays["moving_mean"][0] = math.nan
    with pytest.raises(
        ValueError, match=r"^moving_mean: expected a finite mean, got nan in channel 0"
    ):
        bnext.from_convention("keras", arrays)


def test_a_variance_that_the_layer_s_dtype_cannot_hold_is_refused(rng):
    arrays = values(rng, PYTORCH) | {"running_mean": np.zeros(C, np.float32)}
    arrays["running_var"][2] = 1e300
    with pytest.raises(ValueError, match=r"^running_var: .* got inf in channel 2$"):
        bnext.from_convention("pytorch", arrays)


@pytest.mark.parametrize(
    ("convention", "shape"),
    [("haiku", (1, C)), ("haiku", (1, 1, 1, C)), ("objax", (1, C, 1, 1)), ("sonnet", (1, C))],
)
def test_axes_of_size_1(rng, convention, shape):
    record = CONVENTIONS[convention]
    arrays = values(rng, record.names, shape)
    options = {"decay": 0.9, "steps": 7, "bessel": False}
    bn = bnext.from_convention(convention, arrays, **options)
    assert_same_bits(bn.running_var, arrays[record.names[3]].reshape(-1))
    assert_same_bits(bn.weight, arrays[record.names[0]].reshape(-1))
    bn.channel_axis = record.channel_axis
    given = bnext.to_convention(bn, convention, ndim=len(shape))
    assert given[record.names[3]].shape == shape
    one = {name: array.reshape(-1)[:1].reshape([1] * len(shape)) for name, array in arrays.items()}
    assert bnext.from_convention(convention, one, **options).num_features == 1
    arrays[record.names[3]] = np.ones((C, C))
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(3, 3\)"):
        bnext.from_convention(convention, arrays, **options)


def test_opsets_7_and_9(rng):
    arrays = values(rng, ("scale", "B", "mean", "var"))
    bn = bnext.from_convention("onnx", arrays)
    assert_same_bits(bn.running_var, arrays["var"])
    with pytest.raises(ValueError, match=r"expected input_var once, got it again as"):
        bnext.from_convention("onnx", arrays | {"input_var": arrays["var"]})


def test_prefixes(rng):
    module = {f"module.{name}": a for name, a in values(rng, PYTORCH).items()}
    assert_same_bits(
        bnext.from_convention("torch-geometric", module).running_var, module["module.running_var"]
    )
    with pytest.raises(ValueError, match=r"got \['module.weight', .*prefix= reads one layer"):
        bnext.from_convention("pytorch", module)
    net = module | {f"other.{name}": a for name, a in values(rng, PYTORCH).items()}
    net |= {"fc.weight": np.ones((4, 4)), "momentum": 0.3}
    bn = bnext.from_convention("pytorch", net, prefix="other.")
    assert bn.momentum == 0.3
    assert_same_bits(bn.running_mean, net["other.running_mean"])
    with pytest.raises(ValueError, match=r"expected running_mean .*with the prefix 'fc\.'"):
        bnext.from_convention("pytorch", {"fc.weight": np.ones(3)}, prefix="fc.")
    given = bnext.to_convention(bn, "keras", prefix="model/bn/")
    assert set(given) == {f"model/bn/{n}" for n in KERAS} | {"momentum", "epsilon"}


MISSING = {  # eps, the weight of the old value, axis, and Bessel's correction, by default
    "paddle": (1e-5, 0.9, 1, False),
    "mindspore": (1e-5, 0.9, 1, True),
    "mxnet": (1e-5, 0.9, 1, False),
    "mxnet-symbol": (1e-3, 0.9, 1, False),
    "mlx": (1e-5, 0.9, -1, None),
    "haiku": (1e-5, None, -1, False),
    "sonnet": (1e-5, 0.999, -1, None),
    "equinox-batch": (1e-5, 0.99, 1, False),
    "equinox-ema": (1e-5, 0.99, 1, False),
    "chainer": (2e-5, 0.9, 1, True),
    "objax": (1e-6, 0.999, 1, False),
    "caffe": (1e-5, 0.999, 1, True),
}


@pytest.mark.parametrize("name", MISSING)
def test_conventions_that_were_missing(rng, name):
    eps, decay, axis, bessel = MISSING[name]
    record = CONVENTIONS[name]
    arrays = values(rng, record.names)
    for counter in record.counters:
        arrays[counter] = 5 if record.counts == "batches" else 0
    if record.factor:
        arrays[record.factor] = np.ones(1)
    if name == "mxnet-symbol":
        arrays[record.unit_weight_flag] = False
    options = {} if bessel is not None else {"bessel": True}
    if decay is None:
        options["decay"] = 0.5
    bn = bnext.from_convention(name, arrays, **options)
    assert (bn.eps, bn.channel_axis) == (eps, axis)
    assert bn.decay == pytest.approx(0.5 if decay is None else decay, rel=1e-12)
    assert bn.estimator.bessel == (True if bessel is None else bessel)
    assert_same_bits(bn.weight, arrays[record.names[0]])


def test_what_the_page_says_of_conventions():
    text = (DOCS / "guide" / "libraries.md").read_text(encoding="utf-8")
    assert f"(../conventions.md) has the table of {len(CONVENTIONS)}" in text
    section = " ".join(text.split())
    for fact in ("m2/n or m2/(n - 1)", "tf-keras", "where averages start", "MindSpore"):
        assert fact in section, fact


def test_the_variance_that_torch_stores_at_a_large_mean(torch, rng):
    """As the comparison says it: 65,536 rows, mean/std 1e4, one thread."""
    text = " ".join((DOCS / "explanation/comparison.md").read_text(encoding="utf-8").split())
    assert "stores about 9.3 for a variance of 1" in text
    x = rng.normal(1e4, 1, (65_536, C)).astype(np.float32)
    theirs, ours = torch.nn.BatchNorm1d(C, momentum=1.0), bnext.BatchNorm1d(C, momentum=1.0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        theirs(torch.from_numpy(x))
    finally:
        torch.set_num_threads(threads)
    ours(x)
    exact = x.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(ours.running_var, exact, rtol=1e-6)
    np.testing.assert_allclose(theirs.running_var.numpy(), 9.3, atol=1)
