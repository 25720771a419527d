#!/bin/sh
# img2dataset beside `curate`, in turn, on the same images from the same nginx on loopback:
#     benches/curate/img2dataset.sh CURATE VENV FOLDER [ROUNDS]
# VENV is a Python environment with img2dataset 1.47, Pillow and pyarrow; nginx is Debian's package. Makes the images in FOLDER
# if they are not there, and writes raw results to FOLDER/results.txt: wall and processor time and memory of each
# run, img2dataset's own count, and how many samples there are in the end.
#
# img2dataset is given what suits two cores best: two processes, no EXIF extraction, shards small enough for both
# to be busy to the end.
set -eu
curate=$1 venv=$2 folder=$3 rounds=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder/tmp"
[ -e "$folder/table.parquet" ] || "$venv/bin/python" "$here/peer/make_world.py" "$folder"
/usr/sbin/nginx -p "$folder" -e nginx.log -c "$here/peer/nginx.conf" -g "user $(id -un) $(id -gn);" 2> /dev/null & nginx=$!
trap 'kill $nginx; wait' EXIT
sleep 1
results=$folder/results.txt
timed() { name=$1; shift; /usr/bin/time -a -o "$results" -f "$name: %e s wall, %U s user, %S s system, %M KB" "$@"; }

: > "$results"
{ date -u +%F; grep -m1 'model name' /proc/cpuinfo; nproc --all; (cd "$folder" && du -sk www); } >> "$results"
for round in $(seq "$rounds"); do
    rm -rf "$folder/out"
    mkdir -p "$folder/out/square" "$folder/out/original"
    NO_ALBUMENTATIONS_UPDATE=1 timed img2dataset "$venv/bin/img2dataset" --url_list "$folder/table.parquet" \
        --input_format parquet --url_col URL --caption_col TEXT --output_format webdataset \
        --output_folder "$folder/out/img2dataset" --processes_count 2 --thread_count 16 --image_size 1024 \
        --resize_mode center_crop --encode_quality 95 --number_sample_per_shard 120 --extract_exif False \
        --enable_wandb False > "$folder/out/img2dataset.log" 2>&1
    grep 'total   - success' "$folder/out/img2dataset.log" | tail -1 >> "$results"
    for mode in square original; do
        timed "curate $mode" "$curate" --manifest "$here/peer/$mode" --run "$folder/out/$mode" > "$folder/out/$mode.log" 2>&1
        grep finished "$folder/out/$mode.log" >> "$results"
    done
done
cat "$results"
