#!/bin/sh
# Runs the queue's tests under Miri, scaled down, with several schedules. Needs: rustup +nightly component add miri rust-src
set -eu
cd "$(dirname "$0")/.."
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "ci/miri.sh: miri is not installed, so nothing was checked; rustup +nightly component add miri rust-src" >&2
    exit 1
fi
MIRIFLAGS="${MIRIFLAGS:-} -Zmiri-strict-provenance -Zmiri-disable-isolation -Zmiri-many-seeds=0..8" \
    exec cargo +nightly miri test -p ucrpc-transport --lib queue::
