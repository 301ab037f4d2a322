"""Checks what the main job printed: accuracy with normalization, failure without it."""

import re
import sys
from pathlib import Path

LEAST_ACCURACY = 96.0  # per cent, on the held-out digits, in inference mode

text = Path(sys.argv[1]).read_text(encoding="utf-8")
with_bn = [float(a) for a in re.findall(r"^ *[\d.]+ +with +([\d.]+)%", text, re.MULTILINE)]
without = re.findall(r"^ *([\d.]+) +without +(\S+) .*?(\w[\w ,]*)$", text, re.MULTILINE)
if len(with_bn) != 4 or len(without) != 4:
    sys.exit(f"expected two networks at two rates, got {with_bn} with and {without} without")
if min(with_bn) < LEAST_ACCURACY:
    sys.exit(f"expected at least {LEAST_ACCURACY} % with normalization, got {with_bn}")
large = max(float(rate) for rate, _, _ in without)
failed = [outcome for rate, _, outcome in without if float(rate) == large]
if any(outcome.strip() == "trained" for outcome in failed):
    sys.exit(f"expected the plain networks to fail at rate {large}, got {failed}")
print(f"with normalization {with_bn} %; without, at rate {large}: {failed}")
