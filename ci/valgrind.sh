#!/bin/sh
# Runs the UCX room's tests, and the processes that they start, under valgrind. Any error that ci/valgrind.supp does not name
# fails. The first argument, if any, chooses tests: `ci/valgrind.sh ucx::tests::held`. Needs valgrind and UCX.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
memcheck="valgrind -q --trace-children=yes --leak-check=no --error-exitcode=99 --suppressions=$PWD/ci/valgrind.supp"
export "CARGO_TARGET_${host}_RUNNER=$memcheck"
exec cargo test -p ucrpc-transport --lib "${1:-ucx::tests::}" -- --skip latency --skip cycles --skip come_and_go --test-threads=1
