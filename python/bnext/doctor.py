"""``python -m bnext doctor``: what a bug report needs, and what is wrong on this machine."""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import bnext
from bnext import _core, cuda
from bnext.bench.environment import processor
from bnext.bench.load import LoadMeter
from bnext.command_line import FAILED, Parser
from bnext.runtime import use_isa, without_openmp

DESCRIPTION = """\
Show versions, libraries, OpenMP runtimes, instruction sets, the memory pool and GPUs; compare some
results with the definition; and name what is wrong, with its remedy. The output is made to be
copied into a bug report: the home folder is shown as ~."""

# Distributions that bnext computes with, reads files by, or draws and measures with.
LIBRARIES = (
    "numpy", "ml_dtypes", "torch", "jax", "jaxlib", "cupy", "cupy-cuda12x", "cupy-cuda13x",
    "array-api-compat", "mpi4py", "greenlet", "h5py", "flax", "orbax-checkpoint", "onnx", "keras",
    "scikit-learn", "matplotlib", "rich", "threadpoolctl",
)  # fmt: skip
VARIABLES = re.compile(r"(BNEXT|OMP|GOMP|KMP|MKL|OPENBLAS)_\w+|(CUDA|NVIDIA)_VISIBLE_DEVICES")
RUNTIME = re.compile(r"/[^\n]*/lib(?:gomp|omp|iomp5)[^/\n]*\.so[^/\n]*")
SECONDS_OF_LOAD = 0.2
DRIVER = Path("/proc/driver/nvidia/version")

Rows = dict[str, str]


def main(words: Sequence[str], name: str) -> int:
    """Run ``python -m bnext doctor``: 1 where results are wrong, else 0."""
    parser = Parser(prog=name, description=DESCRIPTION)
    parser.add_argument(
        "--import", nargs="+", default=[], metavar="MODULE", dest="modules",
        help="modules to import first, such as torch: the OpenMP runtimes that they load are shown",
    )  # fmt: skip
    modules = parser.parse_args(words).modules
    imported = {module: _imported(module) for module in modules}
    wrong = list(wrong_results())
    sections = {**_sections(imported), "results": _results(wrong)}
    for title, rows in sections.items():
        print(f"{title}:")
        for key, text in rows.items():
            print(f"  {key}: {_without_home(text)}")
    problems = [*wrong, *found_problems(os.environ, loaded_runtimes())]
    print("what is wrong:")
    for text in problems or ["nothing that doctor knows"]:
        print(f"  - {_without_home(text)}")
    return FAILED if wrong else 0


def _sections(imported: Rows) -> dict[str, Rows]:
    config = bnext.show_config(mode="dicts") or {}
    threads, isa, pool, gpu = (config[name] for name in ("threads", "isa", "pool", "cuda"))
    versions = {name: version for name in LIBRARIES if (version := _version(name))}
    quota = threads["quota"]
    meter = LoadMeter()
    time.sleep(SECONDS_OF_LOAD)
    return {
        f"bnext {bnext.__version__}": {
            "folder": str(Path(bnext.__file__).parent),
            "compiler": f"{config['compiler']['name']} ({config['compiler']['build_type']})",
        },
        "system": {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "platform": platform.platform(),
            "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        },
        "libraries": {
            **versions,
            "not installed": ", ".join(name for name in LIBRARIES if name not in versions),
            **{f"import {module}": text for module, text in imported.items()},
        },
        "processors": {
            "model": processor(),
            "of the machine": str(config["cpu"]["processors"]),
            "of this process": str(threads["allowed_processors"]),
            "quota": "none" if quota is None else f"{quota:g} processors",
            "threads of a call": f"at most {threads['number']}, now {threads['now']}",
            "load": str(meter.read()),
        },
        "instruction sets": {
            "active": isa["active"] + (f" (by {isa['forced_by']})" if isa["forced_by"] else ""),
            "of this machine": ", ".join(isa["available"]),
            "compiled": ", ".join(isa["compiled"]),
        },
        "OpenMP": {
            "built with": threads["openmp"] or "none",
            "runtime of bnext": threads["openmp_file"] or "none",
            "runtimes loaded": _listed(loaded_runtimes()),
        },
        "pool": {
            "limit": f"{pool['limit_bytes']:,} bytes",
            "kept": f"{pool['cached_bytes']:,} bytes",
        },
        "GPU": {
            "devices": ", ".join(gpu["devices"]) or "none",
            "kernels": "can run" if gpu["available"] else f"cannot run: {gpu['reason']}",
            "built for": ", ".join(map(str, gpu["architectures"])) or "none",
        },
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)
        }
        or {"set": "none"},
    }


def found_problems(variables: Any, runtimes: Sequence[str] | None) -> Iterator[str]:
    """Give what is likely to be wrong, each with its remedy.

    `variables` are the environment's, `runtimes` the files of the OpenMP runtimes that are loaded,
    None where they cannot be listed.
    """
    installed = _version("bnext")
    if installed is not None and installed != bnext.__version__:
        yield (
            f"the installed package is bnext {installed}, and the compiled module that runs is "
            f"{bnext.__version__}: build it again"
        )
    if without := without_openmp():
        yield f"bnext was {without}"
    elif len(runtimes or ()) > 1:
        yield (
            f"{len(runtimes or ())} OpenMP runtimes are loaded, each with threads of its own, "
            "which take processors from the others' for some time after each loop: with PyTorch, "
            "import bnext.torch, so that both use PyTorch's; else try OMP_WAIT_POLICY=passive"
        )
    if variables.get("OMP_NUM_THREADS") == "1":
        yield "OMP_NUM_THREADS=1: every call runs on one thread, unless bnext.set_num_threads says"
    isa = (bnext.show_config(mode="dicts") or {})["isa"]
    if isa["forced_by"] and isa["active"] != isa["available"][0]:
        yield (
            f"{isa['forced_by']} forces {isa['active']}, and this machine has "
            f"{isa['available'][0]}: unset it for speed"
        )
    if _core.pool_figures()["limit_bytes"] == 0:
        yield "BNEXT_POOL_LIMIT=0: every large result is made of fresh pages, which costs time"
    if DRIVER.exists() and not cuda.is_available():
        yield f"there is a driver of NVIDIA, and arrays on a GPU are refused: {cuda.reason()}"


def loaded_runtimes() -> list[str] | None:
    """List the files of the OpenMP runtimes in this process; None where the system does not say."""
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return sorted(set(RUNTIME.findall(text)))


def wrong_results(
    forward: Callable[..., Any] = bnext.batch_norm_forward,
    backward: Callable[..., Any] = bnext.batch_norm_backward,
) -> Iterator[str]:
    """Name the results that differ from the definition, on every instruction set and layout."""
    rng = np.random.default_rng(0)
    for isa in _core.build_config()["available_isas"]:
        for axis in (1, -1):
            x, dy = rng.normal(3, 2, (2, 6, 5, 4, 7)).astype(np.float32)
            channels = x.shape[axis]
            weight, bias = rng.normal(size=(2, channels)).astype(np.float32)
            expected = _definition(x, dy, weight, bias, axis)
            with use_isa(isa):
                y, saved = forward(x, weight, bias, channel_axis=axis)
                results = (y, *backward(dy, x, saved, weight))
            for name, ours, exact in zip(
                ("y", "dx", "dweight", "dbias"), results, expected, strict=True
            ):
                error = float(np.max(np.abs(ours - exact)) / np.max(np.abs(exact)))
                if not error <= 1e-5:
                    yield (
                        f"{name} on {isa}, channels at axis {axis}, is wrong by {error:.1g} of its "
                        "largest value: report it"
                    )


def _definition(x: Any, dy: Any, weight: Any, bias: Any, axis: int) -> tuple[Any, ...]:
    """Both passes in float64."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    axes = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    shape = [1] * x.ndim
    shape[axis] = -1
    centered = x - x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt((centered**2).mean(axes, keepdims=True) + 1e-5)
    xhat = centered * rstd
    scale = weight.reshape(shape) * rstd
    dx = scale * (
        dy - dy.mean(axes, keepdims=True) - xhat * (dy * xhat).mean(axes, keepdims=True)
    )  # fmt: skip
    y = xhat * weight.reshape(shape) + bias.reshape(shape)
    return y, dx, (dy * xhat).sum(axes), dy.sum(axes)


def _results(wrong: Sequence[str]) -> Rows:
    names = ", ".join(_core.build_config()["available_isas"])
    text = f"{len(wrong)} differ" if wrong else "as the definition says"
    return {f"both passes on {names}": text}


def _imported(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a module does when it is imported
        line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {line}"
    return "imported"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _listed(runtimes: Sequence[str] | None) -> str:
    if runtimes is None:
        return "this system does not list them"
    return ", ".join(runtimes) or "none"


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text
