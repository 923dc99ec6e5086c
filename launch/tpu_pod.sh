#!/usr/bin/env bash
# Runs one `reval` command on every worker of an existing Cloud TPU VM or pod.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/tpu_pod.sh [--dry-run] TPU ZONE COMMAND [ARGUMENT ...]

Runs `.venv/bin/reval COMMAND ARGUMENT ...` in DIRECTORY on all workers of the TPU at once, by gcloud. It creates and
deletes no TPU. The workers read each other's addresses from the TPU's metadata. --dry-run only prints the gcloud command.

environment:
  DIRECTORY   the clone on each worker, with `.venv` and the tpu extra installed (default: reval_jax, in the home directory)
  PROJECT     gcloud project (default: gcloud's own)

example
  launch/tpu_pod.sh my-pod us-east5-a train --config configs/qwen2_5_math_7b.yaml --run-dir /mnt/shared/runs/7b
USAGE
}

dry_run=false
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true; shift ;;
esac
if [ $# -lt 3 ]; then usage >&2; exit 2; fi
tpu=$1
zone=$2
shift 2

# Quoted for the worker's shell, so that an argument with spaces stays one argument.
printf -v arguments ' %q' "$@"
printf -v directory '%q' "${DIRECTORY:-reval_jax}"
# `auto`: reval_jax.distributed.start() reads the addresses of the other workers from the TPU's metadata.
remote="cd $directory && JAX_COORDINATOR_ADDRESS=auto .venv/bin/reval$arguments"

command=(gcloud compute tpus tpu-vm ssh "$tpu" "--zone=$zone" --worker=all "--command=$remote")
if [ -n "${PROJECT:-}" ]; then command+=("--project=$PROJECT"); fi

if "$dry_run"; then
    printf '%q ' "${command[@]}"
    echo
else
    exec "${command[@]}"
fi
