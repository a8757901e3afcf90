#!/bin/bash
# Open MPI: PROCESSES of them, on this machine or on those of HOSTS.  PROCESSES=2 bash launch/mpirun.sh --config=...
# Only its launcher is used; the processes talk by JAX's own means.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
exec mpirun -n "${PROCESSES:-2}" ${HOSTS:+--host "$HOSTS"} ${MPIRUN_FLAGS:-} "$python" main.py "$@"
