"""What compute-sanitizer runs on a GPU, `benchmarks/gpu/sanitize.py`, with emulated kernels."""

import pytest

from benchmarks.gpu import sanitize

from ..optional import import_emulated


@pytest.fixture(scope="module")
def kernels(torch):
    return import_emulated()


def test_a_trace_names_each_case_before_its_launch(kernels, capsys, monkeypatch):
    def hang(module, case, limits, device):
        raise TimeoutError

    monkeypatch.setattr(sanitize, "run", hang)
    with pytest.raises(TimeoutError):
        sanitize.launch_all(kernels, "cpu", kernels.limits(0), ("float32",), 90, log=print)
    (first, *_) = sanitize.cases(kernels, ("float32",))
    assert capsys.readouterr().out == f"{first}\n"


def test_every_operation_on_every_path(kernels, capsys):
    passed = sanitize.launch_all(kernels, "cpu", kernels.limits(0), ("float32",), 90) == 0
    assert passed, capsys.readouterr().out
