// @ax-llm/ax with its services openai and vllm: images, streams, functions and their results, a schema.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ai } from "@ax-llm/ax";
import { z } from "zod";
import { Paint, Shape, baseURL, checkStar, model, questions, star } from "./asked.mjs";

const services = {
  openai: ai({ name: "openai", apiKey: "none", apiURL: baseURL, config: { model } }),
  vllm: ai({ name: "vllm", apiKey: "none", apiURL: baseURL, config: { model } }),
};
const once = { retry: { maxRetries: 0 } };
const { $schema, ...parameters } = z.toJSONSchema(Paint);
const functions = [{ name: "paint", description: "Paint the shape.", parameters }];

function message({ text, bytes }) {
  const image = { type: "image", mimeType: "image/png", image: bytes.toString("base64") };
  return { role: "user", content: [{ type: "text", text }, image] };
}

async function pieces(stream) {
  const found = [];
  for await (const chunk of stream) found.push(chunk);
  return found;
}

for (const [name, llm] of Object.entries(services)) {
  for (const question of questions) {
    test(`${name}: ${question.text}`, async () => {
      const reply = await llm.chat({ chatPrompt: [message(question)] }, { ...once, stream: false });
      assert.equal(reply.results[0].content, question.answer);
      assert.ok(reply.modelUsage.tokens.completionTokens > 1);
    });
  }

  test(`${name}: a stream`, async () => {
    const stream = await llm.chat({ chatPrompt: [message(star)] }, { ...once, stream: true });
    const texts = (await pieces(stream)).map((chunk) => chunk.results[0]?.content ?? "");
    assert.equal(texts.join(""), star.answer);
    assert.ok(texts.length > 1);
  });

  test(`${name}: a function call and its result`, async () => {
    const asked = { chatPrompt: [message(star)], functions, functionCall: "required" };
    const { results } = await llm.chat(asked, { ...once, stream: false });
    const calls = results[0].functionCalls;
    assert.ok(calls.length > 0);
    const given = calls.map((call) => {
      assert.equal(call.function.name, "paint");
      const { params } = call.function;
      Paint.parse(typeof params === "string" ? JSON.parse(params) : params);
      return { role: "function", functionId: call.id, result: "It is dry." };
    });
    const chatPrompt = [message(star), { role: "assistant", functionCalls: calls }, ...given];
    const second = await llm.chat({ chatPrompt, functions, functionCall: "none" }, { ...once, stream: false });
    assert.ok(second.results[0].content);
  });

  test(`${name}: a refusal`, async () => {
    const broken = { ...star, bytes: Buffer.from([0, 0, 0]) };
    await assert.rejects(llm.chat({ chatPrompt: [message(broken)] }, { ...once, stream: false }));
  });
}

test("an answer in a schema, which ax sends to OpenAI's service only", async () => {
  const schema = { name: "shape", strict: true, schema: z.toJSONSchema(Shape) };
  const responseFormat = { type: "json_schema", schema };
  const reply = await services.openai.chat({ chatPrompt: [message(star)], responseFormat }, { ...once, stream: false });
  checkStar(JSON.parse(reply.results[0].content));
});
