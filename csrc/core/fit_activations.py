"""The rational functions of csrc/core/smooth_activations.hpp, fitted.

    python csrc/core/fit_activations.py [--check]

Prints, for float and for double, each table of coefficients as the header has it, lowest power
first, and above it the largest relative error of what is fitted, as a power of two, when it has
these coefficients and is evaluated exactly. With --check it prints nothing but the errors, and
exits with 1 if the header lacks one of the coefficients. Needs mpmath, and takes about a minute.

Each function is a ratio of polynomials, A / B, and the last coefficient of B is 1. It is the
minimax one (Remez's exchange): its error has the same size, and alternating signs, at one place
more than it has coefficients. These are rounded one after the other.

- half argument: A(u) / B(u) = r / tanh(r/2), u = r^2, |r| <= ln(2)/2. So exp(r) is
  (A + r B) / (A - r B). The first coefficient of A is twice that of B, and tanh(r) is exact beside
  0.
- less one: A(x) = (exp(-x/2) - 1) / x, |x| <= ln(2). The relative error of exp(-x/2) is minimized.
- tail: A(t) / B(t) = (2 + k t - 1/R) / t, 0 <= t <= last, of R = exp(t^2/2) Phi(-t) and k,
  sqrt(2 pi) rounded. Phi is the normal distribution's function. So R is B / (k t B + 2 B - t A),
  and its relative error is minimized.

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

HEADER = Path(__file__).with_name("smooth_activations.hpp")
GRID = 1501  # steps between places at which errors are looked at; odd: half way is no place
Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Table:
    """A ratio of polynomials of these degrees near f on [first, last]; A's coefficients come first.

    Its error is multiplied by `weight`.
    """

    name: str
    dtype: type
    above: int
    below: int
    first: mp.mpf
    last: mp.mpf
    f: Function
    weight: Function
    twice: bool = False  # whether the first coefficient above is twice that below

    @property
    def terms(self) -> int:
        """The number of coefficients but for the last below, which is 1."""
        return self.above + 1 + self.below

    def rounded(self, x: mp.mpf) -> mp.mpf:
        return mp.mpf(float(self.dtype(mp.nstr(x, 40))))

    def places(self) -> list[mp.mpf]:
        """More of them at both ends, and at the first one still more: there tails bend."""
        power = 2 if self.first else 4
        steps = [mp.sin(mp.pi * i / (2 * GRID)) ** power for i in range(GRID + 1)]
        return [self.first + (self.last - self.first) * step for step in steps]

    def polynomials(self, coefficients: list[mp.mpf]) -> tuple[list[mp.mpf], list[mp.mpf]]:
        return coefficients[: self.above + 1], [*coefficients[self.above + 1 :], mp.mpf(1)]

    def ratio(self, coefficients: list[mp.mpf], x: mp.mpf) -> mp.mpf:
        a, b = self.polynomials(coefficients)
        return mp.polyval(a[::-1], x) / mp.polyval(b[::-1], x)


# A little more than half of ln(2): the nearest multiple is found with rounding errors.
END = mp.log(2) / 2 * mp.mpf("1.0001")


def half_argument(dtype: type, terms: int) -> Table:
    def f(u: mp.mpf) -> mp.mpf:
        r = mp.sqrt(u)
        return r / mp.tanh(r / 2) if r else mp.mpf(2)

    first, last = mp.mpf(0), END**2
    return Table(
        "half argument", dtype, terms - 1, terms - 1, first, last, f, lambda u: 1 / f(u), twice=True
    )


def less_one(dtype: type, terms: int) -> Table:
    def f(x: mp.mpf) -> mp.mpf:
        return mp.expm1(-x / 2) / x if x else mp.mpf(-1) / 2

    first, last = -2 * END, 2 * END
    return Table("less one", dtype, terms - 1, 0, first, last, f, lambda x: x * mp.exp(x / 2))


def tail(dtype: type, terms: int, last: str) -> Table:
    slope = mp.mpf(float(dtype(mp.nstr(mp.sqrt(2 * mp.pi), 40))))

    def scaled(t: mp.mpf) -> mp.mpf:
        return mp.exp(t * t / 2) * mp.erfc(t / mp.sqrt(2)) / 2

    def f(t: mp.mpf) -> mp.mpf:
        return (2 + slope * t - 1 / scaled(t)) / t if t else slope - mp.sqrt(8 / mp.pi)

    first, last = mp.mpf(0), mp.mpf(last)
    return Table("tail", dtype, terms - 1, terms, first, last, f, lambda t: scaled(t) * t)


def fitted(table: Table) -> list[mp.mpf]:
    """The coefficients of the minimax ratio."""
    places = table.places()
    values, weights = [table.f(x) for x in places], [table.weight(x) for x in places]
    count = table.terms + 1
    chosen = [round(GRID * (i + 0.5) / count) for i in range(count)]
    level = mp.mpf(0)
    coefficients = [mp.mpf(0)] * table.terms
    for _ in range(60):
        # A = (f + level / weight) B at the places, levels of alternating signs: by Newton's method,
        # since the level is an unknown as well.
        for _ in range(8):
            system, right = mp.matrix(count, count), mp.matrix(count, 1)
            _, b = table.polynomials(coefficients)
            for row, i in enumerate(chosen):
                x, step_up = places[i], (-1) ** row / weights[i]
                wanted = values[i] + level * step_up
                for k in range(table.above + 1):
                    system[row, k] = x**k
                for k in range(table.below):
                    system[row, table.above + 1 + k] = -wanted * x**k
                system[row, count - 1] = -step_up * mp.polyval(b[::-1], x)
                right[row] = wanted * x**table.below
            *coefficients, step = mp.lu_solve(system, right)
            level += step
            if abs(step) < abs(level) * mp.mpf("1e-9"):
                break
        errors = errors_of(table, coefficients)
        chosen = extremes(errors, count)
        if max(map(abs, errors)) < abs(level) * mp.mpf("1.001"):
            return coefficients
    raise RuntimeError(f"{table.name}: no convergence")


def errors_of(table: Table, coefficients: list[mp.mpf]) -> list[mp.mpf]:
    return [(table.ratio(coefficients, x) - table.f(x)) * table.weight(x) for x in table.places()]


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


def rounded(table: Table, exact: list[mp.mpf]) -> list[mp.mpf]:
    """The coefficients as the table has them: rounded one after the other, from the first ones of A
    and B on. What this does to the ratio is made good by those that are left, by least squares.
    """
    places = table.places()[::10]
    a, b = table.polynomials(exact)
    # By how much the weighted ratio grows where a coefficient does, relatively.
    weighted = [table.weight(x) * table.ratio(exact, x) for x in places]
    columns = [[x**k / mp.polyval(a[::-1], x) for x in places] for k in range(table.above + 1)]
    columns += [[-(x**k) / mp.polyval(b[::-1], x) for x in places] for k in range(table.below)]
    growth = np.array(
        [
            [float(c * g * w) for g, w in zip(column, weighted, strict=True)]
            for c, column in zip(exact, columns, strict=True)
        ]
    ).T
    first_below = table.above + 1
    order = sorted(range(table.terms), key=lambda k: (k % first_below, k < first_below))
    result, error = list(exact), np.zeros(len(places))
    for place, k in enumerate(order):
        left = order[place:]
        changes = np.linalg.lstsq(growth[:, left], -error, rcond=None)[0]
        wanted = exact[k] * (1 + mp.mpf(changes[0]))
        result[k] = 2 * result[first_below] if table.twice and k == 0 else table.rounded(wanted)
        error += growth[:, k] * float(result[k] / exact[k] - 1)
    return result


def largest_error(table: Table, coefficients: list[mp.mpf]) -> mp.mpf:
    return max(map(abs, errors_of(table, coefficients)))


def text(coefficient: float, dtype: type) -> str:
    return str(dtype(coefficient)).replace("e-0", "e-").replace("+", "")


TABLES = [
    half_argument(np.float32, 2),
    less_one(np.float32, 6),
    tail(np.float32, 4, "14.75"),
    half_argument(np.float64, 3),
    less_one(np.float64, 12),
    tail(np.float64, 10, "39"),
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
        coefficients = rounded(table, fitted(table))
        error = mp.log(largest_error(table, coefficients), 2)
        texts = [text(float(c), table.dtype) for c in coefficients]
        print(f"// {table.name}, {np.dtype(table.dtype)}: 2^{mp.nstr(error, 4)}")
        if check:
            missing += [t for t in texts if t not in numbers]
        else:
            for some in (texts[: table.above + 1], texts[table.above + 1 :]):
                if some:
                    print("{" + ", ".join(some) + "}")
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
