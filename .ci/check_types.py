"""Checks what part of the public names has complete types: ``python .ci/check_types.py 95``.

Names of other libraries count only by what bnext says of them (`--ignoreexternal`): PyTorch and JAX
have names without types.
"""

import json
import subprocess
import sys

SHOWN = 40


def main(least):
    """Ask pyright, and show what it finds incomplete where there is too much of it."""
    command = [sys.executable, "-m", "pyright", "--verifytypes", "bnext", "--ignoreexternal"]
    done = subprocess.run([*command, "--outputjson"], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        sys.exit(f"pyright printed no figures:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    score = 100 * found["completenessScore"]
    incomplete = [s for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    for symbol in incomplete[:SHOWN]:
        said = "; ".join(d["message"].replace("\n", " ") for d in symbol["diagnostics"])
        print(f"{symbol['name']}: {said}")
    print(f"types: {score:.1f} % of public names are complete, {len(incomplete)} are not")
    if score < least:
        sys.exit(f"expected at least {least} %")


if __name__ == "__main__":
    main(float(sys.argv[1]))
