#!/usr/bin/env python3
"""infini-gram on a corpus that the benchmark has written as its token file.

    python3 peer.py FOLDER EOS VOCABULARY LENGTH_MIN ROUNDS

FOLDER/answers.json holds lists of tokens. Prints one JSON object: seconds of
indexing, milliseconds of each answer (all rounds but the first, which warms
up), and the spans of each as [begin, end, count].
"""
import contextlib
import json
import os
import subprocess
import sys
import time

from infini_gram.engine import InfiniGramEngine

folder, eos, vocabulary, length_min, rounds = sys.argv[1], *map(int, sys.argv[2:])
command = [sys.executable, "-m", "infini_gram.indexing", "--data_dir", folder, "--save_dir", folder]
command += ["--token_dtype", "u16", "--cpus", "1", "--mem", "8", "--ulimit", "1024"]
start = time.monotonic()
subprocess.run(command, check=True, stdout=sys.stderr)
index_s = time.monotonic() - start

with open(os.path.join(folder, "answers.json"), encoding="utf-8") as file:
    answers = json.load(file)
with contextlib.redirect_stdout(sys.stderr):
    engine = InfiniGramEngine(folder, eos_token_id=eos, vocab_size=vocabulary, version=4, token_dtype="u16",
                              load_to_ram=True, precompute_unigram_logprobs=True)
times_ms, spans = [], []
for turn in range(rounds + 1):
    for number, answer in enumerate(answers):
        start = time.perf_counter()
        found = engine.attribute(answer, delim_ids=[], min_len=length_min, max_cnt=1 << 30, enforce_bow=False)
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        if turn > 0:
            times_ms.append(elapsed_ms)
        else:
            if "spans" not in found:
                sys.exit(f"answer {number}: {found}")
            spans.append([[span["l"], span["r"], span["count"]] for span in found["spans"]])
print(json.dumps({"index_s": index_s, "times_ms": times_ms, "spans": spans}))
