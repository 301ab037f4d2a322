"""What bnext makes of the same batches, beside what a library stored.

Every error is relative to the library's value, the largest over arrays and channels.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import bnext
from benchmarks.conventions.batches import CHANNELS, values_per_channel
from benchmarks.conventions.rule import Rule
from bnext.inference.conventions.libraries import CONVENTIONS

CONVERTED = 1e-6  # how near a converted layer comes to what the library stored
EXACT = 1e-12  # how near conversions come to each other, in float64
ULPS = 16  # of inference: of float32 or float64, of the largest term of y
EPS = {np.dtype(t): np.finfo(t).eps for t in (np.float32, np.float64)}


@dataclass
class Found:
    """The errors of a case after a number of steps; None where there is nothing to compare."""

    step: int
    own: float | None = None  # from the library's rule in float64: its rounding
    single: float | None = None  # of bnext's float32 layer by that rule: bnext's rounding
    float32: float | None = None  # of bnext's float32 layer by PyTorch's rule, converted
    exact: float | None = None  # of bnext's float64 layers, from the same rule
    to: float | None = None  # of PyTorch's layer, converted to the library
    back: float | None = None  # of the library's layer, converted to PyTorch
    y: float | None = None  # of inference, in ulps of the largest term
    trip: float | None = None  # from the library and back to it: what inference uses, the bits
    derived: float | None = None  # the same for arrays that are derived from these by a division
    on: float | None = None  # trained on from the step before this one
    file: str | None = None  # suffix of the library's file that was read
    notes: list[str] = field(default_factory=list)

    def is_far(self) -> bool:
        """Whether a conversion is farther from the library's arrays than `CONVERTED`."""
        return any((getattr(self, name) or 0.0) > CONVERTED for name in ("to", "back", "on"))

    def failures(self, differs: str = "", rounding: float = 0.0) -> list[str]:
        """Say what is too large; `differs` and `rounding` are the variant's."""
        found = list(self.notes)
        # What the library's own rounding does not explain is wrong.
        slack = max(CONVERTED, (self.own or 0.0) + 2 * EPS[np.dtype(np.float32)])
        if self.is_far() and self.single is not None and not self.single < self.own:
            found.append(f"bnext: {self.single:.2g} from the rule, the library only {self.own:.2g}")
        for name, most in (("to", slack), ("back", slack), ("on", slack), ("exact", EXACT)):
            value = getattr(self, name)
            if value is not None and not value <= most:
                found.append(f"{name}: {value:.2g}, at most {most:.2g}")
        if self.own is not None and not self.own <= max(1e-5, rounding):
            found.append(f"own: {self.own:.2g}, at most {max(1e-5, rounding):.2g}")
        if self.trip is not None and self.trip != 0:
            found.append(f"trip: {self.trip:.2g}, not 0")
        most = max(4 * EPS[np.dtype(np.float32)], rounding)
        if self.derived is not None and not self.derived <= most:
            found.append(f"derived: {self.derived:.2g}, at most {most:.2g}")
        if self.y is not None and (self.y <= ULPS) == bool(differs):
            found.append(f"y: {self.y:.2g} ulp, {'as before' if differs else f'at most {ULPS}'}")
        return found


def check(variant, stored, case, batches):
    """Compare one case after each of its steps."""
    record = CONVENTIONS[variant.convention]
    numbers = dict(variant.extra)
    facts = stored.facts["variants"][case.variant]
    if facts["momentum"] is not None or (record.cumulative and case.sizes != "given"):
        numbers.setdefault(record.momentum_name, facts["momentum"])
    numbers[record.eps_name] = facts["eps"]
    return _Comparison(variant, record, stored, case, batches, numbers).found()


class _Comparison:
    def __init__(self, variant, record, stored, case, batches, numbers):
        self.variant, self.record, self.stored, self.case = variant, record, stored, case
        self.batches, self.numbers = batches, numbers
        self.options = variant.options(case.rank)
        facts = stored.facts["variants"][case.variant]
        self.axis = -1 if facts["channels_last"] else 1
        self.count = None
        if case.sizes != "given":
            self.count = values_per_channel(case.sizes, case.rank)

    def found(self):
        steps = self.stored.steps(self.case)
        first = self.layer(steps[0])
        trained = None
        if self.case.sizes != "given":
            estimators = first.estimator, self.pytorch(first)
            trained = [self.trained(estimator, steps) for estimator in estimators]
            trained += [self.trained(estimator, steps, np.float32) for estimator in estimators]
            rule = self.rule(steps)
        all_found, before = [], None
        for step in steps:
            found = Found(step)
            for compare in (self.trip, self.inference, self.from_file):
                compare(found, step)
            if trained:
                layers = [each[step] for each in trained]
                self.conversions(found, step, *layers[:2])
                if not self.variant.copied:
                    self.exactness(found, step, rule[step], layers)
            if before:
                self.going_on(found, before, step)
            before = step if trained and not self.variant.copied else None
            all_found.append(found)
        return all_found

    # --- layers -----------------------------------------------------------------------------------

    def layer(self, step, **options):
        """Bnext's layer of what the library stored."""
        arrays = {**self.stored.arrays(self.case, step), **self.numbers}
        if step and "steps" not in options:
            options["steps"] = step
        return bnext.from_convention(
            self.variant.convention, arrays, channel_axis=self.axis, **self.options, **options
        )

    def to_library(self, bn, **options):
        """The arrays of bnext's layer in the library's convention."""
        values = bnext.to_convention(
            bn, self.variant.convention, ndim=self.case.rank, **self.options, **options
        )
        return {name: v for name, v in values.items() if name not in self.record.hyperparameters()}

    def theirs(self, step):
        """Arrays that the library stored, by the convention's own names."""
        found = {}
        for name, array in self.stored.arrays(self.case, step).items():
            for usual in self.record.prefixes:
                name = name.removeprefix(usual)
            found[self.record.aliases.get(name, name)] = array
        return found

    def pytorch(self, bn):
        """PyTorch's estimator of the same decay."""
        decay = bn.estimator.decay
        if decay is None:
            return bnext.Cumulative()
        return bnext.Exponential(decay=decay)

    def trained(self, estimator, steps, dtype=np.float64):
        """Layers after each number of steps of the library's batches."""
        bn = bnext.BatchNorm(CHANNELS, estimator=estimator, channel_axis=self.axis, dtype=dtype)
        bn.weight[...], bn.bias[...] = self.batches.weight, self.batches.bias
        layers = {}
        for number, x in enumerate(self.training(), 1):
            bn(x.astype(dtype))
            if number in steps:
                layers[number] = _copied(bn, dtype)
        return layers

    def rule(self, steps):
        """What the library would store without rounding, after each number of steps."""
        momentum = self.numbers.get(self.record.momentum_name, self.record.momentum)
        if momentum is not None and self.record.momentum_weighs == "new":
            momentum = 1 - momentum
        bessel = self.options.get("bessel", self.record.bessel)
        rule, stored = Rule(self.record.start, momentum, bessel), {}
        names = (self.record.names[2:], self.record.hidden)
        for number, x in enumerate(self.batches.training(self.case.rank, self.case.sizes), 1):
            rule.train(x)
            if number in steps:
                stored[number] = rule.stored(*names)
        return stored

    def training(self):
        for x in self.batches.training(self.case.rank, self.case.sizes):
            yield self.placed(x).astype(np.float64)

    def placed(self, x):
        return np.ascontiguousarray(np.moveaxis(x, 1, self.axis))

    # --- comparisons ------------------------------------------------------------------------------

    def conversions(self, found, step, own, pytorch):
        """Compare the library's arrays with bnext's by PyTorch's rule, both ways."""
        numbers = self.convertible(own, pytorch)
        if numbers is None:
            return
        known = {} if self.variant.copied else {"steps": step, **numbers}
        converted = self.to_library(pytorch, **known)
        found.to = _statistics_error(self.record, converted, self.theirs(step))
        back = self.layer(step, train_as="pytorch", **numbers)
        found.back = max(
            _error(back.running_mean, pytorch.running_mean),
            _error(back.running_var, pytorch.running_var),
        )

    def convertible(self, own, pytorch):
        """What an exact conversion from PyTorch's rule is told; None where there is none."""
        changes = own.estimator.bessel != pytorch.estimator.bessel
        if (changes and self.count is None) or self.record.start == "first":
            return None
        return {"count": self.count} if changes else {}

    def exactness(self, found, step, rule, layers):
        """Compare with the library's rule in float64: the library, and bnext's layers."""
        theirs = self.theirs(step)
        found.own = _distance(rule, theirs)
        own, pytorch, own_single, single = layers
        numbers = self.convertible(own, pytorch)
        found.exact = _distance(rule, self.to_library(own, steps=step))
        if numbers is None:
            converted = self.to_library(own_single, steps=step)
        else:
            converted = self.to_library(pytorch, steps=step, **numbers)
            found.exact = max(found.exact, _distance(rule, converted))
            converted = self.to_library(single, steps=step, **numbers)
        if theirs[self.record.names[3]].dtype == np.float32:
            found.single = _distance(rule, self.to_library(own_single, steps=step))
            found.float32 = _distance(rule, converted)
            # What it keeps of k batches beside the initial values, where the library has none.
            kept = 1 - own.decay**step if self.record.start == "debiased" else 1.0
            most = max(CONVERTED, 2 * EPS[np.dtype(np.float32)] * math.sqrt(step) / kept)
            if not found.float32 <= most:
                found.notes.append(f"float32: {found.float32:.2g}, at most {most:.2g}")

    def flags(self):
        """Names that the library keeps elsewhere than beside its arrays."""
        return {self.record.first_flag, self.record.unit_weight_flag} - {""}

    def inference(self, found, step):
        """Compare outputs of inference, in ulps of the terms that y is the sum of."""
        y = self.stored.output(self.case, step)
        if y is None:
            return
        bn = self.layer(step).eval()
        x = self.batches.test(self.case.rank)
        ours = np.moveaxis(bn(self.placed(x.astype(bn.dtype))), self.axis, 1)
        shape = (1, CHANNELS, *(1,) * (x.ndim - 2))
        weight = abs(np.asarray(bn.weight, np.float64) / np.sqrt(bn.running_var + bn.eps))
        terms = weight.reshape(shape) * (abs(x) + abs(bn.running_mean.reshape(shape)))
        terms += abs(bn.bias.reshape(shape))
        unit = max(EPS[y.dtype], EPS[bn.dtype])
        found.y = float((abs(ours - y.astype(np.float64)) / terms).max() / unit)

    def trip(self, found, step):
        """From the library to bnext, and back: the same arrays."""
        back = self.to_library(self.layer(step))
        theirs = self.theirs(step)
        found.trip = 0.0
        derived = self.record.names[2:] if self.record.divided else self.record.hidden or ()
        found.derived = 0.0 if derived else None
        for name, value in back.items():
            if name in derived and name in theirs:
                found.derived = max(found.derived, _error(value, theirs[name]))
            elif name in theirs:
                found.trip = max(found.trip, _error(value, theirs[name]))
            elif name not in (*self.record.counters, *self.flags()):
                found.notes.append(f"round trip: {name} is new")

    def from_file(self, found, step):
        """The layer that the library's own file gives: the same bits."""
        data = self.stored.file(self.case, step)
        if data is None:
            return
        found.file = self.stored.facts["variants"][self.case.variant]["suffix"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"layer{found.file}"
            path.write_bytes(data)
            try:
                (read,) = bnext.load_statistics(
                    path, self.variant.convention, channel_axis=self.axis, **self.options
                ).values()
            except (ImportError, ValueError) as error:
                found.notes.append(f"file: {error}")
                return
        given = self.layer(step)
        for name in ("weight", "bias", "running_mean", "running_var", "eps"):
            kind = np.float32 if name == "eps" else None  # as graphs keep it
            ours, theirs = (np.asarray(getattr(bn, name), kind) for bn in (read, given))
            if _error(ours, theirs) != 0:
                found.notes.append(f"file: another {name}")

    def going_on(self, found, before, step):
        """Train on from what the library stored before, in float64."""
        bn = _copied(self.layer(before), np.float64)
        for number, x in enumerate(self.training(), 1):
            if before < number <= step:
                bn(x)
        theirs = self.theirs(step)
        found.on = _statistics_error(self.record, self.to_library(bn), theirs)


def _copied(bn, dtype):
    """The same layer in another dtype."""
    other = bnext.BatchNorm(
        bn.num_features, eps=bn.eps, estimator=bn.estimator, channel_axis=bn.channel_axis,
        dtype=dtype,
    )  # fmt: skip
    other.load_state_dict(bn.state_dict())
    return other


def _statistics_error(record, ours, theirs):
    """The largest error of the statistics, hidden ones among them."""
    names = [*record.names[2:], *(record.hidden or ())]
    return max(_error(ours[name], theirs[name]) for name in names)


def _distance(rule, arrays):
    """The largest error of the statistics relative to the rule's, which are vectors."""
    return max(_error(np.ravel(arrays[name]), exact) for name, exact in rule.items())


def _error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return math.inf
    with np.errstate(all="ignore"):
        errors = abs(ours - theirs) / np.where(theirs == 0, 1.0, abs(theirs))
    return float(errors.max(initial=0.0))
