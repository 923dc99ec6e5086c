#!/usr/bin/env bash
# Trains in several processes on this machine, joined over loopback: to test a multi-host run, or with one process per GPU.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/local_processes.sh N CONFIG [--section.field VALUE ...]

Starts N processes of `reval train --config CONFIG ...` and waits for them. Each line of output begins with the index of
its process. When a process fails, this script sends SIGTERM to the others and exits with the failed one's exit code. On
SIGINT or SIGTERM it sends SIGTERM to all processes; where `setpriv` of util-linux is installed they get it too when this
script is killed. Needs bash 5.1 or newer.

environment:
  REVAL                 the command (default: .venv/bin/reval beside launch/)
  PORT                  port of the coordinator on 127.0.0.1 (default: a free port)
  JAX_NUM_CPU_DEVICES   number of CPU devices of each process (jax's default: 1)
  GPUS_PER_PROCESS      number of GPUs that each process sees; those of process i begin at index i x GPUS_PER_PROCESS
                        (default: every process sees all GPUs)

example: 2 processes with 4 fake CPU devices each
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
    echo "launch/local_processes.sh: there is no command $reval. Run \`make install\` first, or set REVAL." >&2
    exit 2
fi
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
# By default jax would listen on every network interface.
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$count

# So that no process outlives a script that is killed.
guard=()
if setpriv --pdeathsig TERM true 2> /dev/null; then guard=(setpriv --pdeathsig TERM); fi

pids=()
# A shell starts background processes with SIGINT ignored, so an interrupt is passed on as SIGTERM: the run saves, then stops.
stop() {
    if [ ${#pids[@]} -gt 0 ]; then
        kill -s TERM "${pids[@]}" 2> /dev/null || true
        kill -s CONT "${pids[@]}" 2> /dev/null || true # a process that was stopped acts on no signal before
    fi
}
trap stop INT TERM

for ((index = 0; index < count; index++)); do
    (
        export JAX_PROCESS_ID=$index
        if [ -n "${GPUS_PER_PROCESS:-}" ]; then
            first=$((index * GPUS_PER_PROCESS))
            CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + GPUS_PER_PROCESS - 1)))
            export CUDA_VISIBLE_DEVICES
        fi
        exec "${guard[@]}" "$reval" train --config "$config" "$@"
    ) > >(sed -u "s/^/[$index] /") 2>&1 &
    pids+=($!)
done

status=0
while [ ${#pids[@]} -gt 0 ]; do
    code=0
    finished=
    wait -n -p finished "${pids[@]}" || code=$?
    if [ -z "${finished:-}" ]; then continue; fi # `wait` returned because of a signal, not because a process ended
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
