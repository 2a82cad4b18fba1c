// Vercel's ai with @ai-sdk/openai-compatible: picture parts, streamText, generateObject, tools.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, streamText, tool } from "ai";
import { Paint, Shape, baseURL, checkStar, model as name, questions, star } from "./asked.mjs";

const provider = createOpenAICompatible({ name: "llava", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const model = provider(name);
const maxRetries = 0;

function messages({ text, bytes }) {
  const content = [
    { type: "text", text },
    { type: "image", image: bytes, mediaType: "image/png" },
  ];
  return [{ role: "user", content }];
}

for (const question of questions) {
  test(`generateText: ${question.text}`, async () => {
    const { text, usage } = await generateText({ model, messages: messages(question), maxRetries });
    assert.equal(text, question.answer);
    assert.ok(usage.outputTokens > 1);
  });
}

test("a picture as a data: URL", async () => {
  const content = [
    { type: "text", text: star.text },
    { type: "image", image: star.url },
  ];
  const { text } = await generateText({ model, messages: [{ role: "user", content }], maxRetries });
  assert.equal(text, star.answer);
});

test("streamText", async () => {
  const result = streamText({ model, messages: messages(star), maxRetries });
  const pieces = [];
  for await (const piece of result.textStream) pieces.push(piece);
  assert.equal(pieces.join(""), star.answer);
  assert.ok(pieces.length > 1);
  assert.equal(await result.finishReason, "stop");
  assert.ok((await result.usage).outputTokens > 1);
});

test("generateObject", async () => {
  const { object } = await generateObject({ model, schema: Shape, messages: messages(star), maxRetries });
  checkStar(object);
});

test("streamObject", async () => {
  const result = streamObject({ model, schema: Shape, messages: messages(star), maxRetries });
  const partial = [];
  for await (const object of result.partialObjectStream) partial.push(object);
  assert.ok(partial.length > 1);
  checkStar(await result.object);
});

for (const toolChoice of ["required", { type: "tool", toolName: "paint" }]) {
  test(`a tool call, ${JSON.stringify(toolChoice)}`, async () => {
    const tools = { paint: tool({ description: "Paint the shape.", inputSchema: Paint }) };
    const asked = { model, tools, toolChoice, messages: messages(star), maxRetries };
    const { toolCalls, finishReason } = await generateText(asked);
    assert.equal(finishReason, "tool-calls");
    assert.ok(toolCalls.length > 0);
    for (const call of toolCalls) {
      assert.equal(call.toolName, "paint");
      assert.ok(!call.invalid);
      Paint.parse(call.input);
    }
  });
}

test("a streamed tool call", async () => {
  const tools = { paint: tool({ description: "Paint the shape.", inputSchema: Paint }) };
  const result = streamText({ model, tools, toolChoice: "required", messages: messages(star), maxRetries });
  const calls = await result.toolCalls;
  assert.ok(calls.length > 0);
  for (const call of calls) Paint.parse(call.input);
});
