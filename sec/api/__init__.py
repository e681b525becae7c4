"""The gRPC services of an SEC node: checks of what comes in, errors as statuses, and views of sagas for people."""
