#!/bin/sh
# 100,000 calls over 100 connections on every transport, with random faults, and with connections cut where there is a socket to
# cut: each call ends once, nothing leaks. Minutes, where the ordinary test has 3,000 calls.
set -eu
cd "$(dirname "$0")/.."
UCRPC_STRESS=full exec cargo test --release -p ucrpc --test rpc -- --nocapture random_
