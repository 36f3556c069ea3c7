"""rlhf-bench: evaluation at the centre of RLHF."""

__version__ = "0.1.0"
