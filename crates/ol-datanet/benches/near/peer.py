#!/usr/bin/env python3
"""Near duplicates by datasketch: MinHash of pairs of words, 256 functions.

Reads {"originals": [[question, answer], ...], "copies": [...]} and prints
[seconds, per cent of copies found, per cent of originals left out], two texts
being near if an estimated half of their pairs are in both.
"""
import json
import re
import sys
import time

from datasketch import MinHash, MinHashLSH

texts = json.load(sys.stdin)
index, minhashes, clusters = MinHashLSH(threshold=0.5, num_perm=256), [], []


def place(question, answer):
    words = re.findall(r"[0-9a-z]+|[^\x00-\x7f]+", f"{question} {answer}".lower())
    minhash = MinHash(num_perm=256)
    minhash.update_batch([f"{a} {b}".encode() for a, b in zip(words, words[1:])])
    near = [at for at in index.query(minhash) if minhashes[at].jaccard(minhash) >= 0.5]
    number = len(minhashes)
    clusters.append(clusters[min(near)] if near else number)
    index.insert(number, minhash)
    minhashes.append(minhash)


start = time.monotonic()
for question, answer in texts["originals"] + texts["copies"]:
    place(question, answer)
seconds = time.monotonic() - start

n = len(texts["originals"])
exact = len({" ".join(f"{q}\0{a}".lower().split()) for q, a in texts["originals"]})
found = sum(clusters[at] == clusters[n + at] for at in range(n))
print(json.dumps([seconds, 100 * found / n, 100 * (exact - len(set(clusters[:n]))) / n]))
