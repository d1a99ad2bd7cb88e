"""Extensions of the Lightning Trainer: checkpoints, resuming, preemption, SLURM, FSDP2."""
