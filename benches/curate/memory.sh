#!/bin/sh
# Peak memory of a run, and whether it grows: 20,000 rows over the images of img2dataset.sh, resident memory every
# two seconds.
#     benches/curate/memory.sh CURATE VENV FOLDER [ROWS]
# Writes FOLDER/memory.csv: seconds, resident KB. FOLDER is that of img2dataset.sh, which makes the images.
set -eu
curate=$1 venv=$2 folder=$3 rows=${4:-20000}
here=$(cd "$(dirname "$0")" && pwd)
[ -e "$folder/table.parquet" ] || "$venv/bin/python" "$here/peer/make_world.py" "$folder"
"$venv/bin/python" - "$folder" "$rows" <<'PY'
import sys
import pyarrow as pa, pyarrow.parquet as pq
folder, rows = sys.argv[1], int(sys.argv[2])
table = pq.read_table(f"{folder}/table.parquet").to_pydict()
n = len(table["URL"])
many = {name: [values[i % n] for i in range(rows)] for name, values in table.items()}
many["URL"] = [f"{url}?copy={i // n}" for i, url in enumerate(many["URL"])]
pq.write_table(pa.table(many), f"{folder}/many.parquet", row_group_size=4096)
PY
mkdir -p "$folder/tmp"
/usr/sbin/nginx -p "$folder" -e nginx.log -c "$here/peer/nginx.conf" -g "user $(id -un) $(id -gn);" 2> /dev/null & nginx=$!
trap 'kill $nginx; wait' EXIT
sleep 1
rm -rf "$folder/out/memory" && mkdir -p "$folder/out/memory"
"$curate" --manifest "$here/peer/memory" --run "$folder/out/memory" > "$folder/out/memory.log" 2>&1 & run=$!
began=$(date +%s)
echo seconds,resident_kb > "$folder/memory.csv"
while [ -e /proc/$run/status ] && resident=$(awk '/VmRSS/ { print $2 }' /proc/$run/status) && [ -n "$resident" ]; do
    echo "$(($(date +%s) - began)),$resident" >> "$folder/memory.csv"
    sleep 2
done
cat "$folder/out/memory.log"
