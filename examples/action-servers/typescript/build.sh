#!/bin/sh
# Generates gen/ from the protos, and builds dist/.
set -eu
cd "$(dirname "$0")"
npm ci --no-audit --no-fund
npm run build
