"""`secctl conformance`: whether a running action server keeps the contract, found out by calling it as an SEC node does."""
