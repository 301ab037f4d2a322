"""Checks the numbers of ``python -m bnext statistics --csv``: all there, and as the page says.

python .ci/check_statistics.py FILE RUNS
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

SIZES = [2, 4, 8, 16, 32, 64, 128, 256, 512]
LAYERS = {"dense": 4, "conv": 3}
METHODS = 24  # twelve, with Bessel's correction and without
LEAST_ACCURACY = 0.94  # with exact statistics, of batches of eight and more

runs = int(sys.argv[2])
with Path(sys.argv[1]).open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
expected = sum(LAYERS.values()) * len(SIZES) * runs * METHODS
if len(rows) != expected:
    sys.exit(f"expected {expected} rows, got {len(rows)}")

values = defaultdict(list)
for row in rows:
    name = f"{row['method']} {row['decay']}".strip()
    if row["bessel"] == "yes":
        for what in ("accuracy", "loss", "distance"):
            values[row["network"], int(row["batch_size"]), name, what].append(float(row[what]))
mean = {key: sum(of) / len(of) for key, of in values.items()}


def claims(network: str, size: int) -> dict[str, bool]:
    """Give what should hold at one batch size, and whether it does."""
    accuracy, loss, distance = (
        {name: mean[network, size, name, what] for *at, name, _ in mean if at == [network, size]}
        for what in ("accuracy", "loss", "distance")
    )
    return {
        "exact is at a distance of 0 from itself": distance["exact"] == 0,
        "one pass afterwards is closer than the average with 0.9 on the way": (
            distance["pooled"] < distance["exponential 0.9"]
        ),
        "networks trained on batches of eight and more do well with exact statistics": (
            size < 8 or accuracy["exact"] > LEAST_ACCURACY
        ),
        "in 440 steps and less, an average with 0.999 is far off unless debiased": (
            size < 32 or loss["exponential 0.999"] > 2 * loss["debiased 0.999"]
        ),
    }


wrong = [
    f"{network}, {size}: {claim}"
    for network in LAYERS
    for size in SIZES
    for claim, true in claims(network, size).items()
    if not true
]
if wrong:
    sys.exit("not so:\n" + "\n".join(wrong))
print(f"{len(rows)} rows, as expected, for {len(LAYERS)} networks at {len(SIZES)} batch sizes")
