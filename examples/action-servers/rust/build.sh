#!/bin/sh
# Generates the messages and stubs from the protos, and builds target/debug/action-server.
set -eu
cd "$(dirname "$0")"
cargo build --locked
