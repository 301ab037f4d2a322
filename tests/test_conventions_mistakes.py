"""Wrong input of conversions, as users pass it: errors name the argument and what is expected."""

import math

import numpy as np
import pytest

import bnext

from .checkpoints import FEW, KERAS, PYTORCH

P = dict(zip(PYTORCH, (np.ones(FEW), np.zeros(FEW), np.zeros(FEW), np.ones(FEW)), strict=True))
K = dict(zip(KERAS, P.values(), strict=True))
LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("convention", "values", "options", "text"),
    [
        ("Keras", K, {}, "convention: expected one of 'pytorch', .*, got 'Keras'"),
        (P, "pytorch", {}, "convention: expected one of 'pytorch', .*, got {'weight'"),
        ("keras", [1, 2], {}, "values: expected a mapping of names, got list"),
        ("keras", bnext.BatchNorm1d(3), {}, "values: expected a mapping .*, got BatchNorm1d"),
        ("keras", {}, {}, r"values: expected moving_mean and moving_variance, got \[\]"),
        ("keras", K | {"eps": 1}, {}, r"values: expected names .*'epsilon', .* got \['eps'\]"),
        ("pytorch", P | {"weight": None}, {}, "weight: expected an array of real .*, got None"),
        ("pytorch", P | {"bias": "abc"}, {}, "bias: expected an array of real numbers, got <U3"),
        ("pytorch", P | {"bias": [[1], [2, 3]]}, {}, "bias: expected .*, got unequal lists"),
        ("pytorch", P | {"bias": np.ones(3, complex)}, {}, "bias: expected .*, got complex128"),
        ("pytorch", P | {"bias": np.ma.ones(3)}, {}, "bias: expected an array without a mask"),
        ("pytorch", P | {"running_var": 1.0}, {}, r"running_var: expected shape \(3,\), got \(\)"),
        ("pytorch", P | {"running_mean": np.ones((2, 3))}, {},
         r"running_mean: expected shape \(C,\), or C and axes of size 1, got \(2, 3\)"),
        ("pytorch", P | {"num_batches_tracked": -1}, {}, "num_batches_tracked: .*from 0 to"),
        ("pytorch", P | {"num_batches_tracked": 2.5}, {}, "num_batches_tracked: .*got 2.5"),
        ("pytorch", P | {"num_batches_tracked": None}, {}, "num_batches_tracked: .*got NoneType"),
        ("keras", K | {"momentum": "a"}, {}, "momentum: expected a number, got str"),
        ("keras", K | {"momentum": math.nan}, {}, "momentum: expected a finite number, got nan"),
        ("keras", K | {"momentum": None}, {}, r"momentum: .* got None \(or pass decay=\)"),
        ("keras", K | {"momentum": np.ones(3)}, {}, r"momentum: .*got an array of \(3,\)"),
        ("keras", K | {"epsilon": np.ones(3)}, {}, r"epsilon: .*got an array of \(3,\)"),
        ("keras", K | {"epsilon": "a"}, {}, "epsilon: expected a number, got str"),
        ("keras", K, {"eps": "a"}, "eps: expected a number, got str"),
        ("keras", K, {"eps": -1}, "eps: expected a finite number >= 0, got -1"),
        ("keras", K, {"eps": True}, "eps: expected a number, got bool"),
        ("keras", K, {"decay": "a"}, "decay: expected a number, got str"),
        ("keras", K, {"decay": math.nan}, "decay: expected a finite number, got nan"),
        ("keras", K, {"channel_axis": "last"}, "channel_axis: expected an integer, got str"),
        ("keras", K, {"count": "8"}, "count: expected an integer >= 0, got '8'"),
        ("keras", K, {"count": True}, "count: expected an integer >= 0, got True"),
        ("keras", K, {"count": 0}, "count: expected at least 2 values per channel, got 0"),
        ("keras", K, {"count": 4, "steps": -math.inf}, "steps: expected an integer >= 0, got -inf"),
        ("keras", K, {"count": 4, "steps": "inf"}, "steps: expected an integer >= 0, got 'inf'"),
        ("keras", K, {"count": 4, "steps": 10**30}, f"steps: expected at most {LARGEST}, or math"),
        ("tf-keras", K, {"bessel": "yes"}, "bessel: expected True or False, got str"),
        ("keras", K, {"train_as": "torch"}, "train_as: expected 'pytorch' or None, got 'torch'"),
        ("pytorch", P, {"prefix": None}, "prefix: expected a str, got NoneType"),
        ("pytorch", {"bn.running_mean": 0}, {"prefix": "bn"},
         "values: .*; the prefix goes up to the name itself: 'bn.'"),
        ("pytorch", {"bn.running_mean": 0}, {"prefix": "b."},
         "values: expected running_mean and running_var with the prefix 'b.', got"),
    ],
)  # fmt: skip
def test_from_convention(convention, values, options, text):
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        bnext.from_convention(convention, values, **options)


@pytest.mark.parametrize(
    ("bn", "convention", "options", "text"),
    [
        ("keras", bnext.BatchNorm1d(3), {}, "convention: expected one of .*, got BatchNorm1d"),
        (None, "keras", {}, "bn: expected a layer or a state dict, got NoneType"),
        (K, "pytorch", {}, r"bn: in a state dict of PyTorch's kind \(others are from_conv.*weight"),
        (P, "keras", {"prefix": 3}, "prefix: expected a str, got int"),
        (P, "objax", {"ndim": "4"}, "ndim: expected an integer >= 2, got '4'"),
        (P, "objax", {"ndim": 1}, "ndim: expected an integer >= 2, got 1"),
        (P, "objax", {"ndim": 99}, "ndim: expected at most 32 axes, got 99"),
        (bnext.BatchNorm(3, channel_axis=3), "objax", {"ndim": 3},
         "ndim: expected the axes of an input with channels at axis 3, got 3"),
    ],
)  # fmt: skip
def test_to_convention(bn, convention, options, text):
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        bnext.to_convention(bn, convention, **options)


@pytest.mark.parametrize(
    ("names", "prefix", "text"),
    [
        (None, "", "names: expected names of arrays, or a mapping by them, got NoneType"),
        ("weight", "", "names: expected names of arrays, or a mapping by them, got str"),
        (PYTORCH, 3, "prefix: expected a str, got int"),
    ],
)
def test_guess_convention(names, prefix, text):
    with pytest.raises(TypeError, match=f"^{text}"):
        bnext.guess_convention(names, prefix=prefix)


@pytest.mark.parametrize(
    ("path", "options", "text"),
    [
        (None, {}, "path: expected a str or a path, got NoneType"),
        (P, {}, r"path: expected a str or a path, got dict \(from_convention takes arrays\)"),
        ("a.npz", {"prefix": 3}, "prefix: expected a str, got int"),
        ("a.npz", {"convention": "npz"}, "convention: expected one of .*, got 'npz'"),
        ("a.npz", {"format": 3}, "format: expected one of 'npz', .*, got 3"),
        ("a.npz", {}, "convention: expected one of .* got None"),
        ("a.npz", {"convention": "pytorch", "prefix": "x"}, ".*by the names of PyTorch with the"),
        ("a.npz", {"convention": "pytorch", "decay": "x"}, "the layer: decay: expected a number"),
        ("a.npy", {}, "format: expected one of .*, got the suffix '.npy'"),
        ("o.npz", {}, ".*expected an .npz file of plain arrays, got Object arrays"),
        ("junk.params", {}, ".*expected a .params file of MXNet, got another"),
        ("junk.pdparams", {}, ".*expected a pickle of arrays and containers alone, got"),
        ("junk.keras", {}, ".*expected a .keras file, got"),
    ],
)
def test_load_statistics(tmp_path, monkeypatch, path, options, text):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **P)
    np.savez("o.npz", a=np.array([1, None], object))
    np.save("a.npy", np.ones(3))
    for suffix in ("params", "pdparams", "keras"):
        (tmp_path / f"junk.{suffix}").write_bytes(b"junk" * 20)
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        bnext.load_statistics(path, **options)


@pytest.mark.torch
@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_files_that_torch_did_not_write(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"expected (a state dict that torch\.load|statistics by)"):
        bnext.load_statistics(tmp_path / "a.pt")
