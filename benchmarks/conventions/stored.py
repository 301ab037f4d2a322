"""What a library stored: the file that its runner wrote."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One variant on batches of one rank and size."""

    variant: str
    rank: int
    sizes: str  # "given": nothing was trained


class Stored:
    """Arrays by case and step."""

    def __init__(self, path: Any) -> None:
        with np.load(path) as file:
            self.facts: dict[str, Any] = json.loads(str(file["facts"]))
            self._arrays = {k: file[k] for k in file.files if k != "facts"}

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that ran."""
        found: dict[str, str] = self.facts["versions"]
        return found

    def cases(self) -> list[Case]:
        """Every case, in the order of the file."""
        keys = [key.split("|") for key in self._arrays]
        return list(dict.fromkeys(Case(v, int(rank), sizes) for v, rank, sizes, _, _ in keys))

    def steps(self, case: Case) -> list[int]:
        """The numbers of batches after which something was stored."""
        start = f"{case.variant}|{case.rank}|{case.sizes}|"
        found = (key[len(start) :].split("|")[0] for key in self._arrays if key.startswith(start))
        return sorted({int(step) for step in found})

    def arrays(self, case: Case, step: int) -> dict[str, np.ndarray]:
        """The stored arrays by the library's names, without `y` and `file`."""
        start = f"{case.variant}|{case.rank}|{case.sizes}|{step}|"
        found = {k[len(start) :]: v for k, v in self._arrays.items() if k.startswith(start)}
        return {k: v for k, v in found.items() if k not in ("y", "file")}

    def file(self, case: Case, step: int) -> bytes | None:
        """The file that the library wrote."""
        found = self._arrays.get(f"{case.variant}|{case.rank}|{case.sizes}|{step}|file")
        return None if found is None else found.tobytes()

    def output(self, case: Case, step: int) -> np.ndarray | None:
        """The output of inference, channels at axis 1."""
        return self._arrays.get(f"{case.variant}|{case.rank}|{case.sizes}|{step}|y")
