#!/bin/sh
# Explores all interleavings of the queue's models. Takes a minute at most; pass a test's name to run that one.
set -eu
cd "$(dirname "$0")/.."
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" CARGO_TARGET_DIR=target-loom \
    exec cargo test -p ucrpc-transport --lib --release "queue::models::${1:-}"
