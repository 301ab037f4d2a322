"""``python -m bnext convert``."""

import numpy as np
import pytest

import bnext
from bnext.__main__ import main
from bnext.inference.conventions.libraries import CONVENTIONS

from .command_lines import refusal_of, status_of
from .compare import assert_same_bits

PYTORCH = ("weight", "bias", "running_mean", "running_var")
SIZE, STEPS = 6, 4


def run(*words):
    return status_of(main, ["convert", *words])


@pytest.fixture
def layer(rng):
    bn = bnext.BatchNorm1d(3, decay=0.99, eps=1e-3)
    for _ in range(STEPS):
        bn(rng.normal(1, 2, (SIZE, 3)).astype(np.float32))
    bn.weight[...] = rng.normal(size=3)
    return bn


@pytest.fixture
def checkpoint(layer, tmp_path):
    """Two layers of PyTorch's, with something else beside them."""
    path = tmp_path / "net.npz"
    state = {f"body.{n}.{name}": a for n in (0, 1) for name, a in layer.state_dict().items()}
    np.savez(path, **state, **{"fc.weight": np.ones((2, 2))})
    return path


def test_shows_and_writes_nothing(checkpoint, tmp_path, capsys):
    assert run(checkpoint, "--to", "keras", "--eps", "0.001", "--decay", "0.99") == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[1] == str(checkpoint)
    assert lines[2].split() == [
        "layer", "channels", "from", "eps", "decay", "variance", "batches", "variance", "changes",
        "by", "momentum",
    ]  # fmt: skip
    for n in (0, 1):
        row = lines[3 + n].split()
        assert row == [
            f"body.{n}",
            "3",
            "pytorch",
            "0.001",
            "0.99",
            "m2/(n-1)",
            "4",
            "nothing",
            "0.99",
        ]
    assert "Keras 3 infers as the source does" in output.out
    assert output.out.endswith(
        "Nothing was written: --write FILE writes the arrays (.npz, .safetensors).\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_writes_what_to_convention_gives(layer, checkpoint, tmp_path, suffix, capsys):
    out = tmp_path / f"keras{suffix}"
    words = ["--to", "keras", "--decay", 0.99, "--eps", 0.001, "--count", SIZE]
    assert run(checkpoint, *words, "--write", out) == 0
    output = capsys.readouterr().out
    assert "Statistics become what Keras 3 would have stored after the same batches." in output
    assert f"Written: {out} (8 arrays)" in output
    assert "%" in output
    given = bnext.to_convention(layer, "keras", count=SIZE)
    layers = bnext.load_statistics(out, "keras", eps=0.001)
    assert list(layers) == ["body/0", "body/1"]
    for bn in layers.values():
        for ours, name in zip(PYTORCH, CONVENTIONS["keras"].names, strict=True):
            assert_same_bits(getattr(bn, ours), given[name], name)

    # And back, with what the other file does not say.
    back = tmp_path / f"back{suffix}"
    assert run(out, "--from", "keras", "--count", SIZE, "--steps", STEPS, "--write", back) == 0
    for bn in bnext.load_statistics(back, "pytorch").values():
        np.testing.assert_allclose(bn.running_var, layer.running_var, rtol=1e-6)
        assert bn.num_batches_tracked == STEPS


def test_nothing_is_overwritten_without_being_asked(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.npz"
    out.write_bytes(b"mine")
    assert run(checkpoint, "--write", out) == 2
    assert "--write: expected a new file" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert run(checkpoint, "--write", checkpoint, "--force") == 2
    assert "expected another file than the one that is read" in capsys.readouterr().err
    assert run(checkpoint, "--write", out, "--force") == 0
    assert list(bnext.load_statistics(out)) == ["body.0", "body.1"]


def test_what_is_not_known_is_asked_for(layer, tmp_path, capsys):
    path = tmp_path / "keras.npz"
    arrays = bnext.to_convention(layer, "keras", prefix="bn/")
    np.savez(path, **{n: a for n, a in arrays.items() if "/" in n})
    out = tmp_path / "out.npz"
    for words, text in (
        ([], "--from: expected one of 'keras', 'tf-keras', 'mindspore', which have the names"),
        (["--from", "tf-keras"], "bn: --bessel: expected True or False for tf-keras"),
        (["--from", "keras", "--steps", "9"], "--count: expected the number of values per channel"),
        (["--from", "keras", "--prefix", "x"], "expected statistics by the names of Keras 3 with"),
        (["--from", "pytorch"], "expected statistics by the names of PyTorch, got bn/"),
    ):
        assert run(path, *words, "--write", out) == 1
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert run(path, "--from", "keras", "--count", "8") == 0
    assert "the initial variance 1 is taken to have decayed" in " ".join(
        capsys.readouterr().out.split()
    )
    assert run(path, "--from", "tf-keras", "--bessel", "yes", "--to", "flax", "--count", 8) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "m2/(n-1)" in output
    assert (
        "The file does not say --eps and --decay: taken as tf-keras (Keras 2)'s default." in output
    )
    assert run(path, "--from", "keras", "--eps", 1e-3, "--decay", 0.9) == 0
    assert "does not say" not in capsys.readouterr().out


def test_impossible_values_end_the_command(layer, tmp_path, capsys):
    state = layer.state_dict()
    state["running_var"][1] = np.nan
    np.savez(tmp_path / "a.npz", **state)
    assert run(tmp_path / "a.npz") == 1
    assert "expected a finite variance >= 0, got nan in channel 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: FILE"),
        (["a.npz", "--to", "theano"], "argument --to: invalid choice: 'theano'"),
        (["a.npz", "--count", "1"], "argument --count: expected an integer >= 2, got 1"),
        (["a.npz", "--steps", "-3"], "argument --steps: expected an integer >= 0, got -3"),
        (["a.npz", "--bessel", "maybe"], "argument --bessel: invalid choice: 'maybe'"),
        (["a.npz", "--write", "a.pt"], "--write: expected a name ending in .npz or .safetensors"),
        (["a.npz", "--write", "no/such/a.npz"], "--write: expected an existing folder"),
    ],
)
def test_mistakes(words, message, capsys):
    error = refusal_of(main, ["convert", *words], capsys)
    assert message in error
    assert error.count("\n") == 1


def test_missing_files(tmp_path, capsys):
    assert run(tmp_path / "none.npz") == 1
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'none.npz'}: no such file\n")


@pytest.mark.parametrize("to", CONVENTIONS)
def test_every_convention_is_written(checkpoint, tmp_path, to, capsys):
    out = tmp_path / "out.npz"
    assert run(checkpoint, "--to", to, "--write", out) == 0
    assert f"Written: {out}" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert len(arrays.files) >= 4
