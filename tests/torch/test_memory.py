"""keep_memory: freed memory stays, page faults end, and it says where there is nothing to do."""

import os
import subprocess
import sys
import textwrap

import pytest

import bnext

from .support import torch

from bnext.torch import memory  # isort: skip - of which there is nothing without PyTorch

glibc = pytest.mark.skipif(memory._reason() is not None, reason=str(memory._reason()))


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FAULTS = """
    import resource, torch, bnext.torch

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            x = torch.ones(16 << 20)  # 64 MiB, which glibc always maps
            y = x + x
            del x, y
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first = faults()
    with bnext.torch.keep_memory() as kept:
        assert kept.active, kept
        # (A small block may come to lie between large ones; the next one then needs new memory.)
        within = min(faults() for _ in range(4))
    assert not kept.active
    print(first, within, faults())
    """


@glibc
def test_kept_memory_has_no_page_faults():
    first, within, after = map(int, run(FAULTS).split())
    assert first > 500
    assert within < 0.1 * first
    assert after > 0.5 * first


@glibc
def test_keep_memory_says_what_it_did():
    print_it = "import bnext.torch; kept = bnext.torch.keep_memory(); print(kept); kept.undo(); "
    text = run(print_it + "kept.undo(); print(kept)")
    assert text.splitlines() == [
        "freed memory stays in the process (mallopt: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1); undo() "
        "gives it back",
        "keep_memory does nothing: it was undone",
    ]


class Calls:
    """A C library that notes what it is called with."""

    def __init__(self, *missing, result=1):
        self.calls, self.missing, self.result = [], missing, result

    def __getattr__(self, name):
        if name in self.missing:
            raise AttributeError(name)

        def call(*given):
            self.calls.append((name, *given))
            return self.result

        return call


@pytest.fixture
def library(monkeypatch):
    calls = Calls()
    monkeypatch.setattr(memory, "_libc", lambda: calls)
    monkeypatch.setattr(memory, "_file_of", lambda function: "/lib/libc.so.6")
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


def test_keep_memory_is_reversed_to_what_was_asked_for(library, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "much")
    bnext.torch.keep_memory().undo()
    assert library.calls == [
        ("mallopt", -4, 0), ("mallopt", -1, -1), ("mallopt", -4, 7), ("mallopt", -1, 131072),
        ("malloc_trim", 0),
    ]  # fmt: skip


def test_keep_memory_where_there_is_nothing_to_do(library, monkeypatch):
    def reason():
        kept = bnext.torch.keep_memory()
        assert not kept.active
        kept.undo()
        return kept.reason

    library.result = 0
    assert reason() == "mallopt refused the settings"
    library.calls.clear()
    monkeypatch.setattr(memory, "_file_of", lambda function: "/usr/lib/libjemalloc.so.2")
    assert reason() == "malloc is /usr/lib/libjemalloc.so.2's, not glibc's"
    library.missing = ("gnu_get_libc_version",)
    assert reason() == "the C library is not glibc"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reason() == "it sets glibc's malloc, and this is darwin"
    assert not library.calls
    assert torch.ones(3).sum() == 3


@pytest.mark.parametrize(
    ("file", "is_glibc"),
    [("/lib/libc.so.6", True), ("/lib/libc-2.31.so", True), ("/lib/libtcmalloc.so", False)],
)
def test_glibc_is_known_by_its_file(file, is_glibc):
    assert memory._is_glibc(file) is is_glibc
    assert memory._is_glibc("/proc/self/exe")
