"""The other side of the `serving` benchmark: many adapters on one base.

    python peer.py torch DIR
    python peer.py llama.cpp DIR
    python peer.py vllm DIR
    python peer.py once DIR ADAPTER LENGTH STEPS

DIR holds a model, and adapters in `adapters/0`, `adapters/1`, ... The first line
on stdout is `ready NAME`, or `absent REASON`. Then each line `WORK THREADS
ARGUMENT...` on stdin is done once and answered by `seconds TOKENS`. `once`
serves one request as a process of its own, and ends.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location(
    "model_peer", HERE.parents[2] / "ol-train/benches/model/peer.py"
)
model_peer = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(model_peer)
timed = model_peer.timed


def prompt(row, length, vocab):
    """The tokens that the benchmark itself uses."""
    return [10 + (7 + 31 * row + 17 * i) % (vocab - 10) for i in range(length)]


class Torch(model_peer.Torch):
    """A batch of mixed adapters, as PEFT's `adapter_names`."""

    def __init__(self, folder):
        super().__init__(folder)
        self.folder = folder

    def adapters(self, n):
        import peft

        path = lambda i: os.path.join(self.folder, "adapters", str(i))
        self.n = n
        self.model = peft.PeftModel.from_pretrained(self.model, path(0), adapter_name="a0")
        for i in range(1, n):
            self.model.load_adapter(path(i), adapter_name=f"a{i}")
        self.model.eval()
        return 0.0, n

    def cold(self, times):
        """Loads one adapter again and again."""
        path = os.path.join(self.folder, "adapters", "0")

        def run():
            for i in range(times):
                self.model.load_adapter(path, adapter_name=f"cold{i}")

        seconds = timed(run)
        for i in range(times):
            self.model.delete_adapter(f"cold{i}")
        return seconds, times

    def mixed(self, rows, length, steps, first):
        torch = self.torch
        tokens = torch.tensor([prompt(first + row, length, self.vocab) for row in range(rows)])
        names = [f"a{(first + row) % self.n}" for row in range(rows)]
        with torch.inference_mode():
            seconds = timed(
                lambda: self.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    adapter_names=names,
                    do_sample=False,
                    min_new_tokens=steps,
                    max_new_tokens=steps,
                    pad_token_id=0,
                )
            )
        return seconds, rows * steps

    def threads(self, n):
        self.torch.set_num_threads(n)


class LlamaCpp(model_peer.LlamaCpp):
    """One adapter at a time, changed between requests."""

    def __init__(self, folder):
        import tempfile

        super().__init__(folder)
        self.made = tempfile.TemporaryDirectory()
        pointer = model_peer.ctypes.c_void_p
        char_p = model_peer.ctypes.c_char_p
        for name, result, arguments in [
            ("llama_adapter_lora_init", pointer, [pointer, char_p]),
            ("llama_get_model", pointer, [pointer]),
            (
                "llama_set_adapters_lora",
                model_peer.ctypes.c_int32,
                [
                    pointer,
                    model_peer.ctypes.POINTER(pointer),
                    model_peer.ctypes.c_size_t,
                    model_peer.ctypes.POINTER(model_peer.ctypes.c_float),
                ],
            ),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments

    def adapters(self, n):
        for i in range(n):
            source = os.path.join(self.folder, "adapters", str(i))
            write_gguf_adapter(source, self.config, os.path.join(self.made.name, f"{i}.gguf"))
        self.model_path = os.path.join(self.made.name, "model-F32.gguf")
        folder, self.folder = self.folder, self.made.name
        if not os.path.exists(self.model_path):
            model_peer.write_gguf(folder, self.config, "F32", self.model_path)
        context = self.context()
        model = self.lib.llama_get_model(context)
        self.loras = []
        for i in range(n):
            path = os.path.join(self.made.name, f"{i}.gguf").encode()
            lora = self.lib.llama_adapter_lora_init(model, path)
            if not lora:
                raise RuntimeError(f"llama.cpp refused {path}")
            self.loras.append(lora)
        return 0.0, n

    def swap(self, requests, length, steps):
        """Requests of different adapters, one after the other."""
        ctypes = model_peer.ctypes
        context = self.context()

        def run():
            for request in range(requests):
                lora = (ctypes.c_void_p * 1)(self.loras[request % len(self.loras)])
                scale = (ctypes.c_float * 1)(1.0)
                self.lib.llama_set_adapters_lora(context, lora, 1, scale)
                self.lib.llama_memory_clear(self.lib.llama_get_memory(context), True)
                tokens = prompt(request, length, self.vocab)
                self.feed(context, [(t, i, 0, i + 1 == length) for i, t in enumerate(tokens)])
                last = self.best(context, length - 1)
                for step in range(steps - 1):
                    self.feed(context, [(last, length + step, 0, 1)])
                    last = self.best(context, 0)

        return timed(run), requests * steps


def write_gguf_adapter(source, config, path):
    """A PEFT adapter as llama.cpp reads it."""
    import json

    import gguf
    from safetensors.numpy import load_file

    with open(os.path.join(source, "adapter_config.json"), encoding="utf-8") as file:
        adapter = json.load(file)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter["lora_alpha"]))
    for name, value in load_file(os.path.join(source, "adapter_model.safetensors")).items():
        name = name.removeprefix("base_model.model.model.layers.")
        layer, rest = name.split(".", 1)
        module, part = rest.removesuffix(".weight").rsplit(".", 1)
        if part == "lora_B" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            value = model_peer.interleave(value, heads if "q_proj" in module else kv_heads)
        target = model_peer.NAMES[f"{module}.weight"]
        writer.add_tensor(f"blk.{layer}.{target}.{part.lower()}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Vllm:
    """vLLM's CPU backend; an adapter for each request."""

    def __init__(self, folder):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # As many threads as cores, where the system puts them.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
        import torch
        import vllm

        self.vllm = vllm
        self.folder = folder
        self.engine = vllm.LLM(
            model=folder,
            dtype="float32",
            enforce_eager=True,
            enable_lora=True,
            max_loras=16,
            max_cpu_loras=128,
            max_lora_rank=64,
            max_num_seqs=16,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
        )
        self.vocab = self.engine.llm_engine.model_config.get_vocab_size()
        self.name = f"vLLM {vllm.__version__} CPU with LoRA, torch {torch.__version__}"

    def adapters(self, n):
        self.n = n
        return 0.0, n

    def serve(self, requests, length, steps):
        from vllm.lora.request import LoRARequest

        path = lambda i: os.path.join(self.folder, "adapters", str(i))
        which = [request % self.n for request in range(requests)]
        loras = [LoRARequest(f"a{i}", i + 1, path(i)) for i in which]
        prompts = [{"prompt_token_ids": prompt(r, length, self.vocab)} for r in range(requests)]
        sampling = self.vllm.SamplingParams(
            temperature=0.0, max_tokens=steps, ignore_eos=True, detokenize=False
        )
        run = lambda: self.engine.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
        return timed(run), requests * steps

    def threads(self, n):
        import torch

        torch.set_num_threads(n)


def once(folder, adapter, length, steps):
    torch = Torch(folder)
    import peft

    path = os.path.join(folder, "adapters", adapter)
    torch.model = peft.PeftModel.from_pretrained(torch.model, path).eval()
    tokens = torch.torch.tensor([prompt(0, int(length), torch.vocab)])
    with torch.torch.inference_mode():
        torch.model.generate(
            input_ids=tokens,
            attention_mask=torch.torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=int(steps),
            max_new_tokens=int(steps),
            pad_token_id=0,
        )


def main():
    kind, folder = sys.argv[1:3]
    if kind == "once":
        once(folder, *sys.argv[3:])
        return
    # What the libraries print is not an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kinds = {"torch": Torch, "llama.cpp": LlamaCpp, "vllm": Vllm}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            peer = kinds[kind](folder)
    except Exception as error:  # whatever it is, the benchmark goes on without
        print("absent", " ".join(str(error).split())[:300], file=answers)
        return
    print("ready", peer.name, file=answers)
    for line in sys.stdin:
        work, threads, *arguments = line.split()
        if work != "adapters":
            peer.threads(int(threads))
        try:
            seconds, tokens = getattr(peer, work)(*map(int, arguments))
            print(seconds, tokens, file=answers)
        except Exception as error:  # the benchmark reports it
            print("failed", " ".join(str(error).split())[:300], file=answers)


if __name__ == "__main__":
    main()
