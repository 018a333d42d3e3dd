#!/usr/bin/env python3
"""Runs an OpenLedger training job with transformers and PEFT.

    run_job.py SPEC FOLDER

A runner as specs/runner.md describes it: SPEC is a job (specs/job.md, JSON), FOLDER receives
metrics.jsonl, state.json, a checkpoint, and at the end adapter/ with the PEFT files and
training.json. Order of the data, batches, schedule and initial adapter are those of the built-in
trainer, so that both walk the same path up to rounding; what is held out is the same where the
job names evaluation.files.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
MASK = (1 << 64) - 1
LINE_SIZE_MAX = 4 << 20

# TrainOptions, with its defaults.
OPTIONS = {
    "batch_sequences": None,
    "batch_tokens": 2048,
    "beta1": 0.9,
    "beta2": 0.95,
    "checkpoint_every": 0,
    "checkpoints_keep": 1,
    "clip_norm": 1.0,
    "dpo_beta": 0.1,
    "dpo_label_smoothing": 0.0,
    "epochs": None,
    "evaluate_every": 50,
    "evaluate_tokens": 16384,
    "final_fraction": 0.1,
    "keep_best": False,
    "learning_rate": 1e-3,
    "micro_batch_tokens": None,
    "optimizer": "adamw",
    "patience": None,
    "recompute": False,
    "schedule": "cosine",
    "seed": 0,
    "shuffle": True,
    "steps": 200,
    "warmup_ratio": None,
    "warmup_steps": 20,
    "weight_decay": 0.0,
}
LORA = {
    "alpha": None,
    "dora": False,
    "dropout": 0.0,
    "rank": 16,
    "rslora": False,
    "target_modules": "all-linear",
}
DATA = {
    "datanet": None,
    "files": [],
    "format": "auto",
    "max_tokens": None,
    "prompt_weight": 0.0,
    "skip_bad": 0,
    "version": None,
}
EVALUATION = {"files": [], "generate": 16, "held_out_fraction": 0.05, "max_new_tokens": 64}
BASE = {"hub": None, "path": None, "quantise": None, "revision": None}
ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The fields of the first manifests; the others are written only where they differ.
ALWAYS = {
    "batch_tokens", "beta1", "beta2", "checkpoint_every", "clip_norm", "evaluate_every",
    "evaluate_tokens", "final_fraction", "learning_rate", "patience", "seed", "steps",
    "warmup_steps", "weight_decay",
}  # fmt: skip


class Refused(Exception):
    """The job cannot run as it is described."""


class Random:
    """SplitMix64, as ol-model's."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def shuffle(self, items):
        for i in range(len(items) - 1, 0, -1):
            j = (self.next() * (i + 1)) >> 64
            items[i], items[j] = items[j], items[i]

    def uniform(self, n):
        """The next n numbers in [0, 1), as a numpy array."""
        import numpy

        with numpy.errstate(over="ignore"):
            steps = numpy.arange(1, n + 1, dtype=numpy.uint64)
            z = numpy.uint64(self.state) + steps * numpy.uint64(0x9E3779B97F4A7C15)
            self.state = int(z[-1]) if n else self.state
            z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
            z = z ^ (z >> numpy.uint64(31))
        return (z >> numpy.uint64(11)).astype(numpy.float64) / float(1 << 53)


def write_atomic(path, text):
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Folder:
    def __init__(self, root):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.step = self.steps = 0

    def state(self, phase, message=""):
        state = {
            "format": "openledger-run/1",
            "message": message,
            "phase": phase,
            "step": self.step,
            "steps": self.steps,
        }
        write_atomic(self.root / "state.json", json.dumps(state, indent=2))

    def log(self, text):
        print(f"{int(time.time())} {text}", flush=True)


def section(spec, name, defaults):
    given = spec.get(name) or {}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise Refused(f"{name}: this runner does not know {', '.join(unknown)}")
    return {**defaults, **given}


def is_quantised(spec):
    return spec["method"] == "qlora" or (
        spec["method"] == "dpo" and spec["base"]["quantise"] is not None
    )


def read_spec(path):
    try:
        spec = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from error
    if not isinstance(spec, dict) or spec.get("format") != "openledger-job/1":
        raise Refused(f"{path}: format is not openledger-job/1")
    known = {
        "base", "data", "evaluation", "format", "lora", "method", "name", "options", "output",
    }  # fmt: skip
    if set(spec) - known:
        raise Refused(f"this runner does not know {', '.join(sorted(set(spec) - known))}")
    spec["base"] = section(spec, "base", BASE)
    spec["data"] = section(spec, "data", DATA)
    spec["evaluation"] = section(spec, "evaluation", EVALUATION)
    spec["lora"] = section(spec, "lora", LORA)
    spec["options"] = section(spec, "options", OPTIONS)
    spec.setdefault("method", "lora")
    if spec["method"] not in ("lora", "qlora", "dpo"):
        raise Refused(f"method: this runner trains lora, qlora and dpo, not {spec['method']}")
    if is_quantised(spec) and spec["base"]["quantise"] != "nf4":
        raise Refused("base.quantise: this runner quantises to nf4 only")
    if spec["data"]["datanet"] is not None:
        raise Refused("data.datanet: this runner reads files only")
    if spec["lora"]["dropout"]:
        raise Refused("lora.dropout: only 0")
    if spec["options"]["optimizer"] != "adamw":
        raise Refused("options.optimizer: this runner has adamw only")
    if bool(spec["base"]["path"]) == bool(spec["base"]["hub"]):
        raise Refused("base: give either path or hub")
    return spec


def rows(path):
    """The examples of a JSONL file."""
    if not str(path).endswith((".jsonl", ".ndjson")):
        raise Refused(f"{path}: this runner reads .jsonl files only")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_SIZE_MAX + 1), b""), 1):
            if len(line) > LINE_SIZE_MAX:
                raise Refused(f"{path}, line {number}: longer than {LINE_SIZE_MAX} bytes")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise Refused(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise Refused(f"{path}, line {number}: not an object")
            yield f"{path}, line {number}", row


def messages(place, row):
    """An example as chat messages, as prompt and completion, or as text."""
    if "messages" in row:
        return row["messages"]
    if "text" in row:
        return row["text"]
    if "prompt" in row and "completion" in row:
        return row["prompt"], row["completion"]
    if "question" in row and "answer" in row:
        return [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    if "instruction" in row and "output" in row:
        given = row["instruction"]
        if row.get("input"):
            given = f"{given}\n\n{row['input']}"
        return [
            {"role": "user", "content": given},
            {"role": "assistant", "content": row["output"]},
        ]
    raise Refused(f"{place}: has none of messages, text, prompt, question, instruction")


def encode(tokenizer, example, prompt_weight, context):
    """Tokens and their loss weights; the first token is never predicted."""

    def render(part, generate):
        text = tokenizer.apply_chat_template(
            part, tokenize=False, add_generation_prompt=generate
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if isinstance(example, str):
        tokens = tokenizer(example)["input_ids"]
        if tokenizer.eos_token_id is not None:
            tokens = tokens + [tokenizer.eos_token_id]
        return tokens[:context], [1.0] * min(len(tokens), context)
    if isinstance(example, tuple):
        prompt = tokenizer(example[0])["input_ids"]
        answer = tokenizer(example[1], add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            answer = answer + [tokenizer.eos_token_id]
        weights = [prompt_weight] * len(prompt) + [1.0] * len(answer)
        return (prompt + answer)[:context], weights[:context]
    tokens = render(example, False)
    weights = [prompt_weight] * len(tokens)
    for at, message in enumerate(example):
        if message["role"] == "assistant":
            start = len(render(example[:at], True))
            end = len(render(example[: at + 1], False))
            weights[start:end] = [1.0] * (end - start)
    return tokens[:context], weights[:context]


class Pair:
    """Two answers to one prompt, each as tokens and weights; weights are 1 on the answers."""

    def __init__(self, chosen, rejected):
        self.chosen, self.rejected = chosen, rejected
        # Negative log-likelihoods by the base.
        self.reference = None


def messages_of(given, role):
    return given if isinstance(given, list) else [{"role": role, "content": given}]


def encode_pair(tokenizer, place, row, context):
    """A pair, or none if nothing of an answer is left."""
    if not {"prompt", "chosen", "rejected"} <= set(row):
        raise Refused(f"{place}: has not all of prompt, chosen, rejected")

    def answer(name):
        if tokenizer.chat_template is None:
            return encode(tokenizer, (row["prompt"], row[name]), 0.0, context)
        prompt = messages_of(row["prompt"], "user")
        return encode(tokenizer, prompt + messages_of(row[name], "assistant"), 0.0, context)

    both = [answer("chosen"), answer("rejected")]
    shared = 0
    for a, b in zip(both[0][0], both[1][0]):
        if a != b:
            break
        shared += 1
    for _, weights in both:
        # What both begin with is the prompt, but an answer that begins alike is an answer.
        start = shared
        while start > 0 and weights[start - 1] > 0:
            start -= 1
        weights[:start] = [0.0] * start
    if min(sum(weights[1:]) for _, weights in both) <= 0:
        return None
    return Pair(*both)


def sequences_of(examples):
    """The sequences of examples; those of a pair are neighbours."""
    for example in examples:
        if isinstance(example, Pair):
            yield example.chosen
            yield example.rejected
        else:
            yield example


def size_of(example):
    return sum(len(tokens) for tokens, _ in sequences_of([example]))


def weight_of(examples):
    """Weighted tokens, or pairs: each counts alike."""
    pairs = sum(isinstance(example, Pair) for example in examples)
    return pairs or sum(sum(weights[1:]) for _, weights in examples)


def held_out_of(n, fraction, seed):
    wanted = min(max(math.floor(n * fraction + 0.5), 1), n - 1)
    order = list(range(n))
    Random(seed ^ 0x68656C64).shuffle(order)
    return set(order[:wanted])


def resolve(options, sequences):
    """Options with epochs and warm-up ratio turned into steps."""
    options = dict(options)
    if options["epochs"] is not None:
        epochs, options["epochs"] = options["epochs"], None
        if options["batch_sequences"] is not None:
            steps = len(sequences) * epochs / options["batch_sequences"]
        else:
            tokens = sum(size_of(example) for example in sequences)
            steps = tokens * epochs / options["batch_tokens"]
        options["steps"] = max(1, math.ceil(steps))
        options["warmup_steps"] = min(options["warmup_steps"], options["steps"] // 5)
    if options["warmup_ratio"] is not None:
        ratio, options["warmup_ratio"] = options["warmup_ratio"], None
        options["warmup_steps"] = math.ceil(options["steps"] * ratio)
    if options["checkpoint_every"] == 0:
        options["checkpoint_every"] = min(max(math.ceil(options["steps"] / 20), 1), 100)
    return options


def rate_of(options, step):
    highest = options["learning_rate"]
    if step < options["warmup_steps"]:
        return highest * (step + 1) / options["warmup_steps"]
    span = max(options["steps"] - options["warmup_steps"], 1)
    done = min((step - options["warmup_steps"]) / span, 1.0)
    if options["schedule"] == "constant":
        return highest
    left = 1.0 - done
    if options["schedule"] == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    low = options["final_fraction"]
    return highest * (low + (1.0 - low) * left)


class Batches:
    """Whole sequences until a batch is full, epoch after epoch."""

    def __init__(self, sequences, options, epoch=0, next_=0):
        self.sequences, self.options = sequences, options
        self.epoch, self.next = epoch, next_
        self.order = self.epoch_order()

    def epoch_order(self):
        order = list(range(len(self.sequences)))
        if self.options["shuffle"]:
            seed = (self.options["seed"] * 0x9E3779B9 + self.epoch) & MASK
            Random(seed).shuffle(order)
        return order

    def batch(self):
        batch, tokens = [], 0
        wanted = self.options["batch_sequences"]
        while len(batch) < wanted if wanted else tokens < self.options["batch_tokens"]:
            if self.next == len(self.sequences):
                self.epoch, self.next = self.epoch + 1, 0
                self.order = self.epoch_order()
            sequence = self.sequences[self.order[self.next]]
            batch.append(sequence)
            tokens += max(size_of(sequence), 1)
            self.next += 1
        return batch


def parts_of(batch, limit):
    part, tokens = [], 0
    for sequence in batch:
        if part and limit and tokens + size_of(sequence) > limit:
            yield part
            part, tokens = [], 0
        part.append(sequence)
        tokens += size_of(sequence)
    if part:
        yield part


def losses_of(model, part):
    """The sum of the weighted losses of each sequence, in nats."""
    import torch

    device = next(model.parameters()).device
    longest = max(len(tokens) for tokens, _ in part)
    tokens = torch.zeros(len(part), longest, dtype=torch.long)
    weights = torch.zeros(len(part), longest)
    mask = torch.zeros(len(part), longest, dtype=torch.long)
    for row, (ids, ws) in enumerate(part):
        tokens[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = torch.tensor(ws)
        mask[row, : len(ids)] = 1
    tokens, weights, mask = tokens.to(device), weights.to(device), mask.to(device)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return (losses.view(len(part), -1) * weights[:, 1:]).sum(1)


def loss_of(model, part, options):
    """The sum of the losses of some examples, and the margins if they are pairs.

    For pairs direct preference optimisation (Rafailov et al., 2023) with label smoothing
    (Mitchell, 2023), as ol-train's `preference` describes it.
    """
    import torch

    losses = losses_of(model, list(sequences_of(part)))
    if not isinstance(part[0], Pair):
        return losses.sum(), []
    both = losses.double().view(-1, 2)
    reference = torch.tensor([p.reference for p in part], dtype=both.dtype, device=both.device)
    gains = reference - both
    margins = options["dpo_beta"] * (gains[:, 0] - gains[:, 1])
    smoothing, softplus = options["dpo_label_smoothing"], torch.nn.functional.softplus
    losses = (1 - smoothing) * softplus(-margins) + smoothing * softplus(margins)
    return losses.sum(), margins.tolist()


def chosen_of(examples):
    """What the report measures: sequences, of pairs the chosen answers."""
    return [e.chosen if isinstance(e, Pair) else e for e in examples]


def set_references(model, examples, limit):
    """What the base without the adapter thinks of pairs."""
    import torch

    if not examples or not isinstance(examples[0], Pair):
        return
    with torch.no_grad(), model.disable_adapter():
        for part in parts_of(examples, limit or 4096):
            losses = losses_of(model, list(sequences_of(part))).double().view(-1, 2)
            for pair, reference in zip(part, losses.tolist()):
                pair.reference = reference


def measure(model, examples, options):
    """The mean loss, and of pairs the mean margin and how many are ordered rightly."""
    import torch

    loss, margins = 0.0, []
    with torch.no_grad():
        for part in parts_of(examples, options["micro_batch_tokens"] or 4096):
            part_loss, part_margins = loss_of(model, part, options)
            loss += part_loss.item()
            margins += part_margins
    found = {"held_out": loss / weight_of(examples)}
    if margins:
        found["reward_accuracy"] = sum(margin > 0 for margin in margins) / len(margins)
        found["reward_margin"] = sum(margins) / len(margins)
    return found


def initialise(model, seed):
    """The factors A as the built-in trainer draws them; B is zero."""
    import torch

    factors = {}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parts = name.split(".lora_A.")[0].split(".")
            layer = next(int(part) for part in parts if part.isdigit())
            if parts[-1] not in ORDER:
                return False
            factors[(layer, ORDER.index(parts[-1]))] = parameter
    random = Random(seed)
    for _, parameter in sorted(factors.items(), key=lambda item: item[0]):
        bound = 1.0 / math.sqrt(parameter.shape[1])
        drawn = bound * (2.0 * random.uniform(parameter.numel()) - 1.0)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(drawn).view_as(parameter))
    return True


def load_model(spec):
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = spec["base"]
    place = base["path"] or base["hub"]
    more = {"revision": base["revision"]} if base["revision"] else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_quantised(spec):
        try:
            import bitsandbytes  # noqa: F401
            from transformers import BitsAndBytesConfig
        except ImportError as error:
            raise Refused("base.quantise: needs bitsandbytes") from error
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(place, **more)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **more)
    context = model.config.max_position_embeddings
    if is_quantised(spec):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model = model.to(device)
    if spec["options"]["recompute"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    lora = spec["lora"]
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"] if lora["alpha"] is not None else 2 * lora["rank"],
        lora_dropout=0.0,
        target_modules=lora["target_modules"],
        use_rslora=lora["rslora"],
        use_dora=lora["dora"],
        task_type="CAUSAL_LM",
    )
    return tokenizer, get_peft_model(model, config), context


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def metrics_after(path, step):
    """Opens the measurements of a run that goes on after a step."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
    write_atomic(path, "".join(kept))
    return open(path, "a", encoding="utf-8")


class Run:
    def __init__(self, spec, folder):
        self.spec, self.folder = spec, folder
        self.stop = False

    def ask_to_stop(self, *_):
        self.stop = True

    def examples(self, tokenizer, context):
        """Training and held-out sequences, and what of each file was used."""
        data, evaluation = self.spec["data"], self.spec["evaluation"]
        used, sequences = [], []

        context = min(context, data["max_tokens"] or 2048)

        def read(path):
            for place, row in rows(path):
                if self.spec["method"] == "dpo":
                    pair = encode_pair(tokenizer, place, row, context)
                    if pair is not None:
                        yield pair
                else:
                    example = messages(place, row)
                    yield encode(tokenizer, example, data["prompt_weight"], context)

        for path in data["files"]:
            found = list(read(path))
            used.append({"n_examples": len(found), "name": Path(path).name, "sha256": sha256(path)})
            sequences.extend(found)
        held = set()
        if evaluation["files"]:
            held_out = [sequence for path in evaluation["files"] for sequence in read(path)]
        else:
            if len(sequences) < 2:
                raise Refused(f"the data has {len(sequences)} examples; at least 2 are needed")
            fraction, seed = evaluation["held_out_fraction"], self.spec["options"]["seed"]
            held = held_out_of(len(sequences), fraction, seed)
            # Equal examples stay on one side.
            keys = [tuple(tuple(t) for t, _ in sequences_of([s])) for s in sequences]
            chosen = {keys[at] for at in held}
            held = {at for at, key in enumerate(keys) if key in chosen}
            held_out = [sequences[at] for at in sorted(held)]
        training = [sequence for at, sequence in enumerate(sequences) if at not in held]
        if weight_of(training) <= 0 or weight_of(held_out) <= 0:
            raise Refused("no token that the model shall learn is in the data")
        return training, held_out, used

    def train(self):
        import torch

        folder, spec = self.folder, self.spec
        folder.state("preparing", "reading model and data")
        torch.manual_seed(spec["options"]["seed"] & ((1 << 63) - 1))
        tokenizer, model, context = load_model(spec)
        training, held_out, data = self.examples(tokenizer, context)
        options = resolve(spec["options"], training)
        folder.steps = options["steps"]
        folder.log(f"{len(training)} examples, {len(held_out)} held out, {folder.steps} steps")
        if not initialise(model, options["seed"]):
            folder.log("modules of another family: the initial adapter is PEFT's")
        # There is no dropout: the mode decides only whether activations are computed again.
        model.train(options["recompute"])
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters,
            lr=options["learning_rate"],
            betas=(options["beta1"], options["beta2"]),
            eps=1e-8,
            weight_decay=options["weight_decay"],
        )
        limit = options["micro_batch_tokens"]
        set_references(model, training, limit)
        set_references(model, held_out, limit)
        before = measure(model, chosen_of(held_out), options)["held_out"]
        position = {"before": before, "best": None, "worse": 0,
                    "step": 0, "tokens": 0, "epoch": 0, "next": 0}  # fmt: skip
        best = None
        checkpoint = folder.root / "checkpoint" / "state.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            position, best = saved["position"], saved["best"]
            optimiser.load_state_dict(saved["optimiser"])
            with torch.no_grad():
                for parameter, value in zip(parameters, saved["parameters"], strict=True):
                    parameter.copy_(value)
            folder.log(f"goes on after step {position['step']}")
        batches = Batches(training, options, position["epoch"], position["next"])

        def save():
            position["epoch"], position["next"] = batches.epoch, batches.next
            state = {
                "position": position,
                "best": best,
                "optimiser": optimiser.state_dict(),
                "parameters": [p.detach().cpu() for p in parameters],
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, checkpoint)

        sample, seen = [], 0
        for sequence in held_out:
            if seen >= options["evaluate_tokens"] and weight_of(sample) > 0:
                break
            sample.append(sequence)
            seen += size_of(sequence)
        metrics = metrics_after(folder.root / "metrics.jsonl", position["step"])
        started, first, first_tokens = time.monotonic(), position["step"], position["tokens"]
        patience = options["patience"]
        while position["step"] < options["steps"]:
            if patience is not None and position["worse"] >= patience:
                break
            if self.stop:
                save()
                message = f"stopped after step {position['step']} of {options['steps']}"
                folder.log(message)
                folder.state("stopped", message)
                return STOPPED
            batch = batches.batch()
            weight = weight_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss = 0.0
            for part in parts_of(batch, limit):
                part_loss, _ = loss_of(model, part, options)
                (part_loss / weight).backward()
                loss += part_loss.item()
            loss /= weight
            if not math.isfinite(loss):
                raise ArithmeticError(f"diverged at step {position['step'] + 1}: loss {loss}")
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters))
            if norm > options["clip_norm"]:
                for parameter in parameters:
                    parameter.grad.mul_(options["clip_norm"] / norm)
            rate = rate_of(options, position["step"])
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            position["step"] += 1
            position["tokens"] += sum(size_of(example) for example in batch)
            folder.step = position["step"]
            last = position["step"] == options["steps"]
            line = {"epoch": batches.epoch, "gradient_norm": norm, "learning_rate": rate,
                    "loss": loss, "step": position["step"], "steps": options["steps"],
                    "tokens": position["tokens"], "unix_s": int(time.time())}  # fmt: skip
            if last or position["step"] % options["evaluate_every"] == 0:
                line |= measure(model, sample, options)
                held = line["held_out"]
                if position["best"] is None or held < position["best"]:
                    position["best"], position["worse"] = held, 0
                    if options["keep_best"]:
                        best = [p.detach().cpu().clone() for p in parameters]
                else:
                    position["worse"] += 1
            elapsed = max(time.monotonic() - started, 1e-9)
            done = position["step"] - first
            line["tokens_per_s"] = round((position["tokens"] - first_tokens) / elapsed, 1)
            line["eta_s"] = round(elapsed / done * (options["steps"] - position["step"]), 1)
            metrics.write(json.dumps(line, sort_keys=True) + "\n")
            metrics.flush()
            if last or position["step"] % options["checkpoint_every"] == 0:
                save()
                folder.state("training")
        if best is not None:
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)
        self.finish(model, held_out, len(training), data, options, position)
        return DONE

    def finish(self, model, held_out, n_trained, data, options, position):
        """Writes the adapter, reads it back, and moves it to its place."""
        import torch
        from safetensors.torch import load_file

        folder, spec = self.folder, self.spec
        folder.state("evaluating", "measuring the adapter")
        after = measure(model, chosen_of(held_out), options)["held_out"]
        partial = folder.root / "adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)
        read = load_file(partial / "adapter_model.safetensors")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                stored = read[name.replace(".default", "")]
                if not torch.equal(stored, parameter.detach().cpu()):
                    raise RuntimeError(f"{name} was read back differently from its file")
        base = spec["base"]
        names = ["adapter_config.json", "adapter_model.safetensors"]
        import peft

        manifest = {
            "adapter": None,
            "base": None,
            "base_name": base["hub"] or Path(base["path"]).name,
            "data": data,
            "files": {name: sha256(partial / name) for name in names},
            "format": "openledger-training/2",
            "held_out_after": after,
            "held_out_before": position["before"],
            "job": os.environ.get("OPENLEDGER_JOB_HASH"),
            "lora": spec["lora"],
            "method": spec["method"],
            "n_held_out": len(held_out),
            "n_trained": n_trained,
            "options": {
                name: value
                for name, value in options.items()
                if name in ALWAYS or value != OPTIONS[name]
            },
            "prompt_weight": spec["data"]["prompt_weight"],
            "runner": f"peft {peft.__version__}",
            "steps": position["step"],
            "tokens": position["tokens"],
        }
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        write_atomic(partial / "training.json", text)
        os.replace(partial, folder.root / "adapter")
        shutil.rmtree(folder.root / "checkpoint", ignore_errors=True)
        folder.log(f"done: held-out loss {position['before']:.4f} -> {after:.4f}")
        folder.state("done")


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return REFUSED
    folder = Folder(sys.argv[2])
    try:
        run = Run(read_spec(sys.argv[1]), folder)
        signal.signal(signal.SIGTERM, run.ask_to_stop)
        signal.signal(signal.SIGINT, run.ask_to_stop)
        if (folder.root / "adapter" / "training.json").exists():
            folder.state("done")
            return DONE
        return run.train()
    except Refused as error:
        folder.state("failed", str(error))
        print(error, file=sys.stderr)
        return REFUSED
    except Exception as error:  # noqa: BLE001 whatever it was, it is said
        folder.state("failed", f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    sys.exit(main())
