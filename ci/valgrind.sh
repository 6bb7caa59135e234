#!/bin/sh
# Runs the UCX room's tests, and the processes that they start, under valgrind. Any error fails. Needs valgrind and UCX.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=valgrind -q --trace-children=yes --leak-check=no --error-exitcode=99"
exec cargo test -p ucrpc-transport --lib "ucx::tests::${1:-}" -- --skip latency --test-threads=1
