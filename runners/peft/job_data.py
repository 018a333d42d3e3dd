"""Files of examples, as sequences of tokens with their loss weights.

The kinds of files and the formats of examples are those of the built-in trainer (docs/train.md).
"""

import csv
import json
import os
from pathlib import Path

from job_spec import Refused

LINE_SIZE_MAX = 4 << 20
# Files that are read whole.
WHOLE_SIZE_MAX = 1 << 30
FILES_MAX = 10_000
TEXT_KINDS = {".txt", ".text", ".md", ".markdown"}
KINDS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"} | TEXT_KINDS
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "chatgpt": "assistant", "bot": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class BadRow(Refused):
    """An example cannot be used."""


def files_of(paths):
    """The files, with those of folders in the folders' places."""
    files = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in KINDS)
        if not 0 < len(found) <= FILES_MAX:
            raise Refused(f"{path}: {len(found)} files of examples, not 1 to {FILES_MAX}")
        files.extend(found)
    return files


def rows(path):
    """The examples of a file: where each stands, and an object, a text or what is wrong."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise Refused(f"{path}: unknown kind of file; known are {', '.join(sorted(KINDS))}")
    if kind in (".jsonl", ".ndjson"):
        yield from lines_of(path)
    elif kind == ".parquet":
        yield from columns_of(path)
    else:
        if os.path.getsize(path) > WHOLE_SIZE_MAX:
            raise Refused(f"{path}: larger than {WHOLE_SIZE_MAX} bytes")
        if kind == ".json":
            yield from list_of(path)
        elif kind in TEXT_KINDS:
            yield f"{path}", path.read_text(encoding="utf-8-sig")
        else:
            yield from table_of(path, "\t" if kind == ".tsv" else ",")


def lines_of(path):
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_SIZE_MAX + 1), b""), 1):
            place = f"{path}, line {number}"
            if len(line) > LINE_SIZE_MAX:
                raise Refused(f"{place}: longer than {LINE_SIZE_MAX} bytes")
            line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield place, json.loads(line)
            except ValueError as error:
                yield place, BadRow(f"{place}: {error}")


def list_of(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error
    # Some data sets have their list in the one field of an object.
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if not isinstance(found, list):
        raise Refused(f"{path}: is neither a list of examples nor an object with one")
    for number, row in enumerate(found, 1):
        yield f"{path}, example {number}", row


def table_of(path, delimiter):
    csv.field_size_limit(LINE_SIZE_MAX)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            for fields in reader:
                place = f"{path}, line {reader.line_num}"
                if not fields:
                    continue
                if len(fields) == len(header):
                    yield place, dict(zip(header, fields))
                else:
                    what = f"{len(fields)} fields, the header has {len(header)}"
                    yield place, BadRow(f"{place}: {what}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise Refused(f"{path}: {error}") from error


def columns_of(path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise Refused(f"{path}: needs pyarrow") from error
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=128):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", without_nulls(row)
    except pyarrow.ArrowException as error:
        raise Refused(f"{path}: {error}") from error


def without_nulls(value):
    """Columns stand for every field of every row: one that is null is not there."""
    if isinstance(value, dict):
        return {name: without_nulls(v) for name, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def format_of(place, row):
    """Tells the format by the names of the fields."""
    if {"chosen", "rejected"} <= set(row):
        return "preference"
    if "messages" in row or "conversations" in row:
        return "chat"
    if {"instruction", "output"} <= set(row) or {"question", "answer"} <= set(row):
        return "instruction"
    if {"prompt", "completion"} <= set(row):
        return "prompt-completion"
    if "text" in row:
        return "text"
    raise BadRow(f"{place}: no known format has the fields {', '.join(list(row)[:20])}")


def text_of(place, row, name):
    if not isinstance(row.get(name), str):
        raise BadRow(f"{place}, field `{name}`: is not a text")
    return row[name]


def messages_of(place, given, role):
    """A text or messages, as messages with `role` and `content`."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise BadRow(f"{place}: is neither a text nor a list of messages")
    found = []
    for message in given:
        if "from" in message:
            if message["from"] not in ROLES or not isinstance(message.get("value"), str):
                raise BadRow(f"{place}: a message is not one of ShareGPT's")
            message = {"role": ROLES[message["from"]], "content": message["value"]}
        if not isinstance(message.get("role"), str) or not {"content", "tool_calls"} & set(message):
            raise BadRow(f"{place}: a message has no role or no content")
        found.append(message)
    return found


class Chat:
    """A conversation, with the tools it may call."""

    def __init__(self, place, row, messages):
        tools = row.get("tools") or None
        try:
            # ShareGPT data has the list written out in a text.
            self.tools = json.loads(tools) if isinstance(tools, str) else tools
        except ValueError as error:
            raise BadRow(f"{place}, field `tools`: {error}") from error
        self.messages = messages
        if row.get("system") and (not messages or messages[0]["role"] != "system"):
            system = {"role": "system", "content": text_of(place, row, "system")}
            self.messages = [system, *messages]
        if not any(message["role"] == "assistant" for message in messages):
            raise BadRow(f"{place}: no message is the assistant's: there is nothing to learn")


def example_of(place, row, format_):
    """An example as a chat, as prompt and completion, or as text."""
    if format_ == "chat":
        name = "messages" if "messages" in row else "conversations"
        return Chat(place, row, messages_of(place, row.get(name), "user"))
    if format_ == "instruction":
        names = ("instruction", "output") if "instruction" in row else ("question", "answer")
        asked, answered = (text_of(place, row, name) for name in names)
        if row.get("input"):
            asked = f"{asked}\n{text_of(place, row, 'input')}"
        if not asked.strip() or not answered.strip():
            raise BadRow(f"{place}: question or answer is empty")
        asked, answered = messages_of(place, asked, "user"), messages_of(place, answered, "assistant")
        return Chat(place, row, asked + answered)
    if format_ == "prompt-completion":
        both = row.get("prompt"), row.get("completion")
        if isinstance(both[0], str) and isinstance(both[1], str):
            if not both[1].strip():
                raise BadRow(f"{place}, field `completion`: is empty")
            return both
        if isinstance(both[0], str) or isinstance(both[1], str):
            raise BadRow(f"{place}: prompt and completion must both be texts or both be messages")
        return Chat(place, row, [m for given in both for m in messages_of(place, given, "user")])
    text = text_of(place, row, "text")
    if not text.strip():
        raise BadRow(f"{place}, field `text`: is empty")
    return text


def encode(tokenizer, example, prompt_weight, context):
    """Sequences of tokens and their loss weights; the first token is never predicted.

    None are left of an example of which nothing is learnt; a long text is cut into several.
    """

    def render(part, generate):
        text = tokenizer.apply_chat_template(
            part, tools=example.tools, tokenize=False, add_generation_prompt=generate
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if isinstance(example, str):
        tokens = tokenizer(example)["input_ids"] + end
        pieces = (tokens[at : at + context] for at in range(0, len(tokens), context))
        return [(piece, [1.0] * len(piece)) for piece in pieces if len(piece) > 1]
    if isinstance(example, tuple):
        prompt = tokenizer(example[0])["input_ids"]
        answer = tokenizer(example[1], add_special_tokens=False)["input_ids"] + end
        tokens = prompt + answer
        is_answer = [False] * len(prompt) + [True] * len(answer)
    else:
        tokens = render(example.messages, False)
        is_answer = [False] * len(tokens)
        for at, message in enumerate(example.messages):
            if message["role"] == "assistant":
                start = len(render(example.messages[:at], True))
                stop = len(render(example.messages[: at + 1], False))
                is_answer[start:stop] = [True] * (stop - start)
    tokens, is_answer = tokens[:context], is_answer[:context]
    if not any(is_answer[1:]):
        return []
    return [(tokens, [1.0 if answer else prompt_weight for answer in is_answer])]


class Pair:
    """Two answers to one prompt, each as tokens and weights; weights are 1 on the answers."""

    def __init__(self, chosen, rejected):
        self.chosen, self.rejected = chosen, rejected
        # Negative log-likelihoods by the base.
        self.reference = None


def encode_pair(tokenizer, place, row, context):
    """A pair, or none if nothing of an answer is left."""
    if not {"prompt", "chosen", "rejected"} <= set(row):
        raise BadRow(f"{place}: has not all of prompt, chosen, rejected")
    if row["chosen"] == row["rejected"]:
        raise BadRow(f"{place}, field `rejected`: is the same as `chosen`")

    def answer(name):
        texts = row["prompt"], row[name]
        if tokenizer.chat_template is None and all(isinstance(text, str) for text in texts):
            return encode(tokenizer, texts, 0.0, context)
        prompt = messages_of(place, row["prompt"], "user")
        chat = Chat(place, {}, prompt + messages_of(place, row[name], "assistant"))
        return encode(tokenizer, chat, 0.0, context)

    both = answer("chosen") + answer("rejected")
    if len(both) < 2:
        return None
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


def read_examples(paths, tokenizer, data, is_preference, context):
    """Of each file, how many examples it has, and what is learnt from them."""
    bad = 0
    for path in files_of(paths):
        format_ = None if data["format"] == "auto" else data["format"]
        count, found = 0, []
        for place, row in rows(path):
            try:
                if isinstance(row, BadRow):
                    raise row
                if isinstance(row, str) and path.suffix.lower() in TEXT_KINDS:
                    row, format_ = {"text": row}, "text"
                if not isinstance(row, dict):
                    raise BadRow(f"{place}: not an object")
                # The first example of a file tells the format of all.
                format_ = format_ or format_of(place, row)
                if is_preference != (format_ == "preference"):
                    kind = "dpo learns from preferences, the other methods do not"
                    raise Refused(f"{place}: {kind}; this is {format_}")
                if is_preference:
                    pair = encode_pair(tokenizer, place, row, context)
                    found += [] if pair is None else [pair]
                else:
                    example = example_of(place, row, format_)
                    found += encode(tokenizer, example, data["prompt_weight"], context)
                count += 1
            except BadRow:
                bad += 1
                if bad > data["skip_bad"]:
                    raise
        yield path, count, found


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
