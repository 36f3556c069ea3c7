"""Data in, checkpoints out: reward model, DPO, and the online loop."""
