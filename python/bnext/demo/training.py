"""One training run by mini-batch gradient descent, and the record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt

from bnext.demo.data import TRAIN_EXAMPLES, Digits
from bnext.demo.layers import Array
from bnext.demo.loss import Labels, accuracy, softmax_cross_entropy
from bnext.demo.networks import CLASSES, Kind, Network

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CHANCE_LOSS = float(np.log(CLASSES))


@dataclass(frozen=True)
class Case:
    """The terms of one run."""

    kind: Kind
    batch_size: int
    rate: float
    epochs: int
    seed: int  # of the initial weights, and of the order of the examples
    normalized: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """The number of mini-batches in an epoch."""
        return TRAIN_EXAMPLES // self.batch_size


@dataclass
class Record:
    """The measurements of one run; the lists have one entry per step."""

    case: Case
    # Training loss of each mini-batch, the last one not finite if the run diverged.
    losses: list[float] = field(default_factory=list)
    # `QUANTILES` of the input of the last hidden sigma over the batch and all units.
    quantiles: list[npt.NDArray[np.float64]] = field(default_factory=list)
    # Time of a whole step (forward, backward, update), and of its calls into bnext.
    step_seconds: list[float] = field(default_factory=list)
    normalization_seconds: list[float] = field(default_factory=list)
    diverged: bool = False  # the loss overflowed, which ended the run
    # On the held-out images in inference mode; NaN if the run diverged.
    test_accuracy: float = float("nan")
    test_loss: float = float("nan")

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last epoch; NaN if the run diverged."""
        if self.diverged:
            return float("nan")
        return float(np.mean(self.losses[-self.case.steps_per_epoch :]))

    @property
    def outcome(self) -> str:
        """What happened, in a few words."""
        if self.diverged:
            return f"diverged at step {len(self.losses)}"
        if self.final_loss < 0.95 * CHANCE_LOSS:
            return "trained"
        if max(self.losses) > 10 * CHANCE_LOSS:
            return "exploded, at chance"
        return "stuck at chance"


def batches(case: Case, digits: Digits) -> Iterator[tuple[Array, Labels]]:
    """Draw images and labels of each mini-batch, in a new order every epoch.

    An epoch leaves out the examples that do not fill a batch, so that all batches have one size.
    """
    generator = np.random.default_rng(case.seed)
    examples = len(digits.train_labels)
    for _ in range(case.epochs):
        order = generator.permutation(examples)
        for start in range(0, examples - case.batch_size + 1, case.batch_size):
            batch = order[start : start + case.batch_size]
            yield digits.train_images[batch], digits.train_labels[batch]


def train(network: Network, case: Case, digits: Digits, on_step: Callable[[float], None]) -> Record:
    """Train a fresh `network` on the training images and test it on the others.

    `on_step` is called after every step with its loss.
    """
    record = Record(case)
    network.train()
    # A plain network at a large rate overflows: a result to record, without warnings.
    with np.errstate(all="ignore"):
        for images, labels in batches(case, digits):
            _step(network, images, labels, record)
            on_step(record.losses[-1])
            if not np.isfinite(record.losses[-1]):
                record.diverged = True
                return record
        record.test_accuracy, record.test_loss = evaluate(network, digits)
    return record


def _step(network: Network, images: Array, labels: Labels, record: Record) -> None:
    """Forward, backward, update; the clock runs for these alone."""
    before = sum(layer.seconds for layer in network.normalizations())
    start = perf_counter()
    loss = network.step(images, labels, record.case.rate)
    record.step_seconds.append(perf_counter() - start)
    after = sum(layer.seconds for layer in network.normalizations())
    record.normalization_seconds.append(after - before)
    record.losses.append(loss)
    record.quantiles.append(np.quantile(network.last_relu().x, QUANTILES))


def evaluate(network: Network, digits: Digits) -> tuple[float, float]:
    """Give accuracy and loss on the held-out images, in inference mode, and leave it on."""
    network.train(False)
    logits = network.forward(digits.test_images)
    loss, _ = softmax_cross_entropy(logits, digits.test_labels)
    return accuracy(logits, digits.test_labels), loss
