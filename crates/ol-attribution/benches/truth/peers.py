#!/usr/bin/env python3
"""Kronfluence and dattri on the experiment of the benchmark `truth`.

    cargo bench -p ol-attribution --bench truth -- export FOLDER
    python peers.py FOLDER/healthcare.peer ../../../../assets/base [METHOD]...
    cargo bench -p ol-attribution --bench truth -- table FOLDER --peer FOLDER/healthcare.peer/METHOD.scores

Same adapter, records, queries and losses as the Rust side: a record's loss is
the sum over its tokens, a query's the mean over its answer, or that plus the
mean over its question. Positive scores say that the record lowers the loss.
`--limit N` keeps N records and queries, to see whether a library runs at all.

Two of dattri 0.3.0 do not run on sequences, for reasons of their own: its
EK-FAC reads a variable that is set for two-dimensional inputs only
(`_update_covariance`), its LoGra breaks the shapes of the attention's inputs.
Its DataInf holds over 24 GB for 320 records of 162,816 parameters: use `--limit`.

Needs torch, transformers, peft, kronfluence 1.0.1 (with einconv, einops,
opt_einsum) and dattri 0.3.0 (with scipy).
"""

import argparse
import json
import pathlib
import time

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaForCausalLM

METHODS = {}


def method(run):
    METHODS[run.__name__] = run
    return run


class Experiment:
    """Tokens and loss weights, padded on the right: causal models do not see it."""

    def __init__(self, folder, base, limit):
        self.folder, self.base = folder, base
        self.raw = json.loads((folder / "experiment.json").read_text())
        records, queries = (self.raw[of][:limit] for of in ("records", "queries"))
        self.length = max(len(sample["tokens"]) for sample in records + queries)
        self.records = TensorDataset(*self.tensors(records, self.whole))
        self.queries = [
            TensorDataset(*self.tensors(queries, weigh)) for weigh in (self.answer, self.both)
        ]

    def tensors(self, samples, weigh):
        tokens = torch.zeros(len(samples), self.length, dtype=torch.long)
        weights = torch.zeros(len(samples), self.length)
        mask = torch.zeros(len(samples), self.length, dtype=torch.long)
        for row, sample in enumerate(samples):
            n = len(sample["tokens"])
            tokens[row, :n] = torch.tensor(sample["tokens"])
            weights[row, 1:n] = torch.tensor(weigh(n, sample["answer_start"]))
            mask[row, :n] = 1
        return tokens, weights, mask

    @staticmethod
    def whole(n, start):
        return [1.0] * (n - 1)

    @staticmethod
    def answer(n, start):
        return [0.0] * (start - 1) + [1 / (n - start)] * (n - start)

    @staticmethod
    def both(n, start):
        return [1 / (start - 1)] * (start - 1) + [1 / (n - start)] * (n - start)

    def model(self):
        base = LlamaForCausalLM.from_pretrained(
            self.base, dtype=torch.float32, attn_implementation="eager"
        )
        base.config.use_cache = False
        return PeftModel.from_pretrained(base, self.folder, is_trainable=True).eval()


def adapted(model):
    """The linear layers that are the adapter."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ("lora_A" in name or "lora_B" in name)
    ]


def losses(logits, tokens, weights, sample=False):
    """Weighted negative log-likelihood, a sum over everything."""
    logits = logits[:, :-1].reshape(-1, logits.shape[-1])
    labels = tokens[:, 1:].reshape(-1)
    if sample:
        with torch.no_grad():
            labels = torch.multinomial(logits.softmax(-1), 1).flatten()
    each = F.cross_entropy(logits, labels, reduction="none")
    return (each * weights[:, 1:].reshape(-1)).sum()


def kronfluence(experiment, strategy):
    """Default damping of the library: a tenth of each layer's mean eigenvalue."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    model = experiment.model()
    names = adapted(model)

    class Language(Task):
        def compute_train_loss(self, batch, model, sample=False):
            tokens, weights, _ = batch
            return losses(model(tokens, use_cache=False).logits, tokens, weights, sample)

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

        def get_attention_mask(self, batch):
            return batch[2]

    torch.manual_seed(0)
    task = Language()
    prepared = prepare_model(model, task)
    out = experiment.folder / "kronfluence"
    analyzer = Analyzer("truth", prepared, task, cpu=True, output_dir=str(out), disable_tqdm=True)
    arguments = FactorArguments(strategy=strategy)
    analyzer.fit_all_factors(
        strategy, experiment.records, per_device_batch_size=32,
        factor_args=arguments, overwrite_output_dir=True,
    )
    scores = []
    for which, queries in enumerate(experiment.queries):
        analyzer.compute_pairwise_scores(
            f"{strategy}-{which}", strategy, queries, experiment.records,
            per_device_query_batch_size=50, per_device_train_batch_size=32,
            score_args=ScoreArguments(damping_factor=None), overwrite_output_dir=True,
        )
        scores.append(analyzer.load_pairwise_scores(f"{strategy}-{which}")["all_modules"])
    n_params = sum(p.numel() for n, p in experiment.model().named_parameters() if "lora" in n)
    return 4 * n_params, {"1e-1": scores}


@method
def kronfluence_ekfac(experiment):
    return kronfluence(experiment, "ekfac")


@method
def kronfluence_kfac(experiment):
    return kronfluence(experiment, "kfac")


def dattri_task(experiment):
    from dattri.task import AttributionTask

    model = experiment.model()

    def loss(params, data):
        tokens, weights = data[0], data[1]
        tokens = tokens.reshape(-1, experiment.length)
        weights = weights.reshape(-1, experiment.length)
        out = torch.func.functional_call(
            model, params, (tokens,), {"use_cache": False}
        )
        return losses(out.logits, tokens, weights)

    checkpoint = {n: p for n, p in model.state_dict().items()}
    return model, AttributionTask(loss_func=loss, model=model, checkpoints=checkpoint), loss


def loaders(experiment, batch=16):
    load = lambda data: DataLoader(data, batch_size=batch, shuffle=False)
    return load(experiment.records), [load(queries) for queries in experiment.queries]


def n_trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@method
def dattri_datainf(experiment):
    from dattri.algorithm.influence_function import IFAttributorDataInf

    model, task, _ = dattri_task(experiment)
    records, queries = loaders(experiment, 10)
    variants = {}
    for regularization in (1e-2, 1.0, 1e2):
        attributor = IFAttributorDataInf(task=task, regularization=regularization)
        attributor.cache(records)
        variants[f"{regularization:g}"] = [attributor.attribute(records, q).T for q in queries]
    return 4 * n_trained(model), variants


@method
def dattri_trak(experiment):
    from dattri.algorithm.trak import TRAKAttributor

    model, task, loss = dattri_task(experiment)
    records, queries = loaders(experiment)

    def probability(params, data):
        tokens, weights = data[0], data[1]
        return torch.exp(-loss(params, data) / weights.sum().clamp(min=1e-9))

    variants = {}
    for regularization in (1e-6, 1e-4, 1e-2):
        attributor = TRAKAttributor(
            task=task, correct_probability_func=probability, device="cpu",
            projector_kwargs={"proj_dim": 512, "device": "cpu", "proj_seed": 0},
            regularization=regularization,
        )
        attributor.cache(records)
        with torch.no_grad():
            variants[f"{regularization:g}"] = [attributor.attribute(q).T for q in queries]
    return 4 * 512, variants


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    experiment = Experiment(arguments.folder, arguments.base, arguments.limit)
    for name in arguments.methods:
        wall, cpu = time.perf_counter(), time.process_time()
        size_bytes, variants = METHODS[name](experiment)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        header = {
            "domain": experiment.raw["domain"],
            "experiment": experiment.raw["experiment"],
            "method": name.replace("_", ", "),
            "size_bytes": size_bytes,
            "variants": list(variants),
        }
        scores = torch.stack([torch.stack([s.float() for s in both]) for both in variants.values()])
        scores = scores.detach().contiguous()
        print(f"{name}: {tuple(scores.shape)}, {wall:.1f} s, {cpu:.1f} s of the processor", flush=True)
        if arguments.limit is None:
            with open(arguments.folder / f"{name}.scores", "wb") as file:
                file.write((json.dumps(header) + "\n").encode() + scores.numpy().tobytes())


if __name__ == "__main__":
    main()
