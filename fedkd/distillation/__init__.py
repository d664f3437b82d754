"""Dataset distillation and generators."""
