"""The check of the CUDA compiler's report: it passes what is right, and can fail."""

import pytest

from .ci_scripts import imported, needs_the_folder

ARCHITECTURES = ("sm_80", "sm_120")
INSTANCES = ("forward_float32", "backward_float32")
KERNELS = {"forward_float32": ("_ZN5bnext4slabIfEEvv", "_ZN5bnext7chunkedIfEEvv")}
KERNELS["backward_float32"] = KERNELS["forward_float32"][:1]

pytestmark = needs_the_folder


@pytest.fixture(scope="module")
def check():
    with imported("check_cuda_resources") as module:
        yield module


def report(architectures=ARCHITECTURES):
    """What nvcc 13.0 says under Ninja."""
    lines = []
    for number, instances in enumerate(INSTANCES):
        path = f"csrc/cuda/CMakeFiles/_cuda.dir/instances/{instances}.cu.o"
        lines.append(f"[{number + 1}/3] Building CUDA object {path}")
        for architecture in architectures:
            lines.append("ptxas info    : 0 bytes gmem")
            for symbol in KERNELS[instances]:
                lines += [
                    f"ptxas info    : Compiling entry function '{symbol}' for '{architecture}'",
                    f"ptxas info    : Function properties for {symbol}",
                    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
                    "ptxas info    : Used 34 registers, used 1 barriers, 364 bytes cmem[0]",
                ]
    lines.append("[3/3] Linking CXX shared module csrc/cuda/_cuda.so")
    return "\n".join(lines)


def sources(folder, names=("slab", "chunked")):
    (folder / "instances").mkdir()
    for instances in INSTANCES:
        (folder / "instances" / f"{instances}.cu").write_text("")
    before = ("", "BNEXT_LAUNCH_BOUNDS ", "BNEXT_LAUNCH_BOUNDS(256) ")
    text = "#define BNEXT_KERNEL __global__ void\n" + "".join(
        f"template <class T>\nBNEXT_KERNEL {b}{n}(BNEXT_CONSTANT int a) {{}}\n"
        for b, n in zip(before, names, strict=False)
    )
    (folder / "kernels.hpp").write_text(text)
    return folder


def run(check, folder, text, names=("slab", "chunked")):
    log = folder / "build.log"
    log.write_text(text)
    words = [str(log), "--architectures", *ARCHITECTURES]
    return check.main([*words, "--sources", str(sources(folder, names))])


def test_a_clean_report_passes(check, tmp_path, capsys):
    assert run(check, tmp_path, report()) == 0
    out = capsys.readouterr().out
    assert "6 kernels, no spills, no local memory" in out
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["sm_80", "3", "34"],
        ["sm_120", "3", "34"],
    ]


FRAME = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (FRAME, FRAME.replace("0 bytes spill stores", "4 bytes spill stores"), "4 bytes of spill"),
        (FRAME, FRAME.replace("0 bytes spill loads", "8 bytes spill loads"), "8 bytes of spill"),
        (FRAME, FRAME.replace("0 bytes stack", "160 bytes stack"), "160 bytes of local memory"),
        (FRAME, "", "no registers or no stack frame"),
        ("Used 34 registers", "", "no registers or no stack frame"),
        ("Used 34 registers", "Used 129 registers", "129 registers leave no room"),
    ],
)
def test_one_bad_kernel_fails(check, tmp_path, capsys, before, after, said):
    # The last one of all, so that nothing hides behind the first.
    head, _, tail = report().rpartition(before)
    assert run(check, tmp_path, head + after + tail) == 1
    out = capsys.readouterr().out
    assert "sm_120 backward_float32: " in out
    assert said in out
    assert "1 problems" in out


def test_a_function_that_is_called_counts_for_its_kernel(check, tmp_path, capsys):
    spilling = FRAME.replace("0 bytes spill stores", "16 bytes spill stores")
    called = f"ptxas info    : Function properties for _ZN5bnext6helperEv\n    {spilling}\n"
    used = "ptxas info    : Used 34"
    assert run(check, tmp_path, report().replace(used, called + used, 1)) == 1
    assert "16 bytes of spill stores and loads" in capsys.readouterr().out


def test_a_missing_architecture_fails(check, tmp_path, capsys):
    assert run(check, tmp_path, report(ARCHITECTURES[:1])) == 1
    assert "sm_120 forward_float32: no kernel was compiled" in capsys.readouterr().out


def test_an_empty_log_fails(check, tmp_path, capsys):
    assert run(check, tmp_path, "ninja: no work to do.\n") == 1
    assert "\nbackward_float32: no kernel was compiled" in "\n" + capsys.readouterr().out


def test_a_kernel_that_one_architecture_lacks_fails(check, tmp_path, capsys):
    head, _, tail = report().rpartition("4slabIfEEvv' for")
    assert run(check, tmp_path, f"{head}4slabIdEEvv' for{tail}") == 1
    out = capsys.readouterr().out
    assert "sm_120 backward_float32: lacks" in out
    assert "sm_80 backward_float32: lacks" in out


def test_a_kernel_that_no_file_instantiates_fails(check, tmp_path, capsys):
    assert run(check, tmp_path, report(), ("slab", "chunked", "forgotten")) == 1
    assert "forgotten: no file instantiates this kernel" in capsys.readouterr().out


def test_sources_without_kernels_fail(check, tmp_path, capsys):
    assert run(check, tmp_path, report(), ()) == 1
    assert "the sources define no kernel" in capsys.readouterr().out
