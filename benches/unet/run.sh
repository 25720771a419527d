#!/usr/bin/env bash
# Times our UNet and diffusers' in turn, with the same threads, sizes and dtypes, and keeps the raw numbers.
#
#   benches/unet/run.sh PROGRAM PYTHON RESULTS DEVICE [full]
#
# PROGRAM is the built bench `unet`, PYTHON one that has torch and diffusers, RESULTS a folder to be made.
# On a CPU the UNet is SDXL's at 0.3 of its width; `full` times one forward of the whole, in bf16.
set -euo pipefail

program=$(realpath "$1") python=$2 results=$(realpath -m "$3") device=$4 scale=${5:-small}
cd "$(dirname "$0")/../.."
threads=${THREADS:-$(nproc)}
export OMP_NUM_THREADS=$threads
mkdir -p "$results"
{
    date -u +%FT%TZ
    echo "benches/unet/run.sh PROGRAM PYTHON RESULTS $device $scale, $threads threads"
    git log -1 --format='commit %H' 2>/dev/null || true
    lscpu | grep -E '^(Model name|CPU\(s\))'
    uptime
    if [ "$device" != cpu ]; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; fi
    "$python" -c 'import diffusers, torch; print("torch", torch.__version__, "diffusers", diffusers.__version__)'
} > "$results/machine.txt"

"$program" --check tests/fixtures --device "$device" | tee "$results/check.jsonl"

ours() { "$program" --device "$device" --threads "$threads" "$@" | tee -a "$results/unet.jsonl"; }
theirs() { "$python" benches/unet/eager.py --device "$device" --threads "$threads" "$@" | tee -a "$results/unet.jsonl"; }
both() { for _ in 1 2; do ours "$@" && theirs "$@"; done; }

if [ "$device" != cpu ]; then
    for batch in 1 4 8; do
        both --config benches/unet/full --size 1024x1024 --batch $batch --dtype bf16 --repeat 20
        theirs --config benches/unet/full --size 1024x1024 --batch $batch --dtype bf16 --repeat 20 --warmup 3 --compile
    done
    "$program" --check tests/fixtures --device "$device" --dtype bf16 | tee -a "$results/check.jsonl"
elif [ "$scale" = full ]; then
    ours --config benches/unet/full --size 512x512 --dtype bf16 --warmup 0 --repeat 1
else
    both --config manifests/demo/model/unet --size 128x128 --batch 8
    both --config benches/unet/small --size 256x256
    both --config benches/unet/small --size 256x256 --dtype bf16
fi
"$python" benches/unet/table.py "$results/unet.jsonl" | tee "$results/table.md"
