"""Conversions beside what installed libraries store themselves, after the same batches.

The runners and the comparison come from benchmarks/conventions, where more libraries are, each
in its pinned release. Here are the ones that install small, as they are installed.
"""

import functools
import os
import subprocess
import sys

import pytest

from benchmarks.conventions import __main__ as command
from benchmarks.conventions import checks, environments, report
from benchmarks.conventions.batches import Batches, write
from benchmarks.conventions.releases import RELEASES
from benchmarks.conventions.stored import Case, Stored

from .limits import WIDE
from .optional import marks_of

BATCHES = 20
MODULES = {
    "pytorch": ("torch",),
    "flax": ("flax", "jax"),
    "haiku": ("haiku", "jax"),
    "equinox": ("equinox", "jax"),
    "keras-jax": ("keras", "jax"),
    "tinygrad": ("tinygrad",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnx"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function that gives the batches and what a library stored."""
    folder = tmp_path_factory.mktemp("conventions")
    batches = folder / "batches.npz"
    write(batches, BATCHES)

    @functools.cache
    def of(name):
        release = RELEASES[name]
        output = folder / f"{name}.npz"
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.conventions.runners.{release.runner}",
             str(batches), str(output)],
            cwd=environments.ROOT, env={**os.environ, **release.variables}, timeout=WIDE,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Batches(batches), Stored(output)

    return of


VARIANTS = [
    pytest.param(name, variant, marks=marks_of(MODULES[name]))
    for name in MODULES
    for variant in RELEASES[name].variants
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_what_is_stored(files, name, variant):
    batches, stored = files(name)
    declared = RELEASES[name].variants[variant]
    cases = [case for case in stored.cases() if case.variant == variant]
    if error := stored.facts["variants"][variant].get("error"):
        assert (name, variant) == ("onnx", "opset 7, inference"), error  # the evaluator has none
        return
    assert cases
    suffix = stored.facts["variants"][variant]["suffix"]
    for case in cases:
        all_found = checks.check(declared, stored, case, batches)
        assert all_found[-1].file == (suffix or None)  # read, and the same layer
        for found in all_found:
            assert found.failures(declared.differs, declared.rounding) == [], (case, found)
            assert found.y is not None
            assert (found.on is None) == (found.step in (0, 1) or declared.copied), case


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks_of(MODULES[name])) for name in ("flax", "onnxruntime")]
)
def test_the_wrong_variance_is_seen(files, name):
    """Without its sensitivity the comparison would prove nothing."""
    batches, stored = files(name)
    variant = {"flax": "linen", "onnxruntime": "opset 15"}[name]
    unbiased = RELEASES["mlx"].variants["default"]
    wrong = {
        "flax": type(unbiased)(convention="haiku"),
        "onnxruntime": type(unbiased)(convention="onnx", bessel=True),
    }[name]
    case = Case(variant, 2, "4")
    if name == "flax":
        with pytest.raises(ValueError, match="values: expected names among"):
            checks.check(wrong, stored, case, batches)
    else:
        (_, second, _) = checks.check(wrong, stored, case, batches)
        assert second.failures(), second


def test_whose_rounding_a_difference_is():
    """Beyond the bar a library must be farther from its own rule than bnext is."""
    near = checks.Found(5, own=4e-7, single=5e-7, exact=1e-15, to=4e-7)
    theirs = checks.Found(5, own=2e-6, single=3e-7, exact=1e-15, to=2e-6)
    ours = checks.Found(5, own=2e-6, single=3e-6, exact=1e-15, to=2e-6)
    assert near.failures() == theirs.failures() == []
    assert ours.failures() == ["bnext: 3e-06 from the rule, the library only 2e-06"]
    assert checks.Found(5, own=2e-6, single=3e-7, exact=1e-9).failures() != []
    for name in ("to", "back", "on"):  # more than the library's rounding explains
        beyond = checks.Found(5, own=2e-6, single=3e-7, exact=1e-15, **{name: 2.5e-6})
        assert beyond.failures() == [f"{name}: 2.5e-06, at most 2.2e-06"]

    def text_of(*found):
        return report.far([report.Row("a", "b", 2, found, [], "")])

    assert text_of(near).endswith("stored in 1 of 1 rows of training.")
    assert "stored in 0 of 1 rows of training.\nIn the other 1 they" in text_of(near, theirs)
    assert text_of(theirs).endswith("does not explain\nis WRONG.")
    assert "rounding" not in text_of(theirs, ours)


def test_files_that_were_read_are_listed():
    read = checks.Found(300, file=".keras")
    wrong = checks.Found(300, file=".pt", notes=["file: another eps"])
    rows = [report.Row(name, "b", 2, [each], [], "") for name, each in
            (("A", read), ("B", read), ("A", wrong))]  # fmt: skip
    assert report.formats(rows).splitlines() == [
        "Files that the libraries wrote, and bnext read (1 formats):", ".keras: A, B"
    ]  # fmt: skip
    assert wrong.failures() == ["file: another eps"]


def test_every_release_is_declared():
    for name, release in RELEASES.items():
        runner = environments.ROOT / "benchmarks/conventions/runners" / f"{release.runner}.py"
        assert runner.exists(), name
        assert all("==" in requirement for requirement in release.requirements[:1]), name
    others = {release.runner for release in RELEASES.values()}
    folder = environments.ROOT / "benchmarks/conventions/runners"
    for path in folder.glob("*.py"):
        assert path.stem in others | {"__init__", "recording", "onnx_graphs"}, path


def test_a_reason_is_one_line():
    fail = [sys.executable, "-c", r"import sys; sys.exit('first\n\x1b[38;5;1mno worker\x1b[m\n')"]
    with pytest.raises(environments.ReleaseError, match=r"^run: no worker$"):
        environments._run(fail, "run")


def test_a_library_that_fails_is_named(tmp_path, monkeypatch, capsys):
    """One failure ends neither the command nor the other libraries."""

    def fail(release, *_):
        raise environments.ReleaseError(f"pip: no {release.title}")

    monkeypatch.setattr(environments, "record", fail)
    assert command.main(["ncnn", "mlx", "--out", str(tmp_path / "table.txt")]) == 2
    text = (tmp_path / "table.txt").read_text()
    assert "ncnn: pip: no ncnn\n" in text
    assert "mlx: pip: no MLX 0.32.4\n" in text
    assert text in capsys.readouterr().out
