"""A job as specs/job.md describes it: read, checked, its defaults filled in."""

import json
from pathlib import Path

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
FORMATS = ("auto", "chat", "instruction", "prompt-completion", "text", "preference")
EVALUATION = {"files": [], "generate": 16, "held_out_fraction": 0.05, "max_new_tokens": 64}
BASE = {"hub": None, "path": None, "quantise": None, "revision": None}
# The fields of the first manifests; the others are written only where they differ.
ALWAYS = {
    "batch_tokens", "beta1", "beta2", "checkpoint_every", "clip_norm", "evaluate_every",
    "evaluate_tokens", "final_fraction", "learning_rate", "patience", "seed", "steps",
    "warmup_steps", "weight_decay",
}  # fmt: skip


class Refused(Exception):
    """The job cannot run as it is described."""


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
    if spec["data"]["format"] not in FORMATS:
        raise Refused(f"data.format: known are {', '.join(FORMATS)}")
    if spec["data"]["datanet"] is not None:
        raise Refused("data.datanet: this runner reads files only")
    if spec["lora"]["dropout"]:
        raise Refused("lora.dropout: only 0")
    if spec["options"]["optimizer"] != "adamw":
        raise Refused("options.optimizer: this runner has adamw only")
    if bool(spec["base"]["path"]) == bool(spec["base"]["hub"]):
        raise Refused("base: give either path or hub")
    return spec
