// What every client asks: pictures with one right answer, an object that describes a picture, and a function to call.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { z } from "zod";

export const baseURL = process.env.CLIENTS_BASE_URL;
export const model = process.env.CLIENTS_MODEL;

const clients = new URL("../", import.meta.url);
const listed = JSON.parse(readFileSync(new URL("questions.json", clients), "utf8"));

export const questions = listed.map(({ question, picture, answer }) => {
  const bytes = readFileSync(new URL(`pictures/${picture}`, clients));
  return { text: question, bytes, url: `data:image/png;base64,${bytes.toString("base64")}`, answer };
});
export const star = questions[0];

const colour = z.enum(["red", "green", "blue", "yellow", "black", "purple", "orange"]);

export const Shape = z.object({
  kind: z.enum(["circle", "square", "triangle", "star"]),
  colour,
  count: z.int().min(1).max(3),
  filled: z.boolean(),
  label: z.string().regex(/^[a-z]{1,12}$/),
});

export const Paint = z.object({ colour, coats: z.int().min(1).max(3) });

// What a client made of an answer about `star` in the form of `Shape`.
export function checkStar(answer) {
  const shape = Shape.parse(answer);
  assert.deepEqual([shape.kind, shape.colour], ["star", "blue"]);
}
