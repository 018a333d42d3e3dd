"""Decoding with adapters mixed in a batch by transformers and PEFT: the same shape,
rows, rank and targets as device.rs. Without torch, PEFT or a GPU it says so and ends.
ADAPTERS says how many adapters, as "1 10 100"; at most 2,000.
"""

import os
import time

ROWS, CONTEXT, STEPS = 128, 128, 10
ADAPTERS_MAX = 2000


def main():
    counts = sorted(int(n) for n in os.environ.get("ADAPTERS", "1 10 100 1000").split())
    if not counts or not 1 <= counts[0] <= counts[-1] <= ADAPTERS_MAX:
        raise SystemExit(f"ADAPTERS: numbers from 1 to {ADAPTERS_MAX}")
    try:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        return print(f"PEFT is not measured: {error}")
    if not torch.cuda.is_available():
        return print("PEFT is not measured: torch sees no GPU")
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora, adapter_name="a0")
    model.eval()
    print("| adapters, PEFT | tokens/s |\n|---|---|")
    have = 1
    for n in counts:
        for i in range(have, n):
            model.add_adapter(f"a{i}", lora)
        have = n
        names = [f"a{row % n}" for row in range(ROWS)]
        with torch.inference_mode():
            ids = torch.randint(1000, 2000, (ROWS, CONTEXT), device="cuda")
            out = model(ids, adapter_names=names, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            for step in range(2 + STEPS):
                if step == 2:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                out = model(
                    ids, adapter_names=names, past_key_values=out.past_key_values, use_cache=True
                )
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
            torch.cuda.synchronize()
        print(f"| {n} | {ROWS * STEPS / (time.perf_counter() - start):.0f} |", flush=True)


main()
