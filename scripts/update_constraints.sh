#!/usr/bin/env bash
# Writes constraints.txt: the versions that setup.sh installs. Run the tests with them before you commit it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet $(printf -- '-r %s ' requirements-{cpu,dev,demo,wandb}.txt)
{
  echo "# The versions that the tests ran with; written by scripts/update_constraints.sh. setup.sh installs these,"
  echo "# and others only where it is called with CONSTRAINTS=/dev/null."
  "$venv/bin/python" -m pip freeze
} >"$venv/constraints.txt"
mv "$venv/constraints.txt" constraints.txt
