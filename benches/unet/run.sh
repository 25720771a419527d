#!/usr/bin/env bash
# Times our UNet and diffusers' in turn, with the same threads, sizes and dtypes, and keeps the raw numbers.
#
#   benches/unet/run.sh PROGRAM PYTHON RESULTS DEVICE [full]
#
# PROGRAM is the built bench `unet`, PYTHON one that has torch and diffusers, RESULTS a folder to be made.
# On a CPU the UNet is SDXL's at 0.3 of its width; `full` times one forward of the whole, in bf16.
set -euo pipefail

program=$1 python=$2 results=$3 device=$4 scale=${5:-small}
here=$(cd "$(dirname "$0")" && pwd)
threads=${THREADS:-$(nproc)}
export OMP_NUM_THREADS=$threads
mkdir -p "$results"
{
    date -u +%FT%TZ
    echo "$0 $*"
    git -C "$here" log -1 --format='commit %H' 2>/dev/null || true
    lscpu | grep -E '^(Model name|CPU\(s\))'
    uptime
    if [ "$device" != cpu ]; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; fi
    "$python" -c 'import diffusers, torch; print("torch", torch.__version__, "diffusers", diffusers.__version__)'
} > "$results/machine.txt"

"$program" --check "$here/../../tests/fixtures" --device "$device" | tee "$results/check.jsonl"

ours() { "$program" --device "$device" --threads "$threads" "$@" | tee -a "$results/unet.jsonl"; }
theirs() { "$python" "$here/eager.py" --device "$device" --threads "$threads" "$@" | tee -a "$results/unet.jsonl"; }
both() { for _ in 1 2; do ours "$@" && theirs "$@"; done; }

if [ "$device" != cpu ]; then
    for batch in 1 4 8; do
        both --config "$here/full" --size 1024x1024 --batch $batch --dtype bf16 --repeat 20
        theirs --config "$here/full" --size 1024x1024 --batch $batch --dtype bf16 --repeat 20 --warmup 3 --compile
    done
    "$program" --check "$here/../../tests/fixtures" --device "$device" --dtype bf16 | tee -a "$results/check.jsonl"
elif [ "$scale" = full ]; then
    ours --config "$here/full" --size 512x512 --dtype bf16 --warmup 0 --repeat 1
else
    both --config "$here/../../manifests/demo/model/unet" --size 128x128 --batch 8
    both --config "$here/small" --size 256x256
    both --config "$here/small" --size 256x256 --dtype bf16
fi
"$python" "$here/table.py" "$results/unet.jsonl" | tee "$results/table.md"
