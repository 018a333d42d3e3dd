"""In which order and at which rate a job learns: random numbers, hold-out, batches, schedule."""

import math

from job_data import size_of

MASK = (1 << 64) - 1


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
