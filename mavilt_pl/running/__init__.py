"""What a long run needs on a shared machine: checkpoints to trust, one job a folder, resuming,
preemption, SLURM.
"""
