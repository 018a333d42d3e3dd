//! Llama-family models: weights, tokenizer, LoRA, kernels with one K-order.
