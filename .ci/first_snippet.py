"""The first snippet of README.md's "Use", run as it stands against whatever bnext is installed."""

import pathlib
import re

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
(block, *_) = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
exec(compile(block, str(README), "exec"), {"__name__": "snippet"})
