#!/bin/sh
# Generates the messages and stubs from the protos, and builds target/action-server.jar.
set -eu
cd "$(dirname "$0")"
mvn -q -B package
