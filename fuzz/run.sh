#!/bin/sh
# Fuzzes one target on the stable toolchain: fuzz/run.sh TARGET [RUNS [SEEDS...]]
# What cargo-fuzz does with `--sanitizer none`, without cargo-fuzz and without nightly.
set -eu
cd "$(dirname "$0")"
target=$1
runs=${2:-1000000}
[ $# -ge 2 ] && shift 2 || shift 1
host=$(rustc -vV | sed -n 's/^host: //p')
flags='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4'
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
# A target directory of its own: instrumented crates are of no use to any other build. Build
# scripts are not instrumented, because --target is given.
RUSTFLAGS="$flags" CARGO_TARGET_DIR=target cargo build --release --target "$host" --bin "$target"
new=target/corpus/$target
mkdir -p "$new" artifacts
exec "target/$host/release/$target" "$new" "corpus/$target" "$@" \
    -artifact_prefix="artifacts/$target-" -runs="$runs" -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1
