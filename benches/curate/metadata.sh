#!/bin/sh
# The LAION filter over 20 million rows: `curate --plan` beside DuckDB's query, five times in turn.
#     benches/curate/metadata.sh CURATE PYTHON FOLDER
set -eu
curate=$1 python=$2 folder=$3
here=$(dirname "$0")
mkdir -p "$folder"
[ -e "$folder/laion.parquet" ] || "$python" "$here/make_table.py" "$folder/laion.parquet"
for turn in 1 2 3 4 5; do
    /usr/bin/time -f "curate: %e s wall, %U s user, %S s system, %M KB" "$curate" --manifest "$here" --run "$folder" --plan | head -4
    /usr/bin/time -f "duckdb: %e s wall, %U s user, %S s system, %M KB" "$python" "$here/duckdb_filter.py" "$folder/laion.parquet"
done
