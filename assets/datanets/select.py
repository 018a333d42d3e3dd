#!/usr/bin/env python3
"""Selects the demo records from the full sources and compresses them.

    python3 select.py SOURCE_FOLDER

reads `healthcare.jsonl`, `legal.jsonl` and `defi-exploits.jsonl` from
SOURCE_FOLDER and writes `healthcare.jsonl.xz`, `legal.jsonl.xz`,
`defi-exploits.jsonl.xz` and `counts.md` beside this script. Lines are copied as
they are, in the order of the source. The same source gives the same bytes.
Needs Python 3 alone.
"""

import collections
import hashlib
import json
import lzma
import pathlib
import sys

# Base models are trained on the records of these two, so attribution to them
# would measure what the base knew before.
BASE_TRAINING_CONTRIBUTORS = {"GHR", "GARD"}
HEALTHCARE_RECORDS = 600
HEALTHCARE_TEXT_MAX_CHARS = 1_000
LEGAL_TEXT_MAX_CHARS = 1_600
ANSWER_MIN_CHARS = 120
# Near-identical boilerplate on every page of one institute.
BOILERPLATE_KINDS = {"research"}


def text_chars(record):
    return len(record["question"]) + len(record["answer"])


def words(text):
    return " ".join(text.split()).lower()


def read(path):
    """Pairs of a line and its record."""
    with open(path, encoding="utf-8", newline="\n") as lines:
        return [(line, json.loads(line)) for line in lines]


def healthcare(pairs):
    """An even share for each contributor, each question once.

    The order within a contributor is that of a hash of id and question, so that
    the choice spreads over topics and does not depend on the source's order.
    """
    fitting = collections.defaultdict(list)
    for position, (line, record) in enumerate(pairs):
        if (
            record["contributor"] not in BASE_TRAINING_CONTRIBUTORS
            and record["kind"] not in BOILERPLATE_KINDS
            and text_chars(record) <= HEALTHCARE_TEXT_MAX_CHARS
            and len(record["answer"]) >= ANSWER_MIN_CHARS
        ):
            key = hashlib.sha256((record["id"] + "\n" + record["question"]).encode()).digest()
            fitting[record["contributor"]].append((key, position))
    queues = [sorted(fitting[name], reverse=True) for name in sorted(fitting)]
    questions, chosen = set(), []
    # One from each contributor in turn, until there are enough.
    while len(chosen) < HEALTHCARE_RECORDS and any(queues):
        for queue in queues:
            while queue and len(chosen) < HEALTHCARE_RECORDS:
                _, position = queue.pop()
                question = words(pairs[position][1]["question"])
                if question not in questions:
                    questions.add(question)
                    chosen.append(position)
                    break
    return [pairs[position] for position in sorted(chosen)]


def legal(pairs):
    return [pair for pair in pairs if text_chars(pair[1]) <= LEGAL_TEXT_MAX_CHARS]


def all_of_them(pairs):
    return pairs


def main():
    source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    tables = ["# Records for each contributor\n\nWritten by `select.py`.\n"]
    for name, choose in [("healthcare", healthcare), ("legal", legal), ("defi-exploits", all_of_them)]:
        pairs = choose(read(source / f"{name}.jsonl"))
        data = "".join(line for line, _ in pairs).encode()
        packed = lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME)
        (here / f"{name}.jsonl.xz").write_bytes(packed)
        counts = collections.Counter(record["contributor"] for _, record in pairs)
        title = f"{len(pairs)} records, {len(counts)} contributors"
        print(f"{name}: {title}, {len(data)} bytes, {len(packed)} packed")
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rows = "\n".join(f"| `{contributor}` | {n} |" for contributor, n in ordered)
        tables.append(f"## {name}: {title}\n\n| contributor | records |\n|---|---|\n{rows}\n")
    (here / "counts.md").write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
