#!/usr/bin/env bash
# Train in several processes on this machine, joined over loopback: a rehearsal of a cluster, or one process per GPU.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/local_processes.sh N CONFIG [--section.field VALUE ...]

Starts N processes of `reval train --config CONFIG ...` and waits for them. Each line of output begins with the
process that wrote it. When one process fails, the others are sent SIGTERM and its exit code is this command's; SIGINT
and SIGTERM stop all of them the same way. Needs bash 5.1 or newer.

environment:
  REVAL                 the command (default: .venv/bin/reval beside launch/)
  PORT                  of the coordinator on 127.0.0.1 (default: a free one)
  JAX_NUM_CPU_DEVICES   CPU devices of each process (jax's default: 1)
  GPUS_PER_PROCESS      process i sees this many GPUs, from i x GPUS_PER_PROCESS (default: all see all)

example: 2 processes of 4 fake devices each
  JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 launch/local_processes.sh 2 configs/one_shot_medium.yaml \
      --rollout.prompts_per_round 2 --rollout.samples_per_prompt 32
USAGE
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    '' | *[!0-9]* | 0) usage >&2; exit 2 ;;
esac
if [ $# -lt 2 ]; then usage >&2; exit 2; fi
count=$1
config=$2
shift 2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
reval=${REVAL:-$root/.venv/bin/reval}
if ! command -v "$reval" > /dev/null; then
    echo "launch/local_processes.sh: no command $reval. Run \`make install\` first, or set REVAL." >&2
    exit 2
fi
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
# jax's own default listens on every interface.
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$count

pids=()
# A shell starts its background processes with SIGINT ignored, so an interrupt reaches them as SIGTERM: save, then stop.
stop() { if [ ${#pids[@]} -gt 0 ]; then kill -s TERM "${pids[@]}" 2> /dev/null || true; fi; }
trap stop INT TERM

for ((index = 0; index < count; index++)); do
    (
        export JAX_PROCESS_ID=$index
        if [ -n "${GPUS_PER_PROCESS:-}" ]; then
            first=$((index * GPUS_PER_PROCESS))
            CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + GPUS_PER_PROCESS - 1)))
            export CUDA_VISIBLE_DEVICES
        fi
        exec "$reval" train --config "$config" "$@"
    ) > >(sed -u "s/^/[$index] /") 2>&1 &
    pids+=($!)
done

status=0
while [ ${#pids[@]} -gt 0 ]; do
    code=0
    finished=
    wait -n -p finished "${pids[@]}" || code=$?
    if [ -z "${finished:-}" ]; then continue; fi # a signal came, and no process has ended
    running=()
    for pid in "${pids[@]}"; do
        if [ "$pid" != "$finished" ]; then running+=("$pid"); fi
    done
    pids=("${running[@]}")
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
        status=$code
        stop
    fi
done
exit "$status"
