#!/usr/bin/env bash
# Checks what the machine has and brings libtorch into the cache. Idempotent; Python's torch is never imported.
#
#   scripts/setup.sh LIBTORCH_DIR     the folder to make, with include/ and lib/ as torch-sys wants them
#
# libtorch is the published wheel of torch and the two small CUDA libraries that its CPU half is linked with,
# pinned by version and SHA-256 in scripts/libtorch.txt. The wheel's own layout is kept under site/, because its
# libraries find each other by paths relative to it; lib/ holds links for the linker alone.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=$1
version=2.11.0
oldest_rust=1.91

fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v python3 >/dev/null || missing+=(python3)
command -v flock >/dev/null || missing+=(util-linux)
if command -v python3 >/dev/null; then
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
fi
[ ${#missing[@]} -eq 0 ] || fail "missing system packages. On Debian or Ubuntu: apt-get install ${missing[*]}"
command -v cargo >/dev/null || fail "cargo is missing: install Rust $oldest_rust or newer with rustup"
rust=$(rustc --version | cut -d' ' -f2)
at_least "$rust" $oldest_rust || fail "Rust $rust is too old, $oldest_rust is needed: rustup update stable"

check_libtorch() {
    local header=$1/include/torch/headeronly/version.h
    [ -e "$1/lib/libtorch_cpu.so" ] && [ -e "$header" ] \
        || fail "LIBTORCH=$1: not a libtorch (lib/libtorch_cpu.so or include/torch is missing); name the folder of libtorch $version, or unset LIBTORCH to have one brought"
    grep -q "\"$version\"" "$header" || fail "LIBTORCH=$1: is not version $version, which this project is built for"
}

if [ "${LIBTORCH_IS_OURS:-1}" = 0 ]; then
    check_libtorch "$target"
    exit 0
fi
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] \
    || fail "libtorch is pinned for Linux on x86-64; on $(uname -s)-$(uname -m) set LIBTORCH to a libtorch $version of your own"
[ -e "$target/lib/libtorch.so" ] && exit 0

mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9
[ -e "$target/lib/libtorch.so" ] && exit 0

echo "setup: bringing libtorch $version (530 MB to fetch, 480 MB on disk) into $target"
free_kb=$(df -Pk "$(dirname "$target")" | awk 'NR==2 {print $4}')
[ "$free_kb" -gt 2500000 ] || fail "$(dirname "$target"): $((free_kb / 1024)) MB free, 2500 MB are needed; free some or set STEPDOWN_CACHE"
partial=$target.partial
rm -rf "$partial" && mkdir -p "$partial/lib"
python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-cache-dir --no-compile --no-deps --require-hashes \
    --only-binary=:all: --implementation cp --python-version 3.12 --abi cp312 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --target "$partial/site" --requirement "$here/libtorch.txt" \
    || fail "pip could not bring the wheels of scripts/libtorch.txt; check the network, or set LIBTORCH to a libtorch $version of your own"
# What only Python and CUDA machines use: two thirds of the space.
find "$partial/site/torch" -mindepth 1 -maxdepth 1 ! -name lib ! -name include -exec rm -rf {} +
find "$partial/site/torch/lib" -mindepth 1 ! -name 'libtorch_cpu.so' ! -name 'libc10.so' ! -name 'libgomp*' -delete
rm -rf "$partial"/site/{functorch,torchgen,bin}
ln -s site/torch/include "$partial/include"
for library in libtorch_cpu.so libc10.so libgomp.so.1; do
    ln -s "../site/torch/lib/$library" "$partial/lib/$library"
done
ln -s ../site/torch/lib/libtorch_cpu.so "$partial/lib/libtorch.so"
check_libtorch "$partial"
rm -rf "$target" && mv "$partial" "$target"
