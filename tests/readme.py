"""The Python blocks of README.md and of the site's pages, and their types.

``python -m tests.readme`` checks the types.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
# The page about small batches has layers of other types in one list, and is run alone.
PAGES = [
    path
    for folder in ("guide", "explanation")
    for path in sorted((ROOT / "docs" / folder).glob("*.md"))
    if path.name != "small_batches.md" and "```python" in path.read_text(encoding="utf-8")
]

# Errors count in the program, as they do where bnext is installed.
CHECKERS = {
    "mypy": ["--strict", "--ignore-missing-imports", "--no-incremental", "--follow-imports=silent"],
    "pyright": ["--pythonpath", sys.executable],
}

# What calls give, and what methods return: the type that came in. (After README.md's blocks.)
TYPES = '''
from typing_extensions import assert_type


class Mine(bnext.BatchNorm2d):
    """A layer of a user."""


mine = Mine(3)
assert_type(mine.train(), Mine)
assert_type(mine.eval(), Mine)
assert_type(mine.freeze(affine=False), Mine)
assert_type(mine.unfreeze(), Mine)
assert_type(mine.to(x), Mine)

single: np.typing.NDArray[np.float32] = rng.standard_normal((4, 3), dtype=np.float32)
assert_type(mine(single), np.typing.NDArray[np.float32])
assert_type(mine.backward(single), np.typing.NDArray[np.float32])
assert_type(
    mine.backward(single, residual_grad=True),
    tuple[np.typing.NDArray[np.float32], np.typing.NDArray[np.float32]],
)
assert_type(bnext.normalize(single, [0.0] * 3, [1.0] * 3), np.typing.NDArray[np.float32])
assert_type(bnext.batch_norm_forward(single)[0], np.typing.NDArray[np.float32])
of_x, of_weight, of_bias = bnext.batch_norm_backward(single, single, saved)
assert_type(of_x, np.typing.NDArray[np.float32])
of_x, of_weight, of_bias, of_residual = bnext.batch_norm_backward(
    single, single, saved, residual=single
)
assert_type(of_residual, np.typing.NDArray[np.float32])
assert_type(bnext.recompute(single, saved), np.typing.NDArray[np.float32])
assert_type(bnext.moments(single), bnext.Moments)
'''

TYPES_OF_TORCH = """
t = torch.ones(2, 3, 4, 5)
assert_type(mine(t), torch.Tensor)
assert_type(bnext.batch_norm_backward(t, t, saved), tuple[torch.Tensor, torch.Tensor, torch.Tensor])
assert_type(bnext.torch.convert(model), torch.nn.Sequential)
assert_type(bnext.torch.revert(model), torch.nn.Sequential)
"""


def blocks(document=README):
    """Each block as it stands, after as many empty lines as put it at its line of the file."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def program(document=README):
    """All of them as one program whose lines are those of the file."""
    lines = []
    for block in blocks(document):
        lines += block.splitlines()[len(lines) :]
    return "\n".join(lines) + "\n"


def needs(block):
    """What a block needs besides NumPy."""
    return {name for name in ("torch", "cuda") if re.search(rf"import {name}|\"{name}\"", block)}


def check_types(checker, package, folder, more=""):
    """Check, strictly, what users write after the documents in programs of their own.

    `package` is the folder that bnext is in, `folder` one for the programs; README.md's ends with
    `more`. Returns the exit status and the output.
    """
    has_torch = importlib.util.find_spec("torch") is not None
    types = TYPES + (TYPES_OF_TORCH if has_torch else "") + more
    (folder / "readme.py").write_text(program() + types, encoding="utf-8")
    for page in PAGES:
        name = f"{page.parent.name}_{page.stem}.py"
        (folder / name).write_text(program(page), encoding="utf-8")
    settings = {"reportMissingImports": has_torch, "extraPaths": [str(package)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    result = subprocess.run(
        [sys.executable, "-m", checker, *CHECKERS[checker], *(["."] * (checker == "mypy"))],
        cwd=folder, env=os.environ | {"MYPYPATH": str(package)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout + result.stderr


def main():
    """Check with every checker; 1 if one finds something."""
    wrong = 0
    for checker in CHECKERS:
        with tempfile.TemporaryDirectory() as folder:
            status, output = check_types(checker, ROOT / "python", pathlib.Path(folder))
        if status:
            wrong = 1
            print(f"README.md and docs/ under {checker}:\n{output}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
