#!/bin/bash
# A Cloud TPU slice: the same command on all of its hosts, which find each other.
#   NAME=my-slice ZONE=us-central2-b bash launch/tpu.sh --config=configs/imagenet2012.py --workdir=/mnt/shared/run
# Before, once: the repository and its environment on each host, by the same command with
#   --command='git clone REPOSITORY alexnet && cd alexnet && bash setup.sh && .venv/bin/pip install "jax[tpu]"'
set -euo pipefail
: "${NAME:?the name of the slice}" "${ZONE:?its zone}"
exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
  --command="cd alexnet && .venv/bin/python main.py $(printf '%q ' "$@")"
