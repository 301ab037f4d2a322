"""How long the tests wait: only for what would never come. A busy machine breaks none of these.

What is fast or slow is for the benchmarks. Where a test is about waiting, it counts calls, bytes or
processor time, or reads from the text of an error what came first.
"""

import os

# Seconds after which a process or a thread is said to hang. pyproject.toml has the limit of a test.
WIDE = 600.0
# A time-out that is never to be seen: a test that waits for it has failed before.
NEVER = 2 * WIDE
# A test with a number of rounds that the environment sets.
TEST = 1200

# A factor for what is done again and again, to see whether anything is left behind. Other than 1,
# shapes, sizes and offsets meet in more ways: each two of them at least, or all.
SOAK = int(os.environ.get("BNEXT_SOAK", "1"))
