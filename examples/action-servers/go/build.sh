#!/bin/sh
# Generates sec/v1 from the protos, and builds bin/actionserver.
set -eu
cd "$(dirname "$0")"
protos=../../../protos
GOBIN="$PWD/bin" go install tool
PATH="$PWD/bin:$PATH" ${PROTOC:-protoc} -I "$protos" \
    --go_out=. --go_opt=module=sec.dev/protos --go-grpc_out=. --go-grpc_opt=module=sec.dev/protos "$protos"/sec/v1/*.proto
go build -o bin/actionserver .
