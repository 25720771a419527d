#!/usr/bin/env bash
# Times our programs and PyTorch's in turn, with the same threads, sizes and dtypes, and keeps the raw numbers.
#
#   benches/run.sh PROGRAMS PYTHON RESULTS SCALE
#
# PROGRAMS is a folder with the built benches, PYTHON one that has torch, diffusers and transformers, RESULTS a folder to
# be made, SCALE one of
#   small   a CPU: the demo's UNet and its distillation, SDXL at 0.3 of its width, its VAE and encoders (11 minutes)
#   full    a CPU with 24 GiB: one forward of every network of SDXL at 1024 px, in bf16, from the disk (20 minutes)
#   gpu     a GPU: parity, every network at full size, steps of distillation, encode-latents as a whole (twice 10 minutes)
#   proof   a CPU: every line of `gpu` with small networks, to see that the script works               (4 minutes)
# THREADS, ONLY (a regular expression on the names below) and MINUTES may be set. After MINUTES, 9 for `gpu`, no further
# measurement is begun and the one that runs is ended; the same command goes on with what is left, until it says so.
set -euo pipefail

programs=$(realpath "$1") python=$2 results=$(realpath -m "$3") scale=$4
cd "$(dirname "$0")/.."
threads=${THREADS:-$(nproc)}
export OMP_NUM_THREADS=$threads
device=cpu minutes=${MINUTES:-600}
if [ "$scale" = gpu ]; then device=cuda minutes=${MINUTES:-9}; fi
mkdir -p "$results"
touch "$results/done.txt" "$results/measurements.jsonl"
rm -f "$results/left.txt"
{
    date -u +%FT%TZ
    echo "benches/run.sh PROGRAMS PYTHON RESULTS $scale, $threads threads"
    git log -1 --format='commit %H' 2>/dev/null || true
    lscpu | grep -E '^(Model name|CPU\(s\))'
    uptime
    if [ "$device" = cuda ]; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; fi
    "$python" -c 'import diffusers, torch, transformers as t
print("torch", torch.__version__, "diffusers", diffusers.__version__, "transformers", t.__version__)'
} > "$results/machine.txt"

wanted() { [[ $1 =~ ${ONLY:-.} ]]; }
seconds_left() { echo $((60 * minutes - SECONDS)); }
# NAME COMMAND...: one measurement, unless it was made before; its lines are kept when it is whole.
measure() {
    local name=$1 status=0
    if grep -qxF -- "$name" "$results/done.txt"; then return; fi
    if [ "$(seconds_left)" -gt 0 ]; then
        timeout "$(seconds_left)" "${@:2}" > "$results/running.jsonl" || status=$?
        if [ $status = 0 ]; then
            tee -a "$results/measurements.jsonl" < "$results/running.jsonl"
            echo "$name" >> "$results/done.txt"
        fi
        rm "$results/running.jsonl"
        if [ $status != 124 ]; then return $status; fi
    fi
    echo "$name" >> "$results/left.txt"
}
# PROGRAM [ARGUMENT...]: one measurement by us, by PyTorch, or by both in turn, twice.
ours() { measure "here${turn:-}: $*" "$programs/$1" --device "$device" --threads "$threads" "${@:2}"; }
theirs() { measure "PyTorch${turn:-}: $*" "$python" "benches/$1/eager.py" --device "$device" --threads "$threads" "${@:2}"; }
both() { if wanted "$*"; then for turn in '' ' again'; do ours "$@" && theirs "$@"; done; turn=; fi; }
once() { if wanted "$*"; then ours "$@" && theirs "$@"; fi; }
compiled() { if wanted "$*"; then theirs "$@" --compile $backend; fi; }

unet() { echo "networks --network unet --config benches/unet/$1/config.json"; }
vae() { echo "networks --network vae-$1 --config tests/fixtures/vae/sdxl.config.json"; }
text() { echo "networks --network $1 --config tests/fixtures/text/sdxl_$1.config.json"; }

if wanted check && ! grep -qx check "$results/done.txt"; then
    "$programs/networks" --check tests/fixtures --device "$device" | tee "$results/check.jsonl"
    "$programs/networks" --check tests/fixtures --device "$device" --dtype bf16 | tee -a "$results/check.jsonl"
    echo check >> "$results/done.txt"
fi
# shellcheck disable=SC2046
case $scale in
small)
    both networks --network unet --config manifests/demo/model/unet/config.json --size 128x128 --batch 8 --from-disk
    for dtype in f32 bf16; do
        both $(unet small) --size 256x256 --from-disk --dtype $dtype
        both $(vae encode) --size 256x256 --from-disk --dtype $dtype --repeat 3 --warmup 1
        both $(vae decode) --size 256x256 --from-disk --dtype $dtype --repeat 3 --warmup 1
        both $(text text_encoder) --from-disk --dtype $dtype
    done
    both $(text text_encoder_2) --from-disk --dtype bf16 --repeat 3 --warmup 1
    for trains in lora full; do
        both step --config manifests/demo/model/unet --trains $trains --micro-batch 4 --repeat 9
    done
    ;;
full)
    forward=(--size 1024x1024 --dtype bf16 --from-disk --repeat 1 --warmup 0)
    for network in "$(unet full)" "$(vae encode)" "$(vae decode)" "$(text text_encoder)" "$(text text_encoder_2)"; do
        once $network "${forward[@]}"
    done
    ;;
gpu | proof)
    size=1024x1024 unet=full world=full images=512 batches=(--batch 1 --batch 4 --batch 8) repeat=(--repeat 10) backend=inductor
    if [ "$scale" = proof ]; then
        size=64x64 unet=small world=small images=16 batches=(--batch 1 --batch 2) repeat=(--repeat 1 --warmup 1)
        # Inductor compiles C++ on a CPU, for many minutes.
        backend=eager
    fi
    # What says most comes first; compiling takes minutes and comes last.
    once $(unet $unet) --size $size --dtype bf16 "${batches[@]}" "${repeat[@]}"
    step=(step --config benches/unet/$unet --size $size --dtype bf16)
    for micro in 1 2 4; do
        for trains in lora full; do
            # All weights with four images want 81 GiB, which an 80 GB card has not got: the rest goes on.
            once "${step[@]}" --trains $trains --micro-batch $micro --recompute "${repeat[@]}" ||
                echo "failed: step, $trains, $micro images" | tee -a "$results/failed.txt"
        done
    done
    latents=(--world "$(mktemp -d)" --fixtures tests/fixtures --scale $world)
    trap 'rm -rf "${latents[1]}"' EXIT
    if wanted latents; then
        # The world is made anew for whatever is left of its five measurements, and counts as their time.
        if [ "$(seconds_left)" -gt 0 ] && [ "$(grep -c ': latents$' "$results/done.txt")" -lt 5 ]; then
            timeout "$(seconds_left)" "$programs/latents" --device "$device" --threads "$threads" "${latents[@]}" \
                --images $images --prepare || [ $? = 124 ]
        fi
        for turn in '' ' again'; do
            measure "here$turn: latents" "$programs/latents" --device "$device" --threads "$threads" "${latents[@]}"
            measure "PyTorch$turn: latents" "$python" benches/latents/eager.py --device "$device" --threads "$threads" \
                "${latents[@]:0:2}"
        done
        turn=
    fi
    for way in encode decode; do once $(vae $way) --size $size --dtype bf16 --batch 1 "${repeat[@]}"; done
    for encoder in text_encoder text_encoder_2; do once $(text $encoder) --dtype bf16 --batch 8 "${repeat[@]}"; done
    compiled $(unet $unet) --size $size --dtype bf16 "${batches[@]}" "${repeat[@]}"
    for way in encode decode; do compiled $(vae $way) --size $size --dtype bf16 --batch 1 "${repeat[@]}"; done
    for encoder in text_encoder text_encoder_2; do compiled $(text $encoder) --dtype bf16 --batch 8 "${repeat[@]}"; done
    if wanted latents; then
        measure "PyTorch, compiled: latents" "$python" benches/latents/eager.py --device "$device" --threads "$threads" \
            "${latents[@]:0:2}" --compile $backend
    fi
    ;;
*)
    sed -n '2,17s/^# \{0,1\}//p' benches/run.sh >&2
    exit 2
    ;;
esac
"$python" benches/table.py "$results/measurements.jsonl" | tee "$results/table.md"
if [ -s "$results/left.txt" ]; then
    echo "the time is over and $(wc -l < "$results/left.txt") measurements are left: the same command goes on with them"
fi
