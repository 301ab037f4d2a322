"""The polynomials of csrc/core/smooth_activations.hpp, fitted.

    python benchmarks/fit_activations.py [--check]

Prints, for float and for double, each table of coefficients as the header has it, lowest power
first, and above it the largest relative error of the function, as a power of two, when its
polynomial has these coefficients and is evaluated exactly. With --check it prints nothing but the
errors, and exits with 1 if the header lacks one of the coefficients. Needs mpmath, and takes about
a minute.

Each polynomial is the minimax one (Remez's exchange): its weighted error has the same size, and
alternating signs, at one place more than it has coefficients.

- exponential: p of exp(r) = 1 + r + r^2 p(r), |r| <= ln(2)/2. The relative error of exp(r) - 1 is
  minimized.
- tail: s of Phi(-t) = exp(-t^2/2) s(y) / (t + k), y = 1 - 2k/(t + k), 0 <= t <= last. Phi is the
  normal distribution's function, and s is smooth: k/2 at t = 0, and 1/sqrt(2 pi) in the end.

Besides it prints numbers that have two parts: ln(2), and of gelu_tanh the linear coefficient,
2 sqrt(2/pi), and the cubic one, 0.044715 times that.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp
import numpy as np

HEADER = Path(__file__).parents[1] / "csrc" / "core" / "smooth_activations.hpp"
GRID = 1501  # places at which errors are looked at; odd, so that 0 is none
Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Table:
    """A polynomial of `terms` coefficients near f on [first, last], errors times weight."""

    name: str
    dtype: type
    terms: int
    first: mp.mpf
    last: mp.mpf
    f: Function
    weight: Function


def exponential(dtype: type, terms: int) -> Table:
    # A little more than half of ln(2): the nearest multiple is found with rounding errors.
    end = mp.log(2) / 2 * mp.mpf("1.0001")
    return Table(
        "exponential",
        dtype,
        terms,
        -end,
        end,
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / mp.expm1(r),
    )


def tail(dtype: type, terms: int, k: str, last: str) -> Table:
    shift = mp.mpf(k)

    def smooth(y: mp.mpf) -> mp.mpf:
        t = 2 * shift / (1 - y) - shift
        return mp.exp(t * t / 2) * mp.erfc(t / mp.sqrt(2)) / 2 * (t + shift)

    return Table(
        "tail",
        dtype,
        terms,
        mp.mpf(-1),
        1 - 2 * shift / (mp.mpf(last) + shift),
        smooth,
        lambda y: 1 / smooth(y),
    )


def fitted(table: Table) -> list[mp.mpf]:
    """The coefficients of the minimax polynomial."""
    middle, half = (table.first + table.last) / 2, (table.last - table.first) / 2
    places = [middle - half * mp.cos(mp.pi * i / GRID) for i in range(GRID + 1)]
    values = [table.f(x) for x in places]
    weights = [abs(table.weight(x)) for x in places]
    count = table.terms + 1
    chosen = [round(GRID * (i + 0.5) / count) for i in range(count)]
    for _ in range(30):
        system, right = mp.matrix(count, count), mp.matrix(count, 1)
        for row, i in enumerate(chosen):
            for power in range(table.terms):
                system[row, power] = places[i] ** power
            system[row, table.terms] = (-1) ** row / weights[i]
            right[row] = values[i]
        *coefficients, level = mp.lu_solve(system, right)
        errors = [
            w * (value - mp.polyval(coefficients[::-1], x))
            for x, value, w in zip(places, values, weights, strict=True)
        ]
        chosen = extremes(errors, count)
        if max(map(abs, errors)) < abs(level) * mp.mpf("1.001"):
            return coefficients
    raise RuntimeError(f"{table.name}: no convergence")


def extremes(errors: list[mp.mpf], count: int) -> list[int]:
    """The places of the largest error between any two changes of sign, `count` in a row."""
    found: list[int] = []
    for i, error in enumerate(errors):
        if not error:
            continue
        if not found or (error > 0) != (errors[found[-1]] > 0):
            found.append(i)
        elif abs(error) > abs(errors[found[-1]]):
            found[-1] = i
    while len(found) > count:
        found.pop(0 if abs(errors[found[0]]) < abs(errors[found[-1]]) else -1)
    if len(found) < count:
        raise RuntimeError("the error changes its sign too seldom")
    return found


def largest_error(table: Table, rounded: list[float]) -> mp.mpf:
    """Of the polynomial with the coefficients as the table has them."""
    exact = [mp.mpf(c) for c in rounded[::-1]]
    places = [table.first + (table.last - table.first) * i / GRID for i in range(GRID + 1)]
    return max(abs(table.weight(x) * (table.f(x) - mp.polyval(exact, x))) for x in places)


def text(coefficient: float, dtype: type) -> str:
    return str(dtype(coefficient)).replace("e-0", "e-").replace("+", "")


TABLES = [
    exponential(np.float32, 5),
    tail(np.float32, 10, "3.53125", "14.75"),
    exponential(np.float64, 10),
    tail(np.float64, 24, "3.9375", "39"),
]


def split(x: mp.mpf, bits: int, dtype: type) -> list[str]:
    """The first bits of x, and the rest."""
    unit = mp.mpf(2) ** (mp.floor(mp.log(x, 2)) + 1 - bits)
    high = mp.nint(x / unit) * unit
    return [text(float(dtype(mp.nstr(part, 30))), dtype) for part in (high, x - high)]


def constants() -> dict[str, list[str]]:
    """Numbers in two parts, so many bits in the first of them that sums or products are exact."""
    found = {}
    slope = 2 * mp.sqrt(2 / mp.pi)
    for dtype, of_ln2, of_slope, all_bits in ((np.float32, 15, 21, 24), (np.float64, 42, 48, 53)):
        name = np.dtype(dtype).name
        found[f"ln(2), {name}"] = split(mp.log(2), of_ln2, dtype)
        found[f"linear, {name}"] = split(slope, of_slope, dtype)
        found[f"cubic, {name}"] = split(slope * mp.mpf("0.044715"), all_bits, dtype)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    mp.mp.dps = 60
    numbers = set(re.findall(r"-?\d[\w.+-]*", HEADER.read_text())) if check else set()
    missing = []
    for table in TABLES:
        rounded = [float(table.dtype(mp.nstr(c, 40))) for c in fitted(table)]
        error = mp.log(largest_error(table, rounded), 2)
        texts = [text(c, table.dtype) for c in rounded]
        print(f"// {table.name}, {np.dtype(table.dtype)}: 2^{mp.nstr(error, 4)}")
        if check:
            missing += [t for t in texts if t not in numbers]
        else:
            print("{" + ", ".join(texts) + "}")
    for name, parts in constants().items():
        if check:
            missing += [part for part in parts if part not in numbers]
        else:
            print(f"// {name}\n{' + '.join(parts)}")
    for t in missing:
        print(f"{HEADER.name} lacks {t}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
