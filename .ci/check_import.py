"""Checks that ``import bnext`` takes at most 1.2 times the processor time of ``import numpy``."""

import subprocess
import sys

MOST = 1.2
ROUNDS = 15
PROGRAM = """
import sys, time
begin = time.process_time()
import {}
print(time.process_time() - begin)
"""


def seconds(module):
    """Measure one import, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    """Take turns, and compare the quickest of each; a busy machine gets three tries."""
    quickest = {"numpy": float("inf"), "bnext": float("inf")}
    for _ in range(3):
        for _ in range(ROUNDS):
            for module in quickest:
                quickest[module] = min(quickest[module], seconds(module))
        ratio = quickest["bnext"] / quickest["numpy"]
        print(
            f"import numpy {1e3 * quickest['numpy']:.1f} ms, "
            f"import bnext {1e3 * quickest['bnext']:.1f} ms: {ratio:.2f}"
        )
        if ratio <= MOST:
            return
    sys.exit(f"expected import bnext in at most {MOST} times the time of import numpy")


if __name__ == "__main__":
    main()
