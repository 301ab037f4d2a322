"""Facts of single libraries, what conventions refuse, and the page that is made of them."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

import bnext
from benchmarks.conventions import page
from bnext.inference.conventions import table
from bnext.inference.conventions.behaviour import BEHAVIOUR
from bnext.inference.conventions.libraries import CONVENTIONS

from .checkpoints import FEW as C
from .checkpoints import KERAS, PYTORCH, trained, values
from .compare import assert_same_bits
from .optional import NotHere

# --- other facts of single libraries --------------------------------------------------------------


def test_nested_trees(rng):
    arrays = values(rng, ("scale", "offset", "mean", "var"))
    tree = {
        "batch_norm": {"scale": arrays["scale"], "offset": arrays["offset"]},
    }
    for name in ("mean", "var"):
        ema = {"average": arrays[name], "hidden": arrays[name] * 0.1, "counter": 1}
        tree[f"batch_norm/~/{name}_ema"] = ema
    bn = bnext.from_convention("haiku", tree, prefix="batch_norm/", decay=0.9)
    assert_same_bits(bn.running_var, arrays["var"])
    assert bn.num_batches_tracked == 1
    assert bn.estimator == bnext.DebiasedExponential(decay=0.9, bessel=False)
    with pytest.raises(ValueError, match=r"^decay_rate: expected the decay by which .* got 0.8"):
        bnext.from_convention("haiku", tree, prefix="batch_norm/", decay=0.8)
    with pytest.raises(
        ValueError, match=r"^decay_rate: expected a number, as haiku has no default"
    ):
        bnext.from_convention("haiku", tree, prefix="batch_norm/")
    tree["batch_norm/~/var_ema"]["counter"] = 2
    with pytest.raises(ValueError, match=r"expected the same count as mean_ema/counter"):
        bnext.from_convention("haiku", tree, prefix="batch_norm/", decay=0.9)


def test_gamma_is_1_by_fix_gamma(rng):
    arrays = values(rng, CONVENTIONS["mxnet"].names)
    assert_same_bits(bnext.from_convention("mxnet", arrays).weight, arrays["gamma"])
    fixed = bnext.from_convention("mxnet", arrays | {"fix_gamma": True})
    np.testing.assert_array_equal(fixed.weight, 1)
    symbol = {"arg:gamma": arrays["gamma"], "aux:moving_mean": arrays["running_mean"],
              "aux:moving_var": arrays["running_var"]}  # fmt: skip
    with pytest.raises(ValueError, match=r"^fix_gamma: expected True .* or False"):
        bnext.from_convention("mxnet-symbol", symbol)
    bn = bnext.from_convention("mxnet-symbol", symbol | {"fix_gamma": False})
    assert_same_bits(bn.weight, arrays["gamma"])
    assert not bnext.to_convention(bn, "mxnet-symbol")["fix_gamma"]


def test_caffe_sums(rng):
    mean, var = rng.normal(size=C), rng.uniform(1, 2, C)
    arrays = {"mean": mean * 1000, "variance": var * 1000, "scale_factor": np.array([1000.0])}
    bn = bnext.from_convention("caffe", arrays)
    np.testing.assert_allclose(bn.running_var, var, rtol=1e-12)
    nothing = {"mean": np.zeros(C), "variance": np.zeros(C), "scale_factor": np.zeros(1)}
    bn = bnext.from_convention("caffe", nothing)
    assert (bn.num_batches_tracked, bn.running_var.max()) == (0, 0)
    with pytest.raises(ValueError, match=r"^values: expected scale_factor"):
        bnext.from_convention("caffe", {"mean": mean, "variance": var})
    with pytest.raises(ValueError, match=r"^scale_factor: expected one number >= 0"):
        bnext.from_convention("caffe", arrays | {"scale_factor": np.array([-1.0])})


def test_ncnn_s_least_deviation(rng):
    arrays = values(rng, CONVENTIONS["ncnn"].names)
    arrays["variance"][1] = 0.0
    bn = bnext.from_convention("ncnn", arrays).eval()
    x = rng.normal(size=(4, C))
    std = np.sqrt(arrays["variance"])
    std[1] = 1e-4
    expected = (x - arrays["mean"]) / std * arrays["slope"] + arrays["bias"]
    np.testing.assert_allclose(bn(x), expected, rtol=1e-9)


def test_libraries_that_only_infer(rng):
    bn = trained(rng)
    for name in ("ncnn", "coreml", "openvino"):
        with pytest.raises(ValueError, match=r"^count, steps: expected None, as"):
            bnext.to_convention(bn, name, count=4)
        given = bnext.to_convention(bn, name)
        with pytest.raises(ValueError, match=r"^count: expected None, as .* that trained them"):
            bnext.from_convention(name, given, count=4)
        assert_same_bits(bnext.from_convention(name, given).running_var, bn.running_var)
    with pytest.raises(ValueError, match=r"^eps: expected a number, which Core ML does not imply"):
        bnext.from_convention("coreml", values(rng, CONVENTIONS["coreml"].names))
    given = bnext.to_convention(bn, "litert")
    x = rng.normal(size=(4, C))
    np.testing.assert_allclose(x * given["mul"] + given["add"], bn.eval()(x), rtol=1e-12)
    with pytest.raises(ValueError, match=r"expected one with statistics, got 'litert'"):
        bnext.from_convention("litert", given)


def test_core_ml_from_a_cumulative_average(rng):
    bn = trained(rng, momentum=None)
    assert_same_bits(bnext.to_convention(bn, "coreml")["variance"], bn.running_var)
    with pytest.raises(ValueError, match=r"^bn: expected an exponential average"):
        bnext.to_convention(bn, "haiku")


# --- training on ----------------------------------------------------------------------------------


def test_training_on_as_pytorch(rng):
    arrays = values(rng, KERAS) | {"momentum": 0.8}
    theirs = bnext.from_convention("keras", arrays)
    assert theirs.estimator == bnext.Exponential(decay=0.8, bessel=False)
    ours = bnext.from_convention("keras", arrays, count=16, steps=40)
    assert ours.estimator == bnext.Exponential(decay=0.8)
    assert ours.num_batches_tracked == 40
    with pytest.raises(ValueError, match=r"^count: expected the number of values per channel"):
        bnext.from_convention("keras", arrays, steps=40, train_as="pytorch")
    sonnet = values(rng, CONVENTIONS["sonnet"].names)
    bn = bnext.from_convention(
        "sonnet", sonnet, bessel=True, decay=0.9, steps=4, train_as="pytorch"
    )
    share = 0.9**4  # which PyTorch's average still has of the initial values
    average = sonnet["moving_variance/average"]
    np.testing.assert_allclose(bn.running_var, share + (1 - share) * average, rtol=1e-12)
    np.testing.assert_allclose(
        bn.running_mean, (1 - share) * sonnet["moving_mean/average"], rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"^train_as: expected 'pytorch' or None, got 'keras'"):
        bnext.from_convention("keras", arrays, train_as="keras")


def test_layers_of_torch_and_state_dicts(torch, rng):
    theirs = torch.nn.BatchNorm1d(C, momentum=0.25, eps=1e-4)
    for _ in range(3):
        theirs(torch.from_numpy(rng.normal(1, 3, (6, C)).astype(np.float32)))
    given = bnext.to_convention(theirs, "keras", count=6)
    state = {**theirs.state_dict(), "momentum": 0.25, "eps": 1e-4}
    again = bnext.to_convention(state, "keras", count=6)
    assert given.keys() == again.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(given[name], value)
    assert (given["momentum"], given["epsilon"]) == (0.75, 1e-4)
    with pytest.raises(TypeError, match=r"^bn: expected a layer or a state dict, got Linear"):
        bnext.to_convention(torch.nn.Linear(2, 2), "keras")


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"count": [4, 8]}, TypeError, "count: expected one integer, .* unequal sizes have no"),
        ({"count": 2.5}, TypeError, "count: expected an integer"),
        ({"count": 1}, ValueError, "count: expected at least 2 values per channel, got 1"),
        ({"count": 8, "steps": -1}, ValueError, "steps: expected an integer >= 0, got -1"),
        ({"count": 8, "steps": math.nan}, TypeError, "steps: expected an integer >= 0, got nan"),
        ({"steps": 1}, ValueError, "count: expected the number of values per channel of the bat"),
        ({"count": 8, "bessel": 1}, TypeError, "bessel: expected True or False, got int"),
    ],
)  # fmt: skip
def test_wrong_numbers(rng, options, kind, text):
    with pytest.raises(kind, match=f"^{text}"):
        bnext.to_convention(trained(rng), "keras", **options)


def test_steps_that_the_variance_contradicts(rng):
    arrays = {"moving_mean": np.zeros(2), "moving_variance": np.array([2.0, 0.5])}
    with pytest.raises(
        ValueError, match=r"^steps: .* after 10, the initial 1 contributes 0\.904.*el 1"
    ):
        bnext.from_convention("keras", arrays, count=8, steps=10)
    bnext.from_convention("keras", arrays, count=8, steps=100)


def test_averages_without_a_start_need_the_number_of_batches(rng):
    arrays = {"mean_ema/average": np.zeros(2), "var_ema/average": np.ones(2)}
    with pytest.raises(ValueError, match=r"^steps: expected the number of batches .*math\.inf"):
        bnext.from_convention("haiku", arrays, decay=0.9)
    bn = bnext.from_convention("haiku", arrays, decay=0.9, steps=math.inf)
    assert bn.estimator == bnext.Exponential(decay=0.9, bessel=False)
    loaded = bnext.from_convention("keras", values(rng, KERAS))
    with pytest.raises(ValueError, match=r"^steps: .* which Haiku stores"):
        bnext.to_convention(loaded, "haiku")
    with pytest.raises(ValueError, match=r"^steps: expected the number of batches, which Equinox"):
        bnext.from_convention("equinox-batch", {"mean": np.zeros(2), "var": np.ones(2)})


def test_estimators_of_a_user(rng):
    class Own(bnext.Exponential):
        pass

    with pytest.raises(ValueError, match=r"^bn: expected an estimator among .*, got Own"):
        bnext.to_convention(bnext.BatchNorm1d(C, estimator=Own()), "keras")


# --- guessing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([*PYTORCH, "num_batches_tracked"], ["pytorch", "torch-geometric", "thunder", "tinygrad"]),
        (PYTORCH, ["pytorch", "torch-geometric", "thunder", "tinygrad", "e3nn", "jittor", "mlx"]),
        (("weight", "bias", "_mean", "_variance"), ["paddle"]),
        (("scale", "bias", "mean", "var"), ["flax"]),
        ({"params": {"scale": 0}, "batch_stats": {"mean": 0, "var": 0}}, ["flax"]),
        (("weight", "mean", "var", "counter"), ["equinox-batch"]),
        (("gamma", "beta", "mean", "variance"), ["mindspore", "coreml", "openvino"]),
        (("gamma", "beta", "mean", "variance", "scale_factor"), ["caffe"]),
        (("slope", "bias", "mean", "variance"), ["ncnn"]),
        (("avg_mean", "avg_var", "N"), ["chainer"]),
        (("mul", "add"), ["litert"]),
        (("kernel",), []),
        ((), []),
    ],
)  # fmt: skip
def test_guesses(names, expected):
    assert bnext.guess_convention(names) == expected
    if expected and not isinstance(names, dict):
        assert bnext.guess_convention([f"a.b.{name}" for name in names], prefix="a.b.") == expected
        assert bnext.guess_convention([f"a.b.{name}" for name in names], prefix="a.c.") == []


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_is_among_the_guesses_of_what_it_writes(rng, name):
    given = bnext.to_convention(trained(rng), name)
    arrays = {n: a for n, a in given.items() if n not in CONVENTIONS[name].hyperparameters()}
    assert name in bnext.guess_convention(arrays)


# --- the records and their page -------------------------------------------------------------------


def test_records_are_consistent():
    assert len(CONVENTIONS) >= 25
    for name, record in CONVENTIONS.items():
        names = [*filter(None, record.names), *record.optional_names()]
        known = set(names)
        assert len(names) == len(known), name
        assert set(record.aliases.values()) <= known, name
        assert (record.bessel is None) == bool(record.bessel_depends) or record.start is None, name
        assert not (known & record.hyperparameters()), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.eps = 1
    trains = {name for name, record in CONVENTIONS.items() if record.start and record.releases}
    assert trains - set(BEHAVIOUR) == {"mxnet-symbol"}  # as mxnet
    assert set(BEHAVIOUR) < set(CONVENTIONS)


def test_the_page_is_what_the_records_say():
    path = pathlib.Path(__file__).parents[1] / "docs" / "conventions.md"
    if not page.RESULTS.is_dir():
        raise NotHere("benchmarks/results", "git clone")  # as in a source distribution
    assert path.read_text(encoding="utf-8") == page.page(), (
        "python -m benchmarks.conventions.page > docs/conventions.md"
    )


def test_what_the_page_takes_from_the_comparison():
    text = """\
Conventions: 2026-11-30 10:20 UTC, commit c, bnext 0.1.0

library  variant   rank      own    bnext  float32  to, 1    to, 5  to, 300     back       on  y, ulp  file
One      default      2  3.0e-07  1.4e-07  5.0e-05      0  2.0e-07  3.0e-07  3.0e-07  3.0e-07     1.0   .pt  ok
One      float64      4        -        -        -      -        -        -        -        -  2000.5     -  ok; old
Two      default      2  2.0e-06  1.0e-07  1.0e-07      0  1.0e-07  2.0e-06        -        -       -     -  ok; own rounding beyond 1e-06

Not compared:
three: no wheel

Versions:
"""  # noqa: E501
    made = page.measured(text)
    assert "(2026-11-30 10:20 UTC, `benchmarks/results/" in made
    assert "within 10^-6 of it, too, but for One (5.0e-05), whose\n" in made
    assert "| One | 3.0e-07 | 1.4e-07 | 3.0e-07 | 1.0; old | `.pt` |\n" in made
    assert "| Two | 2.0e-06 | 1.0e-07 | 2.0e-06, its rounding | - | - |\n" in made
    assert made.endswith("\nNot compared:\n\n- three: no wheel\n")


def test_the_code_of_the_page_runs():
    code = table.page().partition("```python\n")[2].partition("```")[0]
    scope = {}
    exec(code, scope)
    assert scope["same"].estimator == bnext.Exponential(decay=0.9, bessel=False)
