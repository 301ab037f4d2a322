"""Sessions that run behind the others, on what they leave of the processors.

Compilers need the processors and no result of a test, and tests leave a processor idle for much
of their time. So a second nox runs these sessions, at the lowest priority. Its output is shown when
a session waits for it; its failure ends the first nox, at the end of the session that is at work.
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile

_process = None
_printed = None


def start(names):
    """Start sessions in another process; it ends with this one."""
    global _process, _printed
    _printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    command = [sys.executable, "-m", "nox", "--envdir", ".nox/behind", "--stop-on-first-error"]
    _process = subprocess.Popen(
        ["nice", "-n", "19", *command, "--session", *names],
        stdin=subprocess.DEVNULL, stdout=_printed, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(_end)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("nox was terminated"))


def look(session):
    """Fail if what runs behind has failed."""
    if _process is not None and _process.poll():
        wait(session)


def wait(session):
    """Wait for what runs behind, and show what it printed."""
    global _process
    if _process is None:
        return
    status = _process.wait()
    _process = None
    _printed.seek(0)
    print(_printed.read(), flush=True)
    if status:
        session.error(f"what ran behind the sessions failed: status {status}")


def _end():
    if _process is not None and _process.poll() is None:
        os.killpg(_process.pid, signal.SIGTERM)
