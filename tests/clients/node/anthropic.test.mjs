// @anthropic-ai/sdk at /v1/messages: images, streams, tools with a second turn, token counts, errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { z } from "zod";
import { Paint, baseURL, model, questions, star } from "./asked.mjs";

// The client adds /v1 by itself.
const client = new Anthropic({ baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
const tools = [{ name: "paint", description: "Paint the shape.", input_schema: z.toJSONSchema(Paint) }];
const max_tokens = 256;

function image({ bytes }) {
  return { type: "image", source: { type: "base64", media_type: "image/png", data: bytes.toString("base64") } };
}

function messages(question) {
  return [{ role: "user", content: [image(question), { type: "text", text: question.text }] }];
}

for (const question of questions) {
  test(`answers: ${question.text}`, async () => {
    const message = await client.messages.create({ model, max_tokens, messages: messages(question) });
    assert.equal(message.content[0].text, question.answer);
    assert.equal(message.stop_reason, "end_turn");
    assert.match(message._request_id, /^req_/);
  });
}

test("stream", async () => {
  const stream = await client.messages.create({ model, max_tokens, messages: messages(star), stream: true });
  const pieces = [];
  const kinds = [];
  for await (const event of stream) {
    kinds.push(event.type);
    if (event.type === "content_block_delta") pieces.push(event.delta.text);
  }
  assert.equal(pieces.join(""), star.answer);
  assert.ok(pieces.length > 1);
  assert.deepEqual([kinds[0], kinds.at(-1)], ["message_start", "message_stop"]);
});

test("stream helper", async () => {
  const stream = client.messages.stream({ model, max_tokens, messages: messages(star) });
  const pieces = [];
  stream.on("text", (piece) => pieces.push(piece));
  const message = await stream.finalMessage();
  assert.equal(pieces.join(""), star.answer);
  assert.equal(message.content[0].text, star.answer);
  assert.ok(message.usage.output_tokens > 1);
});

test("an answer that is begun", async () => {
  const begun = [...messages(star), { role: "assistant", content: "A blue" }];
  const message = await client.messages.create({ model, max_tokens, messages: begun });
  assert.equal(message.content[0].text, " star.");
});

test("a streamed tool call and its result", async () => {
  const asked = { model, max_tokens, tools, messages: messages(star) };
  const message = await client.messages.stream({ ...asked, tool_choice: { type: "any" } }).finalMessage();
  assert.equal(message.stop_reason, "tool_use");
  assert.ok(message.content.length > 0);
  for (const block of message.content) {
    assert.deepEqual([block.type, block.name], ["tool_use", "paint"]);
    Paint.parse(block.input);
  }
  const results = message.content.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: [image(star)] }));
  const conversation = [
    ...messages(star),
    { role: "assistant", content: message.content },
    { role: "user", content: results },
  ];
  const second = await client.messages.create({ ...asked, messages: conversation, tool_choice: { type: "none" } });
  assert.equal(second.content[0].type, "text");
});

test("count tokens", async () => {
  const counted = await client.messages.countTokens({ model, messages: messages(star) });
  const { usage } = await client.messages.create({ model, max_tokens: 2, messages: messages(star) });
  assert.equal(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
});

test("errors have the client's classes", async () => {
  const broken = { type: "image", source: { type: "base64", media_type: "image/png", data: "AAAA" } };
  const asked = { model, max_tokens, messages: [{ role: "user", content: [broken] }] };
  await assert.rejects(client.messages.create(asked), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.equal(error.error.error.code, "invalid_image");
    assert.equal(error.requestID, error.error.request_id);
    return true;
  });
  const unknown = client.messages.create({ model: "claude", max_tokens, messages: messages(star) });
  await assert.rejects(unknown, Anthropic.NotFoundError);
});
