#!/usr/bin/env bash
# The demo world's tables and shards in Azure's emulator: a run, its proof, a second run, and the shards of a local run.
#
#   benches/curate/azure.sh PROGRAMS AZURITE VENV FOLDER
#
# PROGRAMS holds curate and demo-world, AZURITE is the program azurite-blob (npm), VENV has azure-storage-blob, FOLDER is
# made.
set -euo pipefail

programs=$1 azurite=$2 venv=$3 folder=$4
here=$(dirname "$(realpath "$0")")
mkdir "$folder"
cd "$folder"
"$azurite" --silent --location blobs --blobPort 10000 --skipApiVersionCheck > azurite.log 2>&1 &
trap 'kill $!' EXIT
until (: > /dev/tcp/127.0.0.1/10000) 2> /dev/null; do
    kill -0 $!
    sleep 0.2
done
"$programs/demo-world" generate --world world --port 18574 --more-clean 0

"$venv/bin/python" - <<'PY'
from pathlib import Path
from azure.storage.blob import BlobServiceClient

# The account and key that every emulator has.
key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
account = BlobServiceClient("http://127.0.0.1:10000/devstoreaccount1", credential=key)
container = account.create_container("laion")
for table in Path("world").glob("*/*.parquet"):
    container.upload_blob(f"tables/{table.parent.name}/{table.name}", table.read_bytes())
PY

mkdir here there
sed -e "s#{run}/world/#$PWD/world/#" "$here/../../manifests/demo/data.toml" > here/data.toml
sed -e 's#{run}/world/#az://laion/tables/#' -e 's#^\[shards\]#&\ntarget = "az://laion/out"#' \
    "$here/../../manifests/demo/data.toml" > there/data.toml
export AZURE_STORAGE_USE_EMULATOR=true
for place in here there; do
    for options in '' --verify ''; do
        echo "== curate, manifest $place, $options"
        # shellcheck disable=SC2086
        "$programs/demo-world" serve --world world --port 18574 -- \
            "$programs/curate" --manifest $place --run "run-$place" $options 2>&1 | tail -n 30
    done
done
"$venv/bin/python" - <<'PY'
import json

here, there = (json.load(open(f"run-{place}/curated/index.json")) for place in ("here", "there"))
assert here["shards"] == there["shards"] and here["totals"]["reasons"] == there["totals"]["reasons"]
print(f"{len(there['shards'])} shards of {there['totals']['kept']} samples have the hashes of a local run's")
PY
