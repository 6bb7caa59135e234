#!/bin/sh
# Runs each fuzz target for some seconds (default 60) from the kept corpus; a finding fails. Needs nightly and cargo-fuzz.
set -eu
cd "$(dirname "$0")/../fuzz"
seconds="${1:-60}"
for target in $(cargo +nightly fuzz list); do
    # New inputs go to a scratch corpus: what is kept is chosen by hand.
    scratch="target/corpus/$target"
    mkdir -p "$scratch"
    cargo +nightly fuzz run "$target" "$scratch" "corpus/$target" -- -max_total_time="$seconds" -timeout=10
done
