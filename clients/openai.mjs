// OpenAI's JavaScript client against the API: what it sends is understood, and what it gets has the types it expects.
import assert from "node:assert/strict";
import { APIError, OpenAI } from "./tools.mjs";

const SCHEMA = {
  type: "object",
  properties: { name: { enum: ["Ada", "Bob"] }, n: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["name", "n"],
  additionalProperties: false,
};

export default async function run({ test, server }) {
  const client = new OpenAI({ baseURL: server.api, apiKey: server.key, maxRetries: 0 });
  const model = server.models[0];
  const messages = [{ role: "user", content: "What is a contract?" }];
  const ask = (more = {}) =>
    client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0, ...more });

  await test("models", async () => {
    const names = [];
    for await (const entry of client.models.list()) names.push(entry.id);
    assert.deepEqual(names, server.models);
    assert.equal((await client.models.retrieve(model)).id, model);
  });

  await test("chat, and the same as a stream with usage", async () => {
    const whole = await ask();
    assert.equal(whole.object, "chat.completion");
    assert.ok(whole.openledger.receipt_id.startsWith("0x"));
    const stream = await ask({ stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  });

  await test("several choices, log-probabilities, a seed", async () => {
    const more = { n: 2, temperature: 1, seed: 7, logprobs: true, top_logprobs: 2 };
    const [first, second] = [await ask(more), await ask(more)];
    assert.equal(first.choices.length, 2);
    assert.deepEqual(first.choices, second.choices);
    for (const choice of first.choices) {
      assert.equal(choice.logprobs.content[0].top_logprobs.length, 2);
      assert.ok(choice.logprobs.content.every(({ logprob }) => logprob <= 0));
    }
  });

  await test("a JSON schema", async () => {
    const response_format = { type: "json_schema", json_schema: { name: "person", strict: true, schema: SCHEMA } };
    const { choices } = await ask({ response_format, max_tokens: 120 });
    assert.equal(choices[0].finish_reason, "stop");
    const value = JSON.parse(choices[0].message.content);
    assert.ok(["Ada", "Bob"].includes(value.name) && value.n >= 0 && value.n <= 9);
  });

  await test("a tool that must be called, whole and as a stream", async () => {
    const tools = [{ type: "function", function: { name: "look_up", description: "Looks up.", parameters: SCHEMA } }];
    const more = { tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 160 };
    const whole = await ask(more);
    assert.equal(whole.choices[0].finish_reason, "tool_calls");
    const [call] = whole.choices[0].message.tool_calls;
    assert.equal(call.function.name, "look_up");
    const { name } = JSON.parse(call.function.arguments);
    assert.ok(["Ada", "Bob"].includes(name));
    const runner = client.chat.completions.stream({ model, messages, temperature: 0, ...more });
    const final = await runner.finalChatCompletion();
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), JSON.parse(call.function.arguments));
  });

  await test("completions", async () => {
    const reply = await client.completions.create({ model, prompt: "The law", max_tokens: 8, temperature: 0, logprobs: 1 });
    assert.equal(reply.choices[0].logprobs.tokens.length, reply.usage.completion_tokens);
  });

  await test("errors have types, codes and parameters", async () => {
    const refused = async (work, type, fields) => {
      const error = await work.then(() => assert.fail("it was answered"), (error) => error);
      assert.ok(error instanceof type, String(error));
      for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value, String(error));
    };
    await refused(ask({ model: "none" }), OpenAI.NotFoundError, { code: "model_not_found", param: "model" });
    await refused(ask({ temperature: 3 }), OpenAI.BadRequestError, { param: "temperature" });
    await refused(ask({ max_tokens: 1_000_000 }), OpenAI.BadRequestError, { code: "context_length_exceeded" });
    const stranger = new OpenAI({ baseURL: server.api, apiKey: "no", maxRetries: 0 });
    await refused(stranger.chat.completions.create({ model, messages }), OpenAI.AuthenticationError, { status: 401 });
    const embeddings = client.embeddings.create({ model, input: "text" });
    await refused(embeddings, APIError, { code: "unsupported_parameter" });
  });
}
