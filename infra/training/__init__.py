"""Distributed training: configs, the DeepSpeed engine, checkpoints, the loop, and the launch on Ray Train."""
