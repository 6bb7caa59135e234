#!/bin/sh
# Runs the queue's tests under AddressSanitizer (with its leak check) and ThreadSanitizer, on nightly.
# The standard library is not instrumented (that needs build-std), so ThreadSanitizer cannot see its mutexes
# and reports the test harness; only a report whose summary names a file of the queue itself fails this script.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
run() {
    RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=$1 -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR="target-san-$1" \
        cargo +nightly test -p ucrpc-transport --lib --target "$target" queue::
}
run address
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run thread >"$log" 2>&1 || true
grep '^test result: ok' "$log" || { cat "$log"; exit 1; }
# One report is what is between two lines of equals signs; it names the two accesses and where the threads began.
reports=$(awk 'BEGIN { RS = "==================\n" } /WARNING: ThreadSanitizer/ && /src\/queue\/(list|mpsc|ring|wake)\.rs/' "$log")
if [ -n "$reports" ]; then
    printf '%s\n' "$reports"
    exit 1
fi
echo "ci/san.sh: no report about the queue"
