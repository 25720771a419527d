#!/usr/bin/env bash
# Checks and measures the full-size UNet on a GPU machine that has Python's torch 2.11 and nothing of ours.
#
#   benches/gpu/run.sh pack       here: builds the program and lays everything that has to be carried into benches/gpu/carried
#   benches/gpu/run.sh measure OUT    there: parity, then times beside eager and compiled diffusers, into OUT
#
# What is carried is under 60 MiB: the program, stripped, and the wheels of diffusers, which are plain Python.
# PYTHON names the interpreter to use, python3 by default.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
carried=$here/carried
case ${1:-} in
pack)
    mkdir -p "$carried"
    built=$(cargo build --release --locked --workspace --bench unet --message-format=json |
        python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "unet": print(message["executable"])' | tail -1)
    strip -o "$carried/unet" "$built"
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
    "$here/../unet/run.sh" "$carried/unet" "$python" "$out" cuda
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
