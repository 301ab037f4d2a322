"""A build without OpenMP says so where users look, and what to do; one with OpenMP says nothing.

CI runs this with both kinds of build (`nox -s other_builds`).
"""

import warnings

import numpy as np
import pytest

import bnext
from bnext.bench import report
from bnext.bench.environment import environment

from .subprocesses import output_of

REAL = bnext._core.build_config()
HAS_OPENMP = REAL["openmp"] is not None
WITHOUT = "built without OpenMP, so that every call runs on one thread; to use more threads, "
REMEDY = "install the OpenMP runtime of Clang 16, and build again"

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture
def lacking(monkeypatch):
    """What a user has whose build found no OpenMP; here in the words of one remedy."""
    config = {**REAL, "openmp": None, "openmp_file": None, "openmp_remedy": REMEDY}
    monkeypatch.setattr(bnext._core, "build_config", lambda: config)


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.category, str(w.message)) for w in caught]


def test_a_build_has_openmp_or_a_remedy():
    assert (REAL["openmp_remedy"] is None) is HAS_OPENMP
    assert (REAL["openmp_file"] is not None) is HAS_OPENMP
    assert bnext.show_config(mode="dicts")["threads"]["openmp_remedy"] == REAL["openmp_remedy"]


def test_this_build_warns_exactly_if_it_cannot_have_the_threads():
    expected = []
    if not HAS_OPENMP:
        expected = [(RuntimeWarning, f"n: got 4, but bnext was {WITHOUT}{REAL['openmp_remedy']}")]
    assert warnings_of(lambda: bnext.set_num_threads(4)) == expected
    assert bnext.get_num_threads() == (4 if HAS_OPENMP else 1)
    assert warnings_of(lambda: bnext.set_num_threads(1)) == []


def test_this_build_prints_whether_it_has_openmp(capsys):
    bnext.show_config()
    printed = capsys.readouterr().out
    assert (WITHOUT in printed) is not HAS_OPENMP
    assert f"openmp: {REAL['openmp']}\n" in printed or not HAS_OPENMP
    assert "openmp_remedy" not in printed


@pytest.mark.usefixtures("lacking")
def test_the_configuration_says_what_to_do(capsys):
    bnext.show_config()
    assert f"\n  openmp: none ({WITHOUT}{REMEDY})\n" in capsys.readouterr().out
    threads = bnext.show_config(mode="dicts")["threads"]
    assert (threads["openmp"], threads["openmp_remedy"]) == (None, REMEDY)


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("number", [2, np.int64(7)])
def test_asking_for_threads_says_what_to_do(number):
    with pytest.warns(RuntimeWarning) as caught:
        bnext.set_num_threads(number)
    assert [str(w.message) for w in caught] == [f"n: got {number}, but bnext was {WITHOUT}{REMEDY}"]
    assert caught[0].filename == __file__


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), ("2", TypeError)])
def test_one_thread_and_what_is_refused_warn_of_nothing(wrong, error):
    def refused():
        with pytest.raises(error):
            bnext.set_num_threads(wrong)

    assert warnings_of(lambda: bnext.set_num_threads(1)) == []
    assert warnings_of(refused) == []


def test_the_benchmark_says_whether_this_build_has_openmp():
    introduction = report.introduction(environment(1))
    assert (f"\nbnext was {WITHOUT}" in introduction) is not HAS_OPENMP


@pytest.mark.usefixtures("lacking")
def test_the_benchmark_says_what_to_do():
    assert report.introduction(environment(1)).endswith(f"\nbnext was {WITHOUT}{REMEDY}")


def test_import_warns_of_nothing():
    program = """
        import warnings
        warnings.simplefilter("error")
        import bnext
        import numpy as np
        bnext.batch_norm_forward(np.ones((4, 3), np.float32))
        print("quiet")
    """
    assert output_of(program) == "quiet"
