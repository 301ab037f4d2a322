"""The board of a roll call in a key-value store of torch.distributed."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from bnext.groups.roll_call import ROLL, Board

__all__ = ["Keys", "StoreBoard"]


class Keys:
    """Names of the keys that a board of one of `size` ranks makes: all begin with `prefix`."""

    def __init__(self, prefix: str, rank: int, size: int) -> None:
        self.prefix: str = prefix
        self.rank: int = rank
        self.size: int = size
        self.bells: set[str] = set()  # that this rank has rung

    def __call__(self, name: object) -> str:
        """Give the key of a rank's note, or of a bell."""
        return f"{self.prefix}/{name}"


class StoreBoard(Board):
    """Notes under some keys of a store.

    A store may be a process far away, which can die, or stop and never answer. So requests are made
    in a thread, which lasts as long as there are any, and whose answers are taken when they come.
    """

    def __init__(self, store: Any, keys: Keys) -> None:
        self._store = store
        self._key = keys
        self._others = [other for other in range(keys.size) if other != keys.rank]
        self._process = os.getpid()
        self._notes: dict[int, str] = {}
        self._lock = threading.Lock()
        self._requests: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._reading = False
        _boards.add(self)

    def write(self, note: str, bell: str) -> None:
        """See `Board`."""
        keys, values = [self._key(self._key.rank), self._key(bell)], [note, "rung"]
        self._key.bells.add(bell)

        def request() -> None:
            # In one message: another rank may end the store before a second one.
            if self._store.has_extended_api():
                self._store.multi_set(keys, values)
            else:
                for key, value in zip(keys, values, strict=True):
                    self._store.set(key, value)

        self._ask(request)

    def read(self, bells: list[str], patience: float = 0.0) -> dict[int, str]:
        """See `Board`."""

        def request() -> None:
            self._reading = False
            if any(self._store.check([self._key(bell)]) for bell in bells):
                keys = {other: self._key(other) for other in self._others}
                self._notes = {
                    other: self._store.get(key).decode()
                    for other, key in keys.items()
                    if self._store.check([key])
                }

        if not self._reading:
            self._reading = True
            self._ask(request)
        if patience:
            self.is_settled(patience)
        return self._notes

    def is_settled(self, patience: float = 0.0) -> bool:
        """See `Board`."""
        thread = self._thread
        if thread is not None and patience:
            thread.join(patience)
        return self._thread is None and not self.broken

    def retire(self) -> None:
        """Take the keys out of the store, once all ranks have called this."""
        store, key = self._store, self._key

        def request() -> None:
            if store.add(key("retired"), 1) < key.size:
                names: Iterable[object] = key.bells - {ROLL}  # for ranks that still wait
            else:
                names = [*range(key.size), *key.bells, ROLL, "retired"]
            for name in names:
                store.delete_key(key(name))

        self._ask(request)

    def _ask(self, request: Callable[[], None]) -> None:
        if os.getpid() != self._process:  # a forked child has the same socket, and half a lock
            return
        with self._lock:
            if self.broken:
                return
            self._requests.append(request)
            if self._thread is None:
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._thread = thread  # only now: Ctrl-C may come at any point

    def _work(self) -> None:
        while True:
            with self._lock:
                if self.broken or not self._requests:
                    self._thread = None
                    return
                request = self._requests.pop(0)
            try:
                request()
            except Exception:  # whatever a store raises: it will not come back
                self.broken = True


_boards: weakref.WeakSet[StoreBoard] = weakref.WeakSet()


@atexit.register
def finish_requests() -> None:
    """Let no thread come back from a store to an interpreter that has ended."""
    for board in list(_boards):
        board.is_settled(patience=1.0)
