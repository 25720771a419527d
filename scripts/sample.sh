#!/usr/bin/env bash
# A picture of one prompt from the base model in 32 steps and from each finished stage in its own number of steps,
# all from the same noise, under RUN/samples/PROMPT-sSEED. What is there already stays.
#
#   scripts/sample.sh BIN MANIFEST RUN DEVICE PROMPT SEED
set -euo pipefail

bin=$1 manifest=$2 run=$3 device=$4 prompt=$5 seed=$6
slug=$(printf %s "$prompt" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | cut -c -80)
folder=$run/samples/$slug-s$seed
mkdir -p "$folder"

picture() { # name, which model, further arguments
    local out=$folder/$1.png
    [ -e "$out" ] && return
    "$bin/sample" "${@:2}" --prompt "$prompt" --seed "$seed" --device "$device" --out "$out"
}

picture base-32 --manifest "$manifest" --run "$run" --steps 32 --guidance-scale 6
for finished in "$run"/stages/*/export/model_index.json; do
    [ -e "$finished" ] || continue # no stage is
    export=${finished%/model_index.json}
    stage=${export%/export}
    picture "${stage##*/}" --model "$export"
done
