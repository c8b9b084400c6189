#!/usr/bin/env bash
# One run on a slice of Cloud TPUs, by a queued resource; the same command on every worker of the slice.
#
#   PROJECT=my-project ZONE=us-central2-b TYPE=v4-128 launch/tpu_vm.sh NAME train --gin_file=... ...
#
# Needs gcloud, logged in, and flanx on PyPI or a wheel (WHEEL=dist/flanx-....whl). TYPE counts cores for v4 and v5p
# (v4-128 is the slice v4:4x4x4) and chips for v5e (v5litepod-16) and v6e (v6e-16); RUNTIME must match.
# A preempted run (exit status 75) or a lost worker (70) is started again up to RETRIES times; it goes on by itself.
# DRY_RUN=1 prints the commands. What a slice can hold, `flanx plan` says beforehand.
set -euo pipefail
name=${1:?usage: launch/tpu_vm.sh NAME DOOR FLAGS...}
shift
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}" "${TYPE:?set TYPE, as v4-128}"
runtime=${RUNTIME:-tpu-ubuntu2204-base}
retries=${RETRIES:-3}
where=(--project="$PROJECT" --zone="$ZONE")
package=${WHEEL:+"$(basename "$WHEEL")[tpu]"}
package=${package:-flanx[tpu]}

do_it() { if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }
on_workers() { do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null; }

ask() {
  do_it gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$runtime" ${SPOT:+--spot}
  [[ -n ${DRY_RUN:-} ]] && return
  until [[ $(state) == ACTIVE ]]; do
    case $(state) in FAILED | SUSPENDED) echo "the queued resource $name is $(state)" >&2; return 1 ;; esac
    sleep 30
  done
}

prepare() {
  if [[ -n ${WHEEL:-} ]]; then do_it gcloud compute tpus tpu-vm scp "$WHEEL" "$name:" "${where[@]}" --worker=all; fi
  on_workers "python3 -m venv ~/flanx && ~/flanx/bin/pip install --quiet '$package'"
}

quoted=$(printf '%q ' "$@")
[[ $(state || true) == ACTIVE ]] || ask
prepare
for ((try = 0; try <= retries; try++)); do
  # each worker finds its number and the address of the first one itself
  status=0
  on_workers "~/flanx/bin/flanx $quoted" || status=$?
  [[ $status -eq 70 || $status -eq 75 || $status -eq 255 ]] || break # 255: a worker's connection was lost
  echo "started again after status $status ($((try + 1)) of $retries)" >&2
  if [[ -z ${DRY_RUN:-} && $(state) != ACTIVE ]]; then
    do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --quiet --force
    ask
    prepare
  fi
done
[[ -n ${KEEP:-} ]] || do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --quiet --force
exit "$status"
