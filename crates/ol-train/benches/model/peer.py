"""The other side of the `model` benchmark: transformers + PEFT, and llama.cpp.

    python peer.py torch DIR
    python peer.py llama.cpp DIR

DIR holds `config.json` and `model.safetensors`. The first line on stdout is
`ready NAME`, or `absent REASON`. Then each line `WORK THREADS ARGUMENT...` on
stdin is done once and answered by `seconds TOKENS`; the seconds are measured
here, around the work alone.
"""

import ctypes
import json
import os
import sys
import time


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prompt(rows, length, vocab):
    """The tokens that the benchmark itself uses."""
    return [[(7 + 31 * row + 17 * i) % vocab for i in range(length)] for row in range(rows)]


class Torch:
    """transformers + PEFT in f32."""

    def __init__(self, folder):
        os.environ["HF_HUB_OFFLINE"] = "1"
        import peft
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.vocab = self.model.config.vocab_size
        self.name = f"transformers {transformers.__version__} + PEFT {peft.__version__}, torch {torch.__version__}"
        self.trained = None
        self.matrices = None

    def prefill(self, rows, length):
        tokens = self.torch.tensor(prompt(rows, length, self.vocab))
        with self.torch.inference_mode():
            seconds = timed(lambda: self.model(tokens, logits_to_keep=1, use_cache=True))
        return seconds, rows * length

    def decode(self, rows, length, steps):
        torch = self.torch
        tokens = torch.tensor(prompt(rows, length, self.vocab))
        with torch.inference_mode():
            out = self.model(tokens, logits_to_keep=1, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)

            def run():
                nonlocal last
                for _ in range(steps):
                    logits = self.model(last, past_key_values=cache, use_cache=True).logits
                    last = logits[:, -1].argmax(-1, keepdim=True)

            seconds = timed(run)
        return seconds, rows * steps

    def train(self, rows, length, rank):
        """One optimiser step of LoRA on every linear layer."""
        torch = self.torch
        if self.trained is None:
            import copy

            import peft

            config = peft.LoraConfig(
                r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            # PEFT changes the model it is given: the weights are shared, the
            # modules are not.
            shared = {id(p): p for p in self.model.parameters()}
            model = peft.get_peft_model(copy.deepcopy(self.model, dict(shared)), config)
            model.train()
            self.trained = model
            self.optimiser = torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
            )
            self.vocab = self.model.config.vocab_size
        tokens = torch.tensor(prompt(rows, length + 1, self.vocab))

        def run():
            loss = self.trained(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)

        # transformers leaves out the first label itself, so one token more
        # gives `length` predictions a row.
        return timed(run), rows * length

    def gemm(self, m, n, k):
        torch = self.torch
        if self.matrices is None or self.matrices[0].shape != (m, k):
            self.matrices = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        a, b, c = self.matrices
        return timed(lambda: torch.matmul(a, b, out=c)), m * n * k

    def threads(self, n):
        self.torch.set_num_threads(n)


class LlamaCpp:
    """llama.cpp through the symbols of xllamacpp, without server and sampler.

    Only the first fields of its parameter structs are named; the rest is
    carried along as bytes. That the names sit where they should is checked
    against the defaults they are known to have.
    """

    ROWS, CONTEXT = 16, 4096

    class Parameters(ctypes.Structure):
        _fields_ = [
            ("n_ctx", ctypes.c_uint32),
            ("n_batch", ctypes.c_uint32),
            ("n_ubatch", ctypes.c_uint32),
            ("n_seq_max", ctypes.c_uint32),
            ("rest", ctypes.c_uint8 * 496),
        ]

    class ModelParameters(ctypes.Structure):
        _fields_ = [("rest", ctypes.c_uint8 * 512)]

    class Batch(ctypes.Structure):
        _fields_ = [
            ("n_tokens", ctypes.c_int32),
            ("token", ctypes.POINTER(ctypes.c_int32)),
            ("embd", ctypes.POINTER(ctypes.c_float)),
            ("pos", ctypes.POINTER(ctypes.c_int32)),
            ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
            ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            ("logits", ctypes.POINTER(ctypes.c_int8)),
        ]

    def __init__(self, folder):
        import numpy
        import xllamacpp

        self.np = numpy
        module = os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp.abi3.so")
        self.lib = lib = ctypes.CDLL(module)
        pointer = ctypes.c_void_p
        for name, result, arguments in [
            ("llama_backend_init", None, []),
            ("llama_model_default_params", self.ModelParameters, []),
            ("llama_context_default_params", self.Parameters, []),
            ("llama_model_load_from_file", pointer, [ctypes.c_char_p, self.ModelParameters]),
            ("llama_init_from_model", pointer, [pointer, self.Parameters]),
            ("llama_n_ctx", ctypes.c_uint32, [pointer]),
            ("llama_set_n_threads", None, [pointer, ctypes.c_int32, ctypes.c_int32]),
            ("llama_batch_init", self.Batch, [ctypes.c_int32] * 3),
            ("llama_decode", ctypes.c_int32, [pointer, self.Batch]),
            ("llama_synchronize", None, [pointer]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
            ("llama_get_memory", pointer, [pointer]),
            ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
            ("llama_log_set", None, [pointer, pointer]),
        ]:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
        lib.llama_log_set(ctypes.cast(self.quiet, pointer), None)
        lib.llama_backend_init()
        info = str(xllamacpp.get_system_info())
        level = "AVX-512" if "AVX512 = 1" in info else "AVX2" if "AVX2 = 1" in info else "no AVX2"
        self.name = f"llama.cpp (xllamacpp {xllamacpp.__version__}, {level} build)"
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.vocab = self.config["vocab_size"]
        self.contexts = {}
        self.format = "F32"
        self.folder = folder

    def context(self):
        if self.format not in self.contexts:
            path = os.path.join(self.folder, f"model-{self.format}.gguf")
            lib = self.lib
            model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
            parameters = lib.llama_context_default_params()
            seen = (parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max)
            if seen != (512, 2048, 512, 1):
                raise RuntimeError(f"llama_context_params has another layout: {seen}")
            parameters.n_ctx = self.CONTEXT
            parameters.n_seq_max = self.ROWS
            context = model and lib.llama_init_from_model(model, parameters)
            if not context or lib.llama_n_ctx(context) < self.CONTEXT:
                raise RuntimeError(f"llama.cpp refused {path}")
            self.contexts[self.format] = context
            self.batch = lib.llama_batch_init(2048, 0, 1)
        return self.contexts[self.format]

    def feed(self, context, entries):
        """entries: (token, position, sequence, whether logits are wanted)"""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if self.lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def prompts(self, context, rows, length):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(context), True)
        entries = [
            (token, i, row, i + 1 == length)
            for row, tokens in enumerate(prompt(rows, length, self.vocab))
            for i, token in enumerate(tokens)
        ]
        self.feed(context, entries)
        self.lib.llama_synchronize(context)
        return [i for i, entry in enumerate(entries) if entry[3]]

    def best(self, context, index):
        logits = self.lib.llama_get_logits_ith(context, index)
        return int(self.np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def prefill(self, rows, length):
        context = self.context()
        return timed(lambda: self.prompts(context, rows, length)), rows * length

    def decode(self, rows, length, steps):
        context = self.context()
        last = [self.best(context, i) for i in self.prompts(context, rows, length)]

        def run():
            nonlocal last
            for step in range(steps):
                entries = [(token, length + step, row, 1) for row, token in enumerate(last)]
                self.feed(context, entries)
                last = [self.best(context, i) for i in range(rows)]

        return timed(run), rows * steps

    def load(self, form):
        """The work that follows runs on this format; the file is written once."""
        self.format = form
        path = os.path.join(self.folder, f"model-{form}.gguf")
        if not os.path.exists(path):
            write_gguf(self.folder, self.config, form, path)
        self.context()
        return 0.0, 0

    def threads(self, n):
        self.lib.llama_set_n_threads(self.context(), n, n)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def interleave(rows, heads):
    """GGUF's Llama rotates neighbours, Hugging Face's rotates halves."""
    size, width = rows.shape
    return rows.reshape(heads, 2, size // heads // 2, width).swapaxes(1, 2).reshape(size, width)


def write_gguf(folder, config, form, path):
    """The same weights as GGUF; the layers' matrices in `form` (F32 or Q4_K)."""
    import gguf
    import numpy
    from safetensors.numpy import load_file

    tensors = load_file(os.path.join(folder, "model.safetensors"))
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    # No text passes through this model; llama.cpp wants a vocabulary anyway.
    writer.add_tokenizer_model("llama")
    n = config["vocab_size"]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    names += [f"t{i}" for i in range(len(names), n)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (n - 259)
    writer.add_token_list(names[:n])
    writer.add_token_scores([0.0] * n)
    writer.add_token_types(kinds[:n])
    for name, value in tensors.items():
        value = value.astype(numpy.float32)
        if name.startswith("model.layers."):
            layer, short = name.removeprefix("model.layers.").split(".", 1)
            if short == "self_attn.q_proj.weight":
                value = interleave(value, heads)
            elif short == "self_attn.k_proj.weight":
                value = interleave(value, kv_heads)
            target = f"blk.{layer}.{NAMES[short]}"
        else:
            target = NAMES[name]
        if form == "Q4_K" and value.ndim == 2 and name.startswith("model.layers."):
            raw = quantise_q4_k(value)
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
        else:
            writer.add_tensor(target, numpy.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_theta(config):
    parameters = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0)


def quantise_q4_k(rows):
    """Q4_K by each sub-block's extremes: 256 weights in 144 bytes.

    Super-block: d and dmin (f16), eight 6-bit scales and minima in twelve
    bytes, 128 bytes of nibbles (low nibbles: the even sub-block of a pair).
    """
    import numpy as np

    size, width = rows.shape
    assert width % 256 == 0, "Q4_K needs rows of a multiple of 256"
    blocks = rows.reshape(-1, 8, 32)
    low = np.minimum(blocks.min(-1), 0.0)
    scale = (blocks.max(-1) - low) / 15.0
    d = np.float16(scale.max(-1) / 63.0)
    dmin = np.float16((-low).max(-1) / 63.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sc = np.nan_to_num(np.rint(scale / np.float32(d)[:, None])).clip(0, 63).astype(np.uint8)
        mn = np.nan_to_num(np.rint(-low / np.float32(dmin)[:, None])).clip(0, 63).astype(np.uint8)
        step = np.float32(d)[:, None] * sc
        offset = np.float32(dmin)[:, None] * mn
        q = np.nan_to_num(np.rint((blocks + offset[..., None]) / step[..., None]))
    q = q.clip(0, 15).astype(np.uint8)
    packed = np.zeros((len(blocks), 12), np.uint8)
    packed[:, 0:4] = (sc[:, :4] & 63) | ((sc[:, 4:] >> 4) << 6)
    packed[:, 4:8] = (mn[:, :4] & 63) | ((mn[:, 4:] >> 4) << 6)
    packed[:, 8:12] = (sc[:, 4:] & 15) | ((mn[:, 4:] & 15) << 4)
    nibbles = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(len(blocks), 128)
    halves = np.stack([d, dmin], 1).view(np.uint8)
    return np.concatenate([halves, packed, nibbles], 1).reshape(size, width // 256 * 144)


def main():
    kind, folder = sys.argv[1], sys.argv[2]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        peer = {"torch": Torch, "llama.cpp": LlamaCpp}[kind](folder)
    except (ImportError, OSError) as error:
        print(f"absent {error}", file=answers)
        return
    print(f"ready {peer.name}", file=answers)
    for line in sys.stdin:
        work, threads, *arguments = line.split()
        if int(threads) > 0:
            peer.threads(int(threads))
        arguments = [int(a) if a.isdigit() else a for a in arguments]
        seconds, count = getattr(peer, work)(*arguments)
        print(f"{seconds:.9f} {count}", file=answers)


if __name__ == "__main__":
    main()
