"""Instruction sets: which there are, forcing one, and proof that the forced one ran."""

import numpy as np
import pytest

import bnext

from .conftest import AVAILABLE_ISAS
from .subprocesses import output_of, run_python

X = np.arange(40.0, dtype=np.float32).reshape(8, 5)


def configured():
    return bnext.show_config(mode="dicts")["isa"]


def ran():
    """The instruction set that a call uses now."""
    bnext.moments(X)
    return bnext._core.last_isa()


def test_available_ones_are_compiled_and_end_in_the_baseline():
    isa = configured()
    assert isa["available"][-1] == "baseline"
    assert set(isa["available"]) <= set(isa["compiled"])
    assert isa["active"] in isa["available"]


def test_the_best_one_is_taken_when_none_is_forced():
    program = """
        import bnext
        isa = bnext.show_config(mode="dicts")["isa"]
        assert isa["forced_by"] is None
        bnext.moments([[1.0, 2.0]])
        print(isa["active"], isa["available"][0], bnext._core.last_isa())
    """
    assert output_of(program, BNEXT_ISA=None) == " ".join([AVAILABLE_ISAS[0]] * 3)


@pytest.mark.parametrize("operation", ["forward", "backward", "moments", "normalize"])
def test_the_forced_one_runs(isa, dtype, operation):
    assert configured()["active"] == isa
    assert configured()["forced_by"] == "use_isa"
    x = X.astype(dtype)
    with bnext.use_isa("baseline"):
        _, saved = bnext.batch_norm_forward(x)
    assert bnext._core.last_isa() == "baseline"
    calls = {
        "forward": lambda: bnext.batch_norm_forward(x),
        "backward": lambda: bnext.batch_norm_backward(x, x, saved),
        "moments": lambda: bnext.moments(x),
        "normalize": lambda: bnext.normalize(x, np.zeros(5), np.ones(5)),
    }
    calls[operation]()
    assert bnext._core.last_isa() == isa


def test_forcing_nests_and_ends():
    outside, forced_by = ran(), configured()["forced_by"]
    for one in AVAILABLE_ISAS:
        with bnext.use_isa(one):
            assert ran() == one
            for other in AVAILABLE_ISAS:
                with bnext.use_isa(other):
                    assert ran() == other
                assert ran() == one
    assert ran() == outside
    assert configured()["forced_by"] == forced_by


def test_an_exception_ends_it_too():
    outside, forced_by = ran(), configured()["forced_by"]
    with pytest.raises(KeyError, match="mine"), bnext.use_isa("baseline"):
        raise KeyError("mine")
    assert ran() == outside
    assert configured()["forced_by"] == forced_by


@pytest.mark.parametrize("name", ["sse9", "", "AVX2"])
def test_unknown_names_are_refused_and_change_nothing(name):
    before = configured()
    expected = f"name: expected one of {', '.join(AVAILABLE_ISAS)}, got {name!r}"
    with pytest.raises(ValueError, match=f"^{expected}$"), bnext.use_isa(name):
        pytest.fail("the block was entered")
    assert configured() == before


@pytest.mark.parametrize("name", AVAILABLE_ISAS)
def test_environment_variable_forces_one(name):
    program = """
        import bnext
        isa = bnext.show_config(mode="dicts")["isa"]
        bnext.moments([[1.0, 2.0]])
        print(isa["active"], isa["forced_by"], bnext._core.last_isa())
    """
    assert output_of(program, BNEXT_ISA=name) == f"{name} BNEXT_ISA {name}"


def test_use_isa_is_stronger_than_the_environment():
    program = """
        import bnext
        for _ in range(2):
            with bnext.use_isa("baseline"):
                print(bnext.show_config(mode="dicts")["isa"]["forced_by"], end=" ")
            print(bnext.show_config(mode="dicts")["isa"]["forced_by"], end=" ")
    """
    expected = "use_isa BNEXT_ISA use_isa BNEXT_ISA"
    assert output_of(program, BNEXT_ISA=AVAILABLE_ISAS[0]) == expected


def test_unknown_name_in_the_environment_is_an_import_error():
    result = run_python("import bnext", BNEXT_ISA="sse9")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: BNEXT_ISA")
    for name in ("sse9", *AVAILABLE_ISAS):
        assert name in last
