#!/usr/bin/env bash
# One point of a sweep as a JobSet under GKE; returns when it is done. For `flanx sweep`:
#
#   flanx sweep --gin_file=sweeps/table5.gin --jobs=4 --launcher="launch/gke_point.sh {job}"
#
# JOBSET is the file to fill in (default: gke_jobset.yaml beside this script): its name and its command are replaced.
set -euo pipefail
job=${1:?usage: launch/gke_point.sh JOB DOOR FLAGS...}
shift
jobset=${JOBSET:-$(dirname "$0")/gke_jobset.yaml}
kubectl=${KUBECTL:-kubectl}

# a JSON list is YAML too; the words of the old command are the deeper lines that follow it
fill() {
  python3 -c '
import json, re, sys
job, file, *words = sys.argv[1:]
inside = None
for line in open(file, encoding="utf-8"):
    indent = len(line) - len(line.lstrip())
    if inside is not None and indent > inside and line.lstrip().startswith("- "):
        continue
    inside = None
    if line.strip() == "command:":
        inside, line = indent, " " * indent + "command: " + json.dumps(["flanx", *words, "--cluster_timeout=900"]) + "\n"
    print(re.sub(r"^  name: flanx$", f"  name: {job}", line), end="")
' "$job" "$jobset" "$@"
}

ended() { "$kubectl" get jobset "$job" -o jsonpath='{.status.conditions[?(@.status=="True")].type}'; }

"$kubectl" delete jobset "$job" --ignore-not-found # what an earlier attempt left
fill "$@" | "$kubectl" apply -f -
until [[ $(ended) == *Completed* ]]; do
  if [[ $(ended) == *Failed* ]]; then
    "$kubectl" logs "jobset/$job" --tail=1 >&2 || true
    exit 1
  fi
  sleep "${PERIOD:-30}"
done
