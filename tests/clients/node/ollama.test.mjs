// The ollama package for Node: images, streams, format, tools with a second turn, the list of models, errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Ollama } from "ollama";
import { z } from "zod";
import { Paint, Shape, baseURL, checkStar, model, questions, star } from "./asked.mjs";

const client = new Ollama({ host: baseURL.replace(/\/v1$/, "") });
const messages = ({ text, bytes }) => [{ role: "user", content: text, images: [new Uint8Array(bytes)] }];
const parameters = z.toJSONSchema(Paint);
const tools = [{ type: "function", function: { name: "paint", description: "Paint it.", parameters } }];

for (const question of questions) {
  test(`answers: ${question.text}`, async () => {
    const reply = await client.chat({ model, messages: messages(question) });
    assert.equal(reply.message.content, question.answer);
    assert.ok(reply.eval_count > 1 && reply.prompt_eval_count > 100);
  });
}

test("generate", async () => {
  const images = [star.bytes.toString("base64")];
  const reply = await client.generate({ model, prompt: star.text, images });
  assert.equal(reply.response, star.answer);
});

test("a stream", async () => {
  const chunks = [];
  for await (const chunk of await client.chat({ model, messages: messages(star), stream: true })) chunks.push(chunk);
  assert.equal(chunks.map((chunk) => chunk.message.content).join(""), star.answer);
  assert.ok(chunks.length > 2);
  assert.deepEqual([chunks.at(-1).done, chunks.at(-1).done_reason], [true, "stop"]);
});

test("format", async () => {
  const reply = await client.chat({ model, messages: messages(star), format: z.toJSONSchema(Shape) });
  checkStar(JSON.parse(reply.message.content));
});

test("options", async () => {
  const reply = await client.chat({ model, messages: messages(star), options: { num_predict: 2, num_ctx: 4096 } });
  assert.deepEqual([reply.done_reason, reply.eval_count], ["length", 2]);
});

test("tools, and a second turn", async () => {
  const first = await client.chat({ model, messages: messages(star), tools });
  assert.ok(first.message.content || first.message.tool_calls.length > 0);
  const called = { function: { name: "paint", arguments: { colour: "red", coats: 2 } } };
  const said = { role: "assistant", content: "", tool_calls: [called] };
  const conversation = [...messages(star), said, { role: "tool", content: "Done.", tool_name: "paint" }];
  const second = await client.chat({ model, messages: conversation, tools });
  assert.ok(second.message.content || second.message.tool_calls.length > 0);
});

test("the list of models", async () => {
  const { models } = await client.list();
  assert.deepEqual(models.map((each) => each.model), [`${model}:latest`]);
  assert.equal((await client.ps()).models[0].name, models[0].name);
  assert.ok((await client.show({ model: models[0].model })).capabilities.includes("vision"));
});

test("errors", async () => {
  const refused = (error) => error.status_code === 404 && /no model of that name/.test(error.message);
  await assert.rejects(client.chat({ model: "mistral", messages: messages(star) }), refused);
});
