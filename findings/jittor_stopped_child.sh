#!/usr/bin/env bash
# Jittor: a child process that is stopped, and goes on, ends the program: "Maybe out of memory".
#
# Versions: jittor 1.3.11.0, numpy 1.26.4; Python 3.11, g++ 12.2 on Linux (x86-64), no CUDA.
# Expected: SIGCHLD also says that a child was stopped (si_code 5, CLD_STOPPED), as by Ctrl-Z, a debugger
#   or a batch system that lets another job go first. It is not dead, and goes on after SIGCONT. A
#   program that has imported Jittor goes on, too.
# Behaviour: Jittor's handler of SIGCHLD (src/utils/log.cc) takes every si_code but CLD_EXITED for a crash: the
#   program ends with 1 and the hint to reduce the number of compiling processes. So does the first import, which
#   compiles 150 files in child processes, where one of them is stopped.
# Output seen:
#   jittor 1.3.11.0
#   Caught SIGCHLD. Maybe out of memory, please reduce your worker size. si_errno: 0 si_code: 5 si_status: 19
#   ended with 1
#
# The first import compiles for five to ten minutes. Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet jittor==1.3.11.0 'setuptools<81' 'numpy<2'
cd "$folder"
cat >program.py <<'PYTHON'
import signal
import subprocess
import time

import jittor

print("jittor", jittor.__version__, flush=True)
child = subprocess.Popen(["sleep", "2"])
time.sleep(0.3)
child.send_signal(signal.SIGSTOP)
time.sleep(0.5)
child.send_signal(signal.SIGCONT)
print("the child ended with", child.wait(), flush=True)
PYTHON
status=0
use_mkl=0 nvcc_path='' JITTOR_HOME="$folder/home" env/bin/python program.py >out.txt 2>&1 || status=$?
grep -ao "^jittor .*\|Caught SIGCHLD.*si_status: [0-9]*\|the child ended.*" out.txt
echo "ended with $status"
grep -aq "Caught SIGCHLD" out.txt && ((status == 1))
