// @openai/agents on the Responses and the Chat Completions API: images, streams, objects, tools, a second turn.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Agent,
  MemorySession,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  run,
  setTracingDisabled,
  tool,
} from "@openai/agents";
import OpenAI from "openai";
import { Paint, Shape, baseURL, checkStar, model as name, questions, star } from "./asked.mjs";

// Traces would be sent to OpenAI.
setTracingDisabled(true);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const followUp = { role: "user", content: "What color is the star?" };

function asked({ text, url }) {
  const content = [
    { type: "input_text", text },
    { type: "input_image", image: url },
  ];
  return [{ role: "user", content }];
}

for (const Model of [OpenAIResponsesModel, OpenAIChatCompletionsModel]) {
  const model = new Model(client, name);
  const agent = new Agent({ name: "eye", model, instructions: "Be brief." });

  test(`${Model.name}: answers at once`, async () => {
    const results = await Promise.all(questions.map((question) => run(agent, asked(question))));
    assert.deepEqual(results.map((each) => each.finalOutput), questions.map((question) => question.answer));
    for (const each of results) assert.ok(each.state.usage.outputTokens > 1);
  });

  test(`${Model.name}: a stream`, async () => {
    const result = await run(agent, asked(star), { stream: true });
    const pieces = [];
    for await (const piece of result.toTextStream()) pieces.push(piece);
    await result.completed;
    assert.equal(pieces.join(""), star.answer);
    assert.ok(pieces.length > 1);
    assert.equal(result.finalOutput, star.answer);
    assert.ok(result.state.usage.outputTokens > 1);
  });

  test(`${Model.name}: an object`, async () => {
    const result = await run(new Agent({ name: "eye", model, outputType: Shape }), asked(star));
    checkStar(result.finalOutput);
  });

  test(`${Model.name}: a second turn`, async () => {
    const first = await run(agent, asked(star));
    const second = await run(agent, [...first.history, followUp]);
    assert.equal(second.finalOutput, "Blue.");
  });

  test(`${Model.name}: a session`, async () => {
    const session = new MemorySession();
    await session.addItems(asked(star));
    await run(agent, "What is in this image?", { session });
    const second = await run(agent, followUp.content, { session });
    assert.equal(second.finalOutput, "Blue.");
  });

  test(`${Model.name}: a tool and a turn after it`, async () => {
    const painted = [];
    const paint = tool({
      name: "paint",
      description: "Paint the shape.",
      parameters: Paint,
      execute: (given) => {
        painted.push(Paint.parse(given));
        return "painted";
      },
    });
    const painter = new Agent({ name: "eye", model, tools: [paint], modelSettings: { toolChoice: "required" } });
    const first = await run(painter, asked(star));
    assert.ok(painted.length > 0);
    const second = await run(agent, [...first.history, followUp]);
    // The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert.match(second.finalOutput, /^Blue\./);
  });
}

test("a tool that gives an image", async () => {
  const model = new OpenAIResponsesModel(client, name);
  const look = tool({
    name: "look",
    description: "Look.",
    parameters: Paint,
    execute: () => ({ type: "image", image: { url: star.url } }),
  });
  const modelSettings = { toolChoice: "required", parallelToolCalls: false };
  const toolUseBehavior = "stop_on_first_tool";
  const agent = new Agent({ name: "eye", model, tools: [look], modelSettings, toolUseBehavior });
  const first = await run(agent, "Look.");
  const second = await run(new Agent({ name: "eye", model }), [...first.history, followUp]);
  assert.match(second.finalOutput, /^Blue\./);
});
