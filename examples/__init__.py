"""Examples that run: `make demo`, the provisioning saga that it runs, and a tutorial about booking a trip."""
