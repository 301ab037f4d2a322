"""Prints a hash of the results of every case, dtype and instruction set, a line each.

    python .ci/fingerprints.py [--threads N ...] >FILE

Builds by different compilers print the same lines: `diff` names the cases that differ. With several
numbers of threads each case is computed with all of them, and its line has each hash that came out:
one, if the results do not depend on threads. A NaN counts as a NaN: sign and payload are not
promised.
"""

import argparse
import hashlib
import sys
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import bnext
from tests.cases import CASES
from tests.operations import everything
from tests.sixteen import is_nan

DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


def shifted(x):
    """Let the mean be some 10,000 standard deviations away, or what the dtype can hold of it."""
    x += np.asarray(10_000, x.dtype)


def tiny(x):
    """Let most values be subnormal numbers."""
    x *= np.asarray(4 * float(ml_dtypes.finfo(x.dtype).tiny), x.dtype)


def broken(x):
    """Put an infinity and a NaN somewhere."""
    flat = x.reshape(-1)
    flat[flat.size // 3], flat[flat.size // 2] = np.inf, np.nan


VALUES = {"ordinary": lambda x: None, "shifted": shifted, "tiny": tiny, "broken": broken}


def digest(results):
    """Hash names, dtypes, shapes and bytes."""
    state = hashlib.blake2b(digest_size=8)
    for name, values in results.items():
        plain = np.array(values, order="C")
        nan = is_nan(plain) if plain.dtype.itemsize == 2 else np.isnan(plain)
        plain[nan] = np.nan
        state.update(f"{name} {plain.dtype} {plain.shape}".encode() + plain.tobytes())
    return state.hexdigest()


def results_of(case, dtype, change):
    """Everything that one case gives, and what a layer's running statistics become of it."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    parameters = np.float64 if dtype == np.float64 else np.float32
    values = np.ascontiguousarray(case.x(rng, dtype))
    change(values)
    x, dy = case.memory.place(values), case.dy(rng, dtype)
    weight, bias = case.weight(rng, parameters), case.bias(rng, parameters)
    results = everything(x, dy, weight, bias, channel_axis=case.channel_axis)
    layer = bnext.BatchNorm(case.channels, channel_axis=case.channel_axis, dtype=parameters)
    results["layer.y"] = layer(x)
    results["layer.mean"], results["layer.var"] = layer.running_mean, layer.running_var
    return results


def main():
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[bnext.get_num_threads()])
    numbers = parser.parse_args().threads
    for isa in bnext.show_config(mode="dicts")["isa"]["available"]:
        with bnext.use_isa(isa), np.errstate(all="ignore"):
            for dtype in DTYPES:
                for kind, change in VALUES.items():
                    for case in CASES:
                        hashes = {}
                        for threads in numbers:
                            bnext.set_num_threads(threads)
                            hashes[digest(results_of(case, dtype, change))] = None
                        print(f"{isa} {dtype} {kind} {case}: {' '.join(hashes)}")


if __name__ == "__main__":
    main()
