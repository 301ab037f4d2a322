"""What users do: README.md's own commands, word for word, in fresh environments."""

import re
import shlex
import tempfile
from pathlib import Path

from .kit import (
    TESTING,
    build_with_foreign_functions,
    cache,
    check,
    clean_checkout,
    not_run,
    readme_gives,
    shell,
    step,
    within,
)

MAIN_JOB = "pip install '.[demo]' && python -m bnext"
TEST_SUITE = "pip install '.[test]' && pytest"
# More calls in a row, all pairs of shapes, a formula compiled; faults and steps of the barrier, in
# larger numbers than users wait for. (1,000 faults of each kind and 10,000 steps: eight minutes.)
THOROUGH = {"BNEXT_SOAK": "6", "BNEXT_FAULTS": "50", "BNEXT_BARRIER_STEPS": "300"}
SOAKED = "pool_processes|small_planes|streaming|determinism|add_a_formula"  # none may be skipped
# Of each network at each batch size. (The page shows the means of three.)
STATISTICS_RUNS = "1"
SETS = {"fma": "avx2", "avx512vl": "avx512"}  # by the flag of a processor that has them all


@check
def readme(session):
    """README's first command in a clean checkout; the comparison of statistics."""
    readme_gives(session, MAIN_JOB)
    with tempfile.TemporaryDirectory() as work:
        clone = Path(work) / "clone"
        clean_checkout(clone)
        shared = cache() | {"CCACHE_BASEDIR": str(clone), "CMAKE_ARGS": "-DBNEXT_WERROR=ON"}
        with session.chdir(clone), step("main job"), within(session, 900, "the main job"):
            shell(session, MAIN_JOB, tee="demo.txt", env=shared)
            session.run("test", "-s", "bnext-demo.png", external=True)
        session.run("python", ".ci/check_demo.py", "build/output/demo.txt")
        with session.chdir(work), step("statistics"), within(session, 900, "the comparison"):
            runs = ("--runs", STATISTICS_RUNS)
            session.run("python", "-m", "bnext", "statistics", *runs, "--csv", "statistics.csv")
            session.run("test", "-s", "bnext-statistics.png", external=True)
        session.run("python", ".ci/check_statistics.py", f"{work}/statistics.csv", STATISTICS_RUNS)


@check
def tests(session):
    """README's second command, thoroughly; arguments go to pytest.

    Warnings are errors in the extension too; teams are as large as tests ask for; every instruction
    set of the machine is in the output.
    """
    readme_gives(session, TEST_SUITE)
    command = f"{TEST_SUITE} {shlex.join(session.posargs)}"
    env = build_with_foreign_functions(session) | TESTING | THOROUGH | {"BNEXT_TEAM": "fixed"}
    printed = shell(session, command, env=env)
    # What needs other packages runs in sessions that have them.
    if lost := [line for line in not_run(printed) if "the example of a new formula" in line]:
        session.error(f"tests that take long did not run: {lost}")
    if skipped := re.findall(rf"^SKIPPED .*test_(?:{SOAKED})\.py.*$", printed, re.MULTILINE):
        session.error(f"tests were skipped: {skipped}")
    every_instruction_set(session)


def every_instruction_set(session):
    """The tests run over the sets that the package says it has; the system must agree."""
    config = shell(session, "python -m bnext config", tee="config.txt")
    available, *_ = re.findall(r"^  available: (.*)$", config, re.MULTILINE)
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    for flag, name in SETS.items():
        if flag in flags and not re.search(rf"\b{name}\b", available):
            session.error(f"this machine has {flag}, and bnext does not offer {name}")
