// The openai package for Node: chat about pictures, streamed, parsed with zod, with tools; the Responses API; errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { Paint, Shape, baseURL, checkStar, model, questions, star } from "./asked.mjs";

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const tools = [zodFunction({ name: "paint", parameters: Paint, description: "Paint the shape." })];

function messages({ text, url }) {
  const content = [
    { type: "text", text },
    { type: "image_url", image_url: { url } },
  ];
  return [{ role: "user", content }];
}

function responseInput({ text, url }) {
  const content = [
    { type: "input_text", text },
    { type: "input_image", image_url: url, detail: "auto" },
  ];
  return [{ role: "user", content }];
}

for (const question of questions) {
  test(`answers: ${question.text}`, async () => {
    const reply = await client.chat.completions.create({ model, messages: messages(question) });
    assert.equal(reply.choices[0].message.content, question.answer);
  });
}

test("stream", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages: messages(star),
    stream: true,
    stream_options: { include_usage: true },
  });
  const pieces = [];
  let usage;
  for await (const chunk of stream) {
    pieces.push(chunk.choices[0]?.delta.content ?? "");
    usage = chunk.usage ?? usage;
  }
  assert.equal(pieces.join(""), star.answer);
  assert.ok(pieces.filter(Boolean).length > 1);
  assert.ok(usage.completion_tokens > 1);
});

test("stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages: messages(star) });
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));
  assert.equal(await stream.finalContent(), star.answer);
  assert.equal(pieces.join(""), star.answer);
});

test("response headers", async () => {
  const { data, response } = await client.chat.completions.create({ model, messages: messages(star) }).withResponse();
  assert.equal(response.headers.get("content-type"), "application/json");
  assert.equal(data.choices[0].message.content, star.answer);
});

test("parse with zod", async () => {
  const reply = await client.chat.completions.parse({
    model,
    messages: messages(star),
    response_format: zodResponseFormat(Shape, "shape"),
  });
  checkStar(reply.choices[0].message.parsed);
});

test("a tool call and its result", async () => {
  const asked = messages(star);
  const reply = await client.chat.completions.parse({ model, messages: asked, tools, tool_choice: "required" });
  assert.equal(reply.choices[0].finish_reason, "tool_calls");
  const { message } = reply.choices[0];
  assert.ok(message.tool_calls.length > 0);
  for (const call of message.tool_calls) {
    assert.equal(call.function.name, "paint");
    Paint.parse(call.function.parsed_arguments);
  }
  const results = message.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "painted" }));
  const after = await client.chat.completions.create({
    model,
    messages: [...asked, message, ...results, { role: "user", content: "What color is the star?" }],
    tools,
    tool_choice: "none",
  });
  // The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
  assert.match(after.choices[0].message.content, /^Blue\./);
});

test("a named tool while streaming", async () => {
  const stream = client.chat.completions.stream({
    model,
    messages: messages(star),
    tools,
    tool_choice: { type: "function", function: { name: "paint" } },
    parallel_tool_calls: false,
  });
  const final = await stream.finalChatCompletion();
  const [call, ...more] = final.choices[0].message.tool_calls;
  assert.equal(more.length, 0);
  Paint.parse(JSON.parse(call.function.arguments));
});

test("responses", async () => {
  const reply = await client.responses.create({ model, input: responseInput(star), store: false });
  assert.equal(reply.output_text, star.answer);
});

test("responses, streamed", async () => {
  const stream = client.responses.stream({ model, input: responseInput(star), store: false });
  const pieces = [];
  stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
  const final = await stream.finalResponse();
  assert.equal(pieces.join(""), star.answer);
  assert.equal(final.output_text, star.answer);
});

test("responses, parsed with zod", async () => {
  const reply = await client.responses.parse({
    model,
    input: responseInput(star),
    text: { format: zodTextFormat(Shape, "shape") },
    store: false,
  });
  checkStar(reply.output_parsed);
});

test("errors have the client's classes", async () => {
  const unknown = client.chat.completions.create({ model: "no-such-model", messages: messages(star) });
  await assert.rejects(unknown, OpenAI.NotFoundError);
  const broken = messages({ ...star, url: "data:image/png;base64,AAAA" });
  await assert.rejects(client.chat.completions.create({ model, messages: broken }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "messages[0].content[1].image_url");
    return true;
  });
});
