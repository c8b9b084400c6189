#!/usr/bin/env bash
# One run as N processes on this machine, CPU devices and gloo: to try a many-host command before renting hosts.
#
#   launch/local.sh N train --gin_file=... --gin.MODEL_DIR="'out/run'" ...
#
# Every process writes to out/local/<number>.log. The first that fails ends the others; its status is the script's.
set -euo pipefail
count=${1:?usage: launch/local.sh N DOOR FLAGS...}
shift
port=${PORT:-$((20000 + RANDOM % 20000))}
logs=${LOGS:-out/local}
flanx=${FLANX:-flanx}
mkdir -p "$logs"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < count; i++)); do
  JAX_PLATFORMS=cpu "$flanx" "$@" --coordinator_address="127.0.0.1:$port" --num_processes="$count" \
    --process_id="$i" >"$logs/$i.log" 2>&1 &
  pids+=($!)
done
status=0
for ((i = 0; i < count; i++)); do
  wait "${pids[$i]}" || { status=$?; echo "process $i ended with $status: $(tail -n 1 "$logs/$i.log")" >&2; }
done
exit "$status"
