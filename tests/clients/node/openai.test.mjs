// The openai package for Node: chat about images, streamed, parsed with zod, with tools; the Responses API; files, batches; errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
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

test("an uploaded image is named by its id", async () => {
  const file = await client.files.create({ file: await toFile(star.bytes, "star.png"), purpose: "vision" });
  const content = [
    { type: "text", text: star.text },
    { type: "file", file: { file_id: file.id } },
  ];
  const reply = await client.chat.completions.create({ model, messages: [{ role: "user", content }] });
  assert.equal(reply.choices[0].message.content, star.answer);
  const listed = [];
  for await (const each of client.files.list({ purpose: "vision", limit: 1 })) listed.push(each.id);
  assert.ok(listed.includes(file.id));
  const bytes = Buffer.from(await (await client.files.content(file.id)).arrayBuffer());
  assert.ok(bytes.equals(star.bytes));
  assert.ok((await client.files.delete(file.id)).deleted);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

async function startBatch(requests) {
  const lines = requests.map(([custom_id, body]) =>
    JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions", body }),
  );
  const file = await client.files.create({ file: await toFile(Buffer.from(lines.join("\n")), "requests.jsonl"), purpose: "batch" });
  const wanted = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
  return client.batches.create({ ...wanted, metadata: { of: "tests" } });
}

async function ended(batch, states) {
  for (const giveUpAt = Date.now() + 60_000; states.includes(batch.status) && Date.now() < giveUpAt; ) {
    await setTimeout(100);
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

test("a batch", async () => {
  const asked = questions.map((question) => [question.text, { model, messages: messages(question) }]);
  const refused = ["refused", { model: "no-such-model", messages: messages(star) }];
  const batch = await ended(await startBatch([...asked, refused]), ["validating", "in_progress", "finalizing"]);
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.metadata, { of: "tests" });
  assert.deepEqual(batch.request_counts, { total: questions.length + 1, completed: questions.length, failed: 1 });
  const output = await (await client.files.content(batch.output_file_id)).text();
  const lines = output.trim().split("\n").map((line) => JSON.parse(line));
  const answers = lines.map(({ custom_id, response }) => [custom_id, response.body.choices[0].message.content]);
  assert.deepEqual(Object.fromEntries(answers), Object.fromEntries(questions.map(({ text, answer }) => [text, answer])));
  const error = JSON.parse(await (await client.files.content(batch.error_file_id)).text());
  assert.deepEqual([error.custom_id, error.response.status_code], ["refused", 404]);
  const listed = [];
  for await (const each of client.batches.list({ limit: 1 })) listed.push(each.id);
  assert.ok(listed.includes(batch.id));
});

test("a batch is cancelled", async () => {
  const asked = Array.from({ length: 1000 }, (_, number) => [`${number}`, { model, messages: messages(star) }]);
  const batch = await client.batches.cancel((await startBatch(asked)).id);
  assert.equal((await ended(batch, ["cancelling"])).status, "cancelled");
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
