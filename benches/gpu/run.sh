#!/usr/bin/env bash
# Checks and measures a GPU machine that has Python's torch 2.11 and nothing of ours.
#
#   benches/gpu/run.sh pack                here: builds the benches and lays all that has to be carried into benches/gpu/carried
#   benches/gpu/run.sh measure OUT [SCALE] there: parity, then times beside eager and compiled PyTorch, into OUT
#
# What is carried is under 60 MiB: the programs, stripped, and the wheel of diffusers, which is plain Python. The other
# machine has torch 2.11 and transformers. SCALE is `gpu`, or `proof` to try the script on a CPU (see benches/run.sh).
# PYTHON names the interpreter to use, python3 by default.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
carried=$here/carried
benches=(networks latents step)
case ${1:-} in
pack)
    mkdir -p "$carried"
    for bench in "${benches[@]}"; do
        built=$(cargo build --release --locked --workspace --bench "$bench" --message-format=json |
            python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]: print(message["executable"])' "$bench" | tail -1)
        strip -o "$carried/$bench" "$built"
    done
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --dest "$carried" diffusers==0.42.1 importlib_metadata zipp
    size=$(du -sm "$carried" | cut -f1)
    [ "$size" -le 60 ] || { echo "carried: $size MiB are more than 60" >&2; exit 1; }
    echo "$carried: $size MiB"
    ;;
measure)
    out=${2:?the folder for results}
    python=${PYTHON:-python3}
    torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
    # The wheel's CUDA libraries lie beside torch in nvidia/*/lib and are found from there.
    export LD_LIBRARY_PATH=$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    site=$(mktemp -d)
    for wheel in "$carried"/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    export PYTHONPATH=$site PYTHONUNBUFFERED=1
    "$here/../run.sh" "$carried" "$python" "$out" "${3:-gpu}"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
