"""Tests beside other libraries, none of which may be skipped."""

from .kit import check, install, nothing_skipped, pytest, stand_on


@check
def torch(session):
    """Tests that need PyTorch, the benchmark suite, and accuracy beside others."""
    stand_on(session, "tests")
    install(session, "torch")
    # Tools that find layers by their classes; none of them may bring another PyTorch.
    session.install("opt_einsum", "scipy", "iopath", "yacs", "tabulate", "termcolor", "tqdm")
    session.install("--no-deps", "torchao", "opacus", "thop", "ptflops", "fvcore")
    printed = pytest(
        session, "-q", "-m", "(torch or onednn) and not jax and not gpu",
        "--ignore", "tests/cuda", "--ignore", "tests/jax",
        env={"BNEXT_REQUIRE_TORCH": "1"},
    )  # fmt: skip
    # timm needs a torchvision that there is only for other builds of PyTorch; a GPU is README's.
    nothing_skipped(session, printed, "PyTorch", "timm")
    session.run("python", "benchmarks/accuracy.py")


@check
def libraries(session):
    """JAX, and what other libraries store after the same batches and in their files.

    Libraries that install large are compared by benchmarks/conventions. (Orbax comes with Flax.)
    """
    stand_on(session, "tests", "torch")
    install(session, "libraries")
    session.install("dm-haiku==0.0.17", "keras==3.15.1", "tinygrad==0.14.0", "h5py", "safetensors")
    printed = pytest(
        session, "-q", "-m", "(jax or libraries) and not gpu", "--ignore", "tests/cuda",
        env={"BNEXT_REQUIRE_JAX": "1", "BNEXT_REQUIRE_TORCH": "1", "BNEXT_REQUIRE_LIBRARIES": "1"},
    )  # fmt: skip
    nothing_skipped(session, printed, "JAX and other libraries")


@check
def processes(session):
    """Real processes: under mpiexec, and with gloo."""
    stand_on(session, "tests", "torch")
    install(session, "processes")
    printed = pytest(
        session, "-q", "-m", "mpi or gloo", "tests/groups", "tests/test_barrier_measuring.py",
        env={"BNEXT_REQUIRE_PROCESSES": "1", "BNEXT_PROCESS_FAULTS": "5"},
    )  # fmt: skip
    nothing_skipped(session, printed, "processes")
