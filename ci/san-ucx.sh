#!/bin/sh
# Runs the contract suite's UCX cases under AddressSanitizer, on nightly. Arguments, if any, are the cases (default: a choice
# that passes every way a frame can go, and every way to end). UCX itself is not instrumented; what it keeps for the life of
# the process is named in ci/lsan-ucx.supp, one line per place.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
[ $# -gt 0 ] || set -- \
    ucx-posix/heads_and_bodies ucx-posix/plan_ ucx-posix/abort_with ucx-posix/drop_ ucx-posix/close_ ucx-posix/mutual \
    ucx-tcp/heads_and_bodies ucx-tcp/plan_ ucx-tcp/abort_with ucx-tcp/drop_ ucx-tcp/shutdown_ ucx-all/quota
export CARGO_TARGET_DIR=target-san-address
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer"
export ASAN_OPTIONS="detect_leaks=1:handle_segv=0" LSAN_OPTIONS="suppressions=$PWD/ci/lsan-ucx.supp:print_suppressions=0"
for filter; do
    echo "== $filter"
    cargo +nightly test -p ucrpc --test contract --target "$target" -- "$filter"
done
