//! Training: base models and LoRA adapters, checkpoints, held-out loss.
