#!/bin/bash
# A real Slurm of this one machine, for as long as the command runs that is given after a directory to keep its
# files in:  tests/launchers/slurm.sh DIRECTORY COMMAND...   As root; nothing of a Slurm that is there is touched.
set -euo pipefail
directory=$(realpath "$1")
shift
host=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mkdir -p "$directory"/{state,spool,munge}
chmod 0700 "$directory/munge"
dd if=/dev/urandom of="$directory/munge/key" bs=1024 count=1 status=none
chmod 0400 "$directory/munge/key"

cat >"$directory/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
END
export SLURM_CONF=$directory/slurm.conf

pids=()
stop() {  # A step that is still ending needs munged: without it, slurmd waits for it forever.
  for _ in $(seq 100); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
  kill "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "${pids[@]}" 2>/dev/null || break; sleep 0.1; done
  kill -9 "${pids[@]}" 2>/dev/null || true
  wait
}
trap stop EXIT
munged --foreground --force --key-file="$directory/munge/key" --socket="$directory/munge/socket" \
  --pid-file="$directory/munge/pid" --seed-file="$directory/munge/seed" --log-file="$directory/munge/log" &
pids+=($!)
for _ in $(seq 100); do [ -S "$directory/munge/socket" ] && break; sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" >"$directory/slurmctld.out" 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" >"$directory/slurmd.out" 2>&1 &
pids+=($!)
for _ in $(seq 300); do sinfo -h -o %t 2>/dev/null | grep -q '^idle' && break; sleep 0.1; done
sinfo -h -o %t | grep -q '^idle' ||
  { echo "Slurm did not start:" >&2; tail -5 "$directory"/*.log "$directory"/*.out "$directory/munge/log" >&2; exit 70; }
"$@"
