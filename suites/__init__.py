"""Which benchmarks exist, and where their data come from."""
