#!/usr/bin/env bash
# What `distill --plan` says of one iteration beside what its tensors held on the CPU, over many settings.
#
#   benches/step/plan.sh PROGRAM PYTHON RESULTS
#
# PROGRAM is the built bench `step`. The networks are the demo's at 128 px and SDXL's at 0.3 of its width at 256 px.
set -euo pipefail

program=$(realpath "$1") python=$2 results=$(realpath -m "$3")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
mkdir -p "$results"
{ date -u +%FT%TZ; echo "benches/step/plan.sh PROGRAM PYTHON RESULTS"; git log -1 --format='commit %H'; lscpu | grep -E '^(Model name|CPU\(s\))'; } > "$results/machine.txt"
measure() { "$program" --warmup 0 --repeat 1 "$@" >> "$results/plan.jsonl"; }

for network in "manifests/demo/model/unet 128x128" "benches/unet/small 256x256"; do
    read -r config size <<< "$network"
    for trains in lora full; do
        for dtype in f32 bf16; do
            for batch in 1 2 4; do
                measure --config "$config" --size "$size" --trains $trains --dtype $dtype --micro-batch $batch
                measure --config "$config" --size "$size" --trains $trains --dtype $dtype --micro-batch $batch --recompute
            done
        done
    done
done
"$python" - "$results/plan.jsonl" <<'END' | tee "$results/plan.md"
import json, sys

print("| config | trains | dtype | recompute | images | planned MiB | held MiB | off |")
print("|---|---|---|---|---|---|---|---|")
worst = 0
for line in open(sys.argv[1]):
    row = json.loads(line)
    planned, held = row["planned_bytes"], row["peak_bytes"]
    off = 100 * (planned / held - 1)
    worst = max(worst, abs(off))
    cells = [row[key] for key in ("config", "trains", "dtype", "recompute", "micro_batch")]
    print("|", " | ".join(map(str, cells)), f"| {planned / 2**20:.0f} | {held / 2**20:.0f} | {off:+.1f} % |")
print(f"\nWorst: {worst:.1f} %.")
END
