#!/bin/sh
# Runs fuzz targets for a while each, two at a time: scripts/fuzz.sh [SECONDS] [TARGET...]
#
# libFuzzer needs code with coverage counters, which a stable compiler makes as well; a nightly one would add
# the address sanitizer, of which safe code has little. What is found lies in target/fuzz/artifacts.
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-60}
[ $# -eq 0 ] || shift
case $seconds in '' | *[!0-9]*) echo "usage: scripts/fuzz.sh [SECONDS] [TARGET...]" >&2; exit 64 ;; esac

target=$(pwd)/target/fuzz
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target, build scripts and macros are not instrumented.
RUSTFLAGS="$flags" CARGO_TARGET_DIR="$target" cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host"

all=$(sed -n 's/^path = "targets\/\(.*\)\.rs"$/\1/p' fuzz/Cargo.toml)
mkdir -p "$target/artifacts"
fuzz() { # TARGET
    log=$target/$1.log
    if "$target/$host/release/$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
        -artifact_prefix="$target/artifacts/$1-" >"$log" 2>&1; then
        echo "$1: $(sed -n 's/^Done \([0-9]*\) runs.*/\1 runs, nothing found/p' "$log")"
    else
        tail -n 30 "$log" >&2
        echo "$1: FOUND SOMETHING; the input is in target/fuzz/artifacts" >&2
        return 1
    fi
}

failed=0
# shellcheck disable=SC2086 # a list of names
[ $# -gt 0 ] || set -- $all
while [ $# -gt 0 ]; do
    fuzz "$1" & first=$!
    shift
    second=
    if [ $# -gt 0 ]; then
        fuzz "$1" & second=$!
        shift
    fi
    wait "$first" || failed=1
    [ -z "$second" ] || wait "$second" || failed=1
done
exit $failed
