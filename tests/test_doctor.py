"""``python -m bnext doctor``: what a bug report needs, and what is wrong here."""

import os
import re
import shutil

import pytest

import bnext
from bnext import doctor
from bnext.__main__ import main

from .conftest import needs_openmp
from .subprocesses import output_of
from .test_openmp_runtimes import another_runtime


def sections_of(text):
    """Rows by section, as they were printed."""
    found, rows = {}, None
    for line in text.splitlines():
        if not line.startswith(" "):
            rows = found.setdefault(line.removesuffix(":"), [])
        else:
            rows.append(line.strip())
    return found


def test_what_a_bug_report_needs(capsys):
    assert main(["doctor"]) == 0
    found = sections_of(capsys.readouterr().out)
    assert list(found) == [
        f"bnext {bnext.__version__}", "system", "libraries", "processors", "instruction sets",
        "OpenMP", "pool", "GPU", "variables", "results", "what is wrong",
    ]  # fmt: skip
    config = bnext.show_config(mode="dicts")
    assert f"numpy: {config['python']['numpy']}" in found["libraries"]
    assert f"of this machine: {', '.join(config['isa']['available'])}" in found["instruction sets"]
    assert any(config["python"]["version"] in row for row in found["system"])
    assert f"of the machine: {os.cpu_count()}" in found["processors"]
    assert found["results"][0].endswith(": as the definition says")
    if not config["cuda"]["available"]:
        assert any(row.startswith("kernels: cannot run: ") for row in found["GPU"])


def test_variables_that_matter_are_shown_and_the_home_folder_is_not(monkeypatch, capsys):
    home = os.path.expanduser("~")
    monkeypatch.setenv("OMP_PLACES", f"{home}/places")
    monkeypatch.setenv("SECRET_OMP_TOKEN", "abc")
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "  OMP_PLACES: ~/places\n" in output
    assert "abc" not in output
    assert home + "/" not in output


def test_modules_that_cannot_be_imported_are_named(capsys):
    assert main(["doctor", "--import", "no_such_module", "json"]) == 0
    rows = sections_of(capsys.readouterr().out)["libraries"]
    assert "import no_such_module: ModuleNotFoundError: No module named 'no_such_module'" in rows
    assert "import json: imported" in rows


@pytest.mark.parametrize("wrong", ["y", "dx"])
def test_wrong_results_are_named(wrong, monkeypatch, capsys):
    def forward(x, *arguments, **options):
        y, saved = bnext.batch_norm_forward(x, *arguments, **options)
        return (y * 1.001 if wrong == "y" else y), saved

    def backward(*arguments):
        dx, *others = bnext.batch_norm_backward(*arguments)
        return (dx + 1e-3 if wrong == "dx" else dx), *others

    assert list(doctor.wrong_results()) == []
    found = list(doctor.wrong_results(forward, backward))
    isas = bnext.show_config(mode="dicts")["isa"]["available"]
    assert [text.split(",")[0] for text in found] == [
        f"{wrong} on {isa}" for isa in isas for _ in range(2)
    ]
    monkeypatch.setattr(doctor, "wrong_results", lambda: iter(found))
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert f": {len(found)} differ\n" in output
    assert f"  - {found[0]}\n" in output


def problems(*runtimes, **variables):
    return " ".join(doctor.found_problems(variables, runtimes))


def test_what_is_wrong_has_a_remedy(monkeypatch):
    before = problems()
    assert "OMP_NUM_THREADS" not in before
    assert "OMP_NUM_THREADS=1: every call runs on one thread" in problems(OMP_NUM_THREADS="1")
    assert "OMP_NUM_THREADS" not in problems(OMP_NUM_THREADS="12")
    best, *others = bnext.show_config(mode="dicts")["isa"]["available"]
    if others:
        with bnext.use_isa(others[-1]):
            assert f"use_isa forces {others[-1]}, and this machine has {best}" in problems()
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0.1")
    assert "the installed package is bnext 0.0.1" in problems()


@needs_openmp
def test_several_runtimes(tmp_path):
    assert "OpenMP runtimes are loaded" not in problems("/lib/libgomp.so.1")
    assert "2 OpenMP runtimes are loaded" in problems("/lib/libgomp.so.1", "/opt/libiomp5.so")
    own = bnext.show_config(mode="dicts")["threads"]["openmp_file"]
    program = f"""
        import ctypes, os
        from bnext import doctor
        before = doctor.loaded_runtimes()
        ctypes.CDLL({str(named_like_a_runtime(tmp_path))!r})
        after = doctor.loaded_runtimes()
        print(os.path.realpath({own!r}) in map(os.path.realpath, before), len(after) - len(before))
    """
    assert output_of(program) == "True 1"


def named_like_a_runtime(folder):
    return shutil.copy(another_runtime(folder), folder / "libgomp-another.so.1")


def test_a_pool_that_keeps_nothing_is_named():
    program = "from bnext import doctor; print(*doctor.found_problems({}, []))"
    assert "BNEXT_POOL_LIMIT=0" in output_of(program, BNEXT_POOL_LIMIT="0")
    assert "BNEXT_POOL_LIMIT" not in output_of(program, BNEXT_POOL_LIMIT="1M")


@pytest.mark.torch
def test_the_runtime_of_torch_is_shown():
    program = """
        import torch  # whose runtime is then the first, and by its name that of bnext as well
        from bnext.__main__ import main
        main(["doctor", "--import", "torch"])
    """
    rows = sections_of(output_of(program))["OpenMP"]
    (loaded,) = (row for row in rows if row.startswith("runtimes loaded: "))
    assert re.search(r"torch/lib/lib\w*omp", loaded)
