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

from job_data import read_examples, sequences_of, size_of, weight_of
from job_model import chosen_of, initialise, load_model, loss_of, measure, set_references
from job_order import Batches, held_out_of, parts_of, rate_of, resolve
from job_spec import ALWAYS, OPTIONS, Refused, read_spec

DONE, REFUSED, STOPPED = 0, 2, 75


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
        is_preference = self.spec["method"] == "dpo"
        context = min(context, data["max_tokens"] or 2048)

        def read(paths):
            return read_examples(paths, tokenizer, data, is_preference, context)

        used, sequences = [], []
        for path, count, found in read(data["files"]):
            used.append({"n_examples": count, "name": path.name, "sha256": sha256(path)})
            sequences.extend(found)
        held = set()
        if evaluation["files"]:
            held_out = [sequence for *_, found in read(evaluation["files"]) for sequence in found]
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
