"""The handwritten digits that scikit-learn ships, with a part held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnext.demo.layers import Array
from bnext.demo.loss import Labels

TEST_EXAMPLES = 360
TRAIN_EXAMPLES = 1797 - TEST_EXAMPLES


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 8, 8), float32 in [0, 1], and their labels of shape (N,)."""

    train_images: Array
    train_labels: Labels
    test_images: Array
    test_labels: Labels


def split_digits(seed: int) -> Digits:
    """Load the 1,797 digits and hold out `TEST_EXAMPLES`, the same share of every digit."""
    # Imported here, so that the rest of the demo runs without the extra.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        digits.target,
        test_size=TEST_EXAMPLES,
        stratify=digits.target,
        random_state=seed,
    )
    return Digits(train_images, train_labels, test_images, test_labels)
