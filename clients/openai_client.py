"""OpenAI's Python client against the API at OPENLEDGER_API: answers, streams, tools, forms, errors."""

import json
import os

import openai
from openai import OpenAI

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "n"],
    "additionalProperties": False,
}

client = OpenAI(base_url=os.environ["OPENLEDGER_API"], api_key=os.environ["OPENLEDGER_API_KEY"], max_retries=0)
model = next(iter(client.models.list())).id


def ask(**more):
    asked = {"model": model, "messages": [{"role": "user", "content": "What is a contract?"}], "max_tokens": 16,
             "temperature": 0}
    return client.chat.completions.create(**{**asked, **more})


def refused(kind, **more):
    try:
        ask(**more)
    except kind as error:
        return error
    raise AssertionError(f"{more} was answered")


whole = ask()
assert whole.choices[0].message.role == "assistant"
assert whole.openledger["receipt_id"].startswith("0x")

chunks = list(ask(stream=True, stream_options={"include_usage": True}))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content
assert chunks[-1].usage == whole.usage

several = ask(n=2, temperature=1, seed=3, logprobs=True, top_logprobs=2, extra_body={"return_token_ids": True})
assert [choice.index for choice in several.choices] == [0, 1]
for choice in several.choices:
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert len(choice.token_ids) == len(choice.logprobs.content)

form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
value = json.loads(ask(response_format=form, max_tokens=120).choices[0].message.content)
assert value["name"] in ("Ada", "Bob") and 0 <= value["n"] <= 9
choice = ask(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0]
assert choice.message.content in ("yes", "no") and choice.finish_reason == "stop"

tools = [{"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}]
named = {"type": "function", "function": {"name": "look_up"}}
call = ask(tools=tools, tool_choice=named, max_tokens=160).choices[0].message.tool_calls[0]
assert call.function.name == "look_up" and json.loads(call.function.arguments)["name"] in ("Ada", "Bob")

completion = client.completions.create(model=model, prompt="The law", max_tokens=8, temperature=0)
assert completion.usage.completion_tokens <= 8

error = refused(openai.NotFoundError, model="none")
assert (error.code, error.param) == ("model_not_found", "model")
assert refused(openai.BadRequestError, presence_penalty=9).param == "presence_penalty"
assert refused(openai.BadRequestError, logit_bias={"1": 500}).param == "logit_bias"
assert refused(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
print("all of the Python client passed")
