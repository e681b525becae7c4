"""The SEC node: the thin shell around the core. Drivers run sagas, an owner claims them, a leader keeps house. No rule about sagas stands here."""
