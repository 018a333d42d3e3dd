"""The model with its adapter, and what it makes of examples."""

import math

from job_data import Pair, sequences_of, weight_of
from job_order import Random, parts_of
from job_spec import Refused, is_quantised

# The modules of a layer, in the order in which their factors are drawn.
ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
