"""Ctrl-C at every place of a call where Python lets signal handlers run."""

import gc
import sys
from pathlib import Path

import bnext

PACKAGE = str(Path(bnext.__file__).parent)


def interrupted(act):
    """Call `act` again and again, with KeyboardInterrupt where its 1st, 2nd, ... function begins.

    Signal handlers run where a function begins: functions of the package and of the standard
    library count, C's do not. Yields after each call that was interrupted, and ends with the first
    that comes to its end.
    """
    number = 0
    while True:
        number += 1
        try:
            with _interruption(number):
                act()
        except KeyboardInterrupt:
            yield number
        else:
            return


class _interruption:  # noqa: N801 - read as `with _interruption(number):`
    def __init__(self, number):
        self.left = number
        self.inside = False

    def __enter__(self):
        self.before = sys.gettrace()
        gc.disable()  # other garbage's finalizers are not part of the call
        sys.settrace(self.look)

    def __exit__(self, *_):
        sys.settrace(self.before)
        gc.enable()

    def look(self, frame, event, _):
        name = frame.f_code.co_filename
        self.inside = self.inside or name.startswith(PACKAGE)
        if event == "call" and self.inside and name != __file__:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
