// promptfoo's command, with its providers for chat, Responses, Messages and Ollama: images, a schema, a function, a second turn.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const baseURL = process.env.CLIENTS_BASE_URL;
const model = process.env.CLIENTS_MODEL;
const command = new URL("node_modules/promptfoo/dist/src/entrypoint.js", import.meta.url).pathname;
const clients = new URL("../", import.meta.url);
const questions = JSON.parse(readFileSync(new URL("questions.json", clients), "utf8"));
const colours = ["red", "green", "blue", "yellow", "black", "purple", "orange"];
const schema = {
  type: "object",
  properties: {
    kind: { type: "string", enum: ["circle", "square", "triangle", "star"] },
    colour: { type: "string", enum: colours },
    count: { type: "integer", minimum: 1, maximum: 3 },
    filled: { type: "boolean" },
    label: { type: "string", pattern: "^[a-z]{1,12}$" },
  },
  required: ["kind", "colour", "count", "filled", "label"],
  additionalProperties: false,
};
const paint = { name: "paint", parameters: { type: "object", properties: { colour: { enum: colours } }, required: ["colour"] } };

const chat = { type: "image_url", image_url: { url: "data:image/png;base64,{{image}}" } };
const responses = { type: "input_image", image_url: "data:image/png;base64,{{image}}" };
const messages = { type: "image", source: { type: "base64", media_type: "image/png", data: "{{image}}" } };

function asked(image, text = "text") {
  return [{ role: "user", content: [{ type: text, text: "{{question}}" }, image] }];
}

function cases(assertions = ({ answer }) => [{ type: "equals", value: answer }], wanted = questions) {
  return wanted.map((one) => {
    const image = readFileSync(new URL(`pictures/${one.picture}`, clients)).toString("base64");
    return { vars: { question: one.question, image }, assert: assertions(one) };
  });
}

// The results of an evaluation, all of which have passed.
function evaluate(provider, config, prompt, tests) {
  const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
  const path = join(folder, "promptfooconfig.json");
  const written = { prompts: [JSON.stringify(prompt)], providers: [{ id: provider, config }], tests };
  writeFileSync(path, JSON.stringify(written));
  const own = { PROMPTFOO_CONFIG_DIR: folder, PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1" };
  const output = join(folder, "output.json");
  try {
    const flags = ["--no-cache", "--no-progress-bar", "--no-table", "-o", output];
    execFileSync(process.execPath, [command, "eval", "-c", path, ...flags], {
      cwd: folder,
      env: { ...process.env, ...own, OLLAMA_BASE_URL: baseURL.replace("/v1", "") },
      encoding: "utf8",
    });
  } catch (error) {
    assert.fail(`${error.stdout}${error.stderr}`);
  }
  const { results } = JSON.parse(readFileSync(output, "utf8")).results;
  assert.equal(results.length, tests.length);
  for (const result of results) assert.ok(result.success, result.error);
  return results;
}

const address = { apiBaseUrl: baseURL, apiKey: "none", temperature: 0 };

test("chat, with the counts of tokens", () => {
  const results = evaluate(`openai:chat:${model}`, address, asked(chat), cases());
  for (const { response } of results) assert.ok(response.tokenUsage.completion > 1);
});

test("Responses", () => {
  evaluate(`openai:responses:${model}`, address, asked(responses, "input_text"), cases());
});

test("Messages", () => {
  const config = { ...address, apiBaseUrl: baseURL.replace("/v1", ""), max_tokens: 64 };
  evaluate(`anthropic:messages:${model}`, config, asked(messages), cases());
});

test("Ollama", () => {
  const prompt = [{ role: "user", content: "{{question}}", images: ["{{image}}"] }];
  evaluate(`ollama:chat:${model}`, { temperature: 0 }, prompt, cases());
});

test("an answer in a schema", () => {
  const response_format = { type: "json_schema", json_schema: { name: "shape", strict: true, schema } };
  const check = () => [{ type: "is-json", value: schema }];
  const [result] = evaluate(`openai:chat:${model}`, { ...address, response_format }, asked(chat), cases(check, [questions[0]]));
  const { kind, colour } = result.response.output;
  assert.deepEqual([kind, colour], ["star", "blue"]);
});

test("a function call", () => {
  const config = { ...address, tools: [{ type: "function", function: paint }], tool_choice: "required" };
  const check = () => [{ type: "is-valid-openai-tools-call" }];
  evaluate(`openai:chat:${model}`, config, asked(chat), cases(check, [questions[0]]));
});

test("a second turn", () => {
  const prompt = [...asked(chat), { role: "assistant", content: "A blue star." }, { role: "user", content: "What color is it?" }];
  const check = () => [{ type: "regex", value: "\\w" }];
  evaluate(`openai:chat:${model}`, address, prompt, cases(check, [questions[0]]));
});
