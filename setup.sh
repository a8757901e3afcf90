#!/usr/bin/env bash
# Makes .venv with the project's requirements: JAX with CUDA if there is an NVIDIA GPU, else the CPU set.
#
#   bash setup.sh        to train
#   bash setup.sh dev    and the tools for tests
#
# PYTHON: the interpreter (python3). VENV: the directory to make (.venv). CONSTRAINTS: the versions to install
# (constraints.txt, which the tests ran with); /dev/null for the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}
venv=${VENV:-.venv}
constraints=${CONSTRAINTS:-constraints.txt}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  echo "setup.sh: needs Python 3.11 to 3.13, but $python is $("$python" --version 2>&1 || echo missing); set PYTHON" >&2
  exit 2
fi
set -- "${1:-train}"
case $1 in train | dev) ;; *) echo "setup.sh: unknown argument '$1'; give none, or dev" >&2; exit 2 ;; esac

requirements=requirements-cpu.txt
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then requirements=requirements.txt; fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
  { echo "setup.sh: $python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
echo "setup.sh: installing $requirements$([ "$1" = dev ] && echo ' and requirements-dev.txt') into $venv; a few minutes"
"$venv/bin/python" -m pip install --quiet --upgrade pip
# pip prints pages, or with --quiet nothing for minutes; on a terminal, one line shows what it is doing.
"$venv/bin/python" -m pip install -c "$constraints" -r "$requirements" $([ "$1" = dev ] && echo -r requirements-dev.txt) |
  while read -r step what _; do
    [ -t 1 ] || continue
    case $step in
      Collecting | Downloading) printf '\r\033[K%s %.60s' "$step" "${what##*/}" ;;
      Installing) printf '\r\033[KInstalling the packages' ;;
      Successfully) printf '\r\033[K' ;;
    esac
  done
