#!/usr/bin/env bash
# A picture of one prompt from the base model in 32 steps and from each finished stage in its own number of steps,
# all from the same noise, under RUN/samples/PROMPT-sSEED. What is there already stays.
#
#   scripts/sample.sh BIN MANIFEST RUN DEVICE PROMPT SEED
set -euo pipefail

bin=$1 manifest=$2 run=$3 device=$4 prompt=$5 seed=$6
base=$(sed -n 's/^base *= *"\(.*\)".*/\1/p' "$manifest/model.toml")
case $base in /*) ;; *) base=$manifest/$base ;; esac
slug=$(printf %s "$prompt" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | cut -c -80)
folder=$run/samples/$slug-s$seed
mkdir -p "$folder"

picture() { # name, model, steps, further arguments
    local out=$folder/$1.png
    [ -e "$out" ] && return
    "$bin/sample" --model "$2" --steps "$3" --prompt "$prompt" --seed "$seed" --device "$device" --out "$out" "${@:4}"
}

picture base-32 "$base" 32 --guidance-scale 6
for stage in 128to32 32to8 8to4 4to2 2to1; do
    export=$run/stages/$stage/export
    if [ -e "$export/model_index.json" ]; then
        picture "$stage" "$export" "${stage#*to}"
    fi
done
