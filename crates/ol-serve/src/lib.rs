//! OpenLoRA: an engine that decodes batches of mixed adapters. No HTTP.
