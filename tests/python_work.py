"""How much Python a call runs: what its time comes from, on any machine."""

import gc
import sys


def functions_entered(call):
    """How many functions of Python a call runs the second time; all that is in C counts nothing."""
    entered = 0

    def profile(frame, event, argument):
        nonlocal entered
        entered += event == "call"

    call()
    gc.disable()  # finalizers of other tests' garbage are not part of the call
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()
    return entered - 1  # the call itself
