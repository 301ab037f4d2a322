"""Every error of the four functions and the runtime, by its whole text; none changes anything."""

import numpy as np
import pytest

import bnext

from .conftest import needs_openmp
from .snapshots import raises_exactly

F4, F8 = np.float32, np.float64


def world():
    """Fresh, valid arguments of every function; a test replaces one of them."""
    rng = np.random.default_rng(5)
    x, dy = rng.normal(size=(2, 4, 3, 2)).astype(F4)
    _, saved = bnext.batch_norm_forward(x)
    return {
        "x": x, "dy": dy, "saved": saved, "out": np.full(x.shape, 7, F4),
        "weight": np.ones(3, F4), "bias": np.zeros(3, F4),
        "mean": np.zeros(3, F4), "var": np.ones(3, F4),
    }  # fmt: skip


CALLS = {
    "forward": (bnext.batch_norm_forward, ("x", "weight", "bias", "out")),
    "backward": (bnext.batch_norm_backward, ("dy", "x", "saved", "weight", "out")),
    "normalize": (bnext.normalize, ("x", "mean", "var", "weight", "bias", "out")),
    "moments": (bnext.moments, ("x",)),
}


def assert_raises(operation, kind, text, arguments):
    """`operation` on the arguments it takes raises `kind` with `text` and changes no array."""
    function, names = CALLS[operation]
    options = {name: arguments[name] for name in ("eps", "channel_axis") if name in arguments}
    given = {name: arguments[name] for name in names}
    with raises_exactly(kind, text, {k: v for k, v in given.items() if k != "saved"}):
        function(**given, **options)


def read_only(shape):
    array = np.zeros(shape, F4)
    array.flags.writeable = False
    return array


def masked(array):
    return np.ma.MaskedArray(array, mask=False)


# (operations, argument, its value made from the valid arguments, exception, text)
REPLACED = [
    # dtypes
    ("forward normalize moments", "x", lambda w: w["x"].astype(np.int64), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got int64"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(np.float16).view(np.int16),
     TypeError, "x: expected dtype float16, bfloat16, float32 or float64, got int16"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(">f2"), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got >f2"),
    ("forward normalize", "x", lambda w: w["x"].astype(np.float16), TypeError,
     "out: expected dtype float16, got float32"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(np.complex128), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got complex128"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(bool), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got bool"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(object), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got object"),
    ("forward normalize moments", "x", lambda w: w["x"].astype(">f4"), TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got >f4"),
    ("forward normalize moments", "x", lambda w: "abc", TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got <U3"),
    ("forward normalize moments", "x", lambda w: None, TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got object"),
    ("forward normalize moments", "x", lambda w: masked(w["x"]), TypeError,
     "x: expected an array without a mask, got a MaskedArray (x.filled(value) has none)"),
    ("forward normalize moments", "x", lambda w: list(masked(w["x"])), TypeError,
     "x: expected an array without a mask, got a MaskedArray (x.filled(value) has none)"),
    ("forward normalize backward", "weight", lambda w: masked(w["weight"]), TypeError,
     "weight: expected an array without a mask, got a MaskedArray (weight.filled(value) has none)"),
    ("normalize", "var", lambda w: masked(w["var"]), TypeError,
     "var: expected an array without a mask, got a MaskedArray (var.filled(value) has none)"),
    ("forward normalize backward", "out", lambda w: masked(w["out"]), TypeError,
     "out: expected an array without a mask, got a MaskedArray (out.filled(value) has none)"),
    ("forward normalize", "eps", lambda w: np.complex128(1), TypeError,
     "eps: expected a real number, got numpy.complex128"),
    ("backward", "dy", lambda w: w["dy"].astype(F8), TypeError,
     "dy: expected dtype float32, got float64"),
    ("backward", "dy", lambda w: masked(w["dy"]), TypeError,
     "dy: expected an array without a mask, got a MaskedArray (dy.filled(value) has none)"),
    ("forward normalize backward", "weight", lambda w: np.ones(3, F8), TypeError,
     "weight: expected dtype float32, got float64"),
    ("forward normalize", "bias", lambda w: np.ones(3, np.int32), TypeError,
     "bias: expected dtype float32, got int32"),
    ("normalize", "mean", lambda w: np.ones(3, np.int64), TypeError,
     "mean: expected dtype float32 or float64, got int64"),
    ("normalize", "var", lambda w: np.ones(3, np.float16), TypeError,
     "var: expected dtype float32 or float64, got float16"),
    ("forward normalize backward", "out", lambda w: np.empty((4, 3, 2), F8), TypeError,
     "out: expected dtype float32, got float64"),
    ("forward normalize backward", "out", lambda w: [1.0], TypeError,
     "out: expected a numpy array, got list"),
    # shapes
    ("forward moments", "x", lambda w: np.float32(3), ValueError,
     "x: expected at least 1 dimension, got 0"),
    ("forward normalize backward", "weight", lambda w: np.ones(4, F4), ValueError,
     "weight: expected shape (3,), got (4,)"),
    ("forward normalize backward", "weight", lambda w: np.ones((3, 1), F4), ValueError,
     "weight: expected shape (3,), got (3, 1)"),
    ("forward normalize backward", "weight", lambda w: np.float32(1), ValueError,
     "weight: expected shape (3,), got ()"),
    ("forward normalize", "bias", lambda w: np.ones(0, F4), ValueError,
     "bias: expected shape (3,), got (0,)"),
    ("normalize", "mean", lambda w: np.ones(2, F4), ValueError,
     "mean: expected shape (3,), got (2,) (axis -1 of x has 2: channel_axis=-1)"),
    ("normalize", "var", lambda w: np.ones(2, F8), ValueError,
     "var: expected shape (3,), got (2,) (axis -1 of x has 2: channel_axis=-1)"),
    ("normalize", "mean", lambda w: None, TypeError,
     "mean: expected an array of shape (3,), got None"),
    ("normalize", "var", lambda w: None, TypeError,
     "var: expected an array of shape (3,), got None"),
    ("forward normalize backward", "out", lambda w: np.empty((3, 4, 2), F4), ValueError,
     "out: expected shape (4, 3, 2), got (3, 4, 2)"),
    ("backward", "dy", lambda w: w["dy"][:3], ValueError,
     "dy: expected shape (4, 3, 2), got (3, 3, 2)"),
    ("backward", "dy", lambda w: w["dy"][..., None], ValueError,
     "dy: expected shape (4, 3, 2), got (4, 3, 2, 1)"),
    # memory of the output
    ("forward normalize backward", "out", lambda w: read_only((4, 3, 2)), ValueError,
     "out: expected a writeable array, got a read-only one"),
    ("backward", "out", lambda w: w["x"], ValueError,
     "out: expected memory of its own, got an array that overlaps x"),
    ("forward normalize backward", "out", lambda w: w["x"][::-1], ValueError,
     "out: expected memory of its own, got an array that overlaps x"),
    ("backward", "out", lambda w: w["dy"][::-1], ValueError,
     "out: expected memory of its own, got an array that overlaps dy"),
    ("forward normalize backward", "out",
     lambda w: np.lib.stride_tricks.as_strided(np.zeros(4, F4), (4, 3, 2), (4, 0, 0)), ValueError,
     "out: expected memory of its own, got an array that overlaps itself"),
    ("forward normalize backward", "out",
     lambda w: np.lib.stride_tricks.as_strided(np.zeros(24, F4), (4, 3, 2), (12, 4, 4)), ValueError,
     "out: expected memory of its own, got an array that overlaps itself"),
    # options
    ("forward normalize moments", "channel_axis", lambda w: 3, ValueError,
     "channel_axis: expected an axis of a 3-dimensional array (-3 to 2), got 3"),
    ("forward normalize moments", "channel_axis", lambda w: -4, ValueError,
     "channel_axis: expected an axis of a 3-dimensional array (-3 to 2), got -4"),
    ("forward normalize moments", "channel_axis", lambda w: 1.0, TypeError,
     "channel_axis: expected an integer, got float"),
    ("forward normalize moments", "channel_axis", lambda w: None, TypeError,
     "channel_axis: expected an integer, got NoneType"),
    ("forward normalize", "eps", lambda w: -1.0, ValueError,
     "eps: expected a finite number >= 0, got -1.0"),
    ("forward normalize", "eps", lambda w: float("nan"), ValueError,
     "eps: expected a finite number >= 0, got nan"),
    ("forward normalize", "eps", lambda w: float("inf"), ValueError,
     "eps: expected a finite number >= 0, got inf"),
    ("forward normalize", "eps", lambda w: "small", TypeError,
     "eps: expected a real number, got str"),
    ("forward normalize", "eps", lambda w: None, TypeError,
     "eps: expected a real number, got NoneType"),
    # what backward is handed
    ("backward", "saved", lambda w: None, TypeError,
     "saved: expected what batch_norm_forward returned, got NoneType"),
    ("backward", "saved", lambda w: (w["x"], 1), TypeError,
     "saved: expected what batch_norm_forward returned, got tuple"),
    ("backward", "saved", lambda w: bnext.batch_norm_forward(w["x"][:3])[1], ValueError,
     "saved: made from an input of shape (3, 3, 2), got x of shape (4, 3, 2)"),
    ("backward", "saved", lambda w: bnext.batch_norm_forward(w["x"].astype(F8))[1], ValueError,
     "saved: made from a float64 input, got x of float32"),
    ("backward", "saved", lambda w: bnext.batch_norm_forward(w["x"] + 1)[1], ValueError,
     "saved: made from another x, or x was changed since (their elements differ)"),
]  # fmt: skip

CASES = [
    pytest.param(operation, *rest, id=f"{operation}-{rest[0]}-{number}")
    for number, (operations, *rest) in enumerate(REPLACED)
    for operation in operations.split()
]


@pytest.mark.parametrize(("operation", "argument", "value", "kind", "text"), CASES)
def test_wrong_argument(operation, argument, value, kind, text):
    arguments = world()
    arguments[argument] = value(arguments)
    assert_raises(operation, kind, text, arguments)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_output_that_overlaps_a_parameter(name):
    arguments = world()
    memory = np.ones(4 * 3 * 2, F4)
    arguments |= {name: memory[5:8], "out": memory.reshape(4, 3, 2)}
    text = f"out: expected memory of its own, got an array that overlaps {name}"
    assert_raises("forward", ValueError, text, arguments)


@pytest.mark.parametrize("name", ["mean", "var", "weight", "bias"])
def test_inference_output_that_overlaps_a_parameter(name):
    arguments = world()
    memory = np.ones(4 * 3 * 2, F4)
    arguments |= {name: memory[-3:], "out": memory.reshape(4, 3, 2)}
    text = f"out: expected memory of its own, got an array that overlaps {name}"
    assert_raises("normalize", ValueError, text, arguments)


def test_interleaved_but_separate_memory_is_no_overlap():
    memory = np.zeros((4, 3, 4), F4)
    x, out = memory[..., ::2], memory[..., 1::2]
    x[...] = np.random.default_rng(1).normal(size=x.shape)
    expected, _ = bnext.batch_norm_forward(x.copy())
    y, _ = bnext.batch_norm_forward(x, out=out)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(1, 20), (1, 3, 1, 1), (1, 5, 1)], ids=str)
def test_one_value_per_channel(shape):
    x = np.ones(shape, F4)
    things = {"x": x, "out": np.full(shape, 7, F4)}
    text = f"Expected more than 1 value per channel when training, got input size {shape}"
    with raises_exactly(ValueError, text, things):
        bnext.batch_norm_forward(x, out=things["out"])


def test_one_changed_element_of_a_small_x_is_noticed():
    """Larger ones are looked at in some places; eight values are all looked at."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 2)).astype(F4)
    _, saved = bnext.batch_norm_forward(x)
    text = "saved: made from another x, or x was changed since (their elements differ)"
    for place in np.ndindex(x.shape):
        changed = x.copy()
        changed[place] += 1
        with raises_exactly(ValueError, text, {"x": changed}):
            bnext.batch_norm_backward(x, changed, saved)


@pytest.mark.parametrize("rows", [5, 6, 7, 50])
def test_the_last_element_of_x_is_looked_at(rows):
    x = np.random.default_rng(4).normal(size=(rows, 2)).astype(F4)
    _, saved = bnext.batch_norm_forward(x)
    x[-1, -1] += 1
    with pytest.raises(ValueError, match="saved: made from another x"):
        bnext.batch_norm_backward(x, x, saved)


def test_keyword_only_arguments():
    x = np.ones((4, 3), F4)
    for call in (
        lambda: bnext.batch_norm_forward(x, None, None, 1e-5),
        lambda: bnext.batch_norm_backward(x, x, None, None, x),
        lambda: bnext.moments(x, 1),
        lambda: bnext.normalize(x, x[0], x[0], None, None, 1e-5),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, ">= 1"), (-1, ">= 1"), (65537, "from 1 to 65536"), (2**80, "from 1 to 65536")],
)
def test_number_of_threads(number, expected):
    with raises_exactly(
        ValueError, f"n: expected an integer {expected}, got {number}",
        lambda: {"threads": bnext.get_num_threads()},
    ):  # fmt: skip
        bnext.set_num_threads(number)


@pytest.mark.parametrize("number", [1.5, "2", None])
def test_number_of_threads_is_an_integer(number):
    before = bnext.get_num_threads()
    with pytest.raises(TypeError):
        bnext.set_num_threads(number)
    assert bnext.get_num_threads() == before


@needs_openmp
@pytest.mark.usefixtures("restore_threads")
def test_number_of_threads_is_kept():
    for number in (1, 5, 2):
        bnext.set_num_threads(number)
        assert bnext.get_num_threads() == number
        assert bnext.show_config(mode="dicts")["threads"]["number"] == number


@pytest.mark.parametrize("name", ["parallel", "", "Serial"])
def test_unknown_schedules_are_refused(name):
    with pytest.raises(ValueError, match="serial"):
        bnext._core.force_schedule(name)
