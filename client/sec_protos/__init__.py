"""The generated messages and stubs of protos/sec. Regenerate with `make gen`."""
