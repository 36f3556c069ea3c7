"""The parts of benchmarks/online_vs_offline.py."""
