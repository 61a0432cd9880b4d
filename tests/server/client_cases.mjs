// Ask a guarded server as the AI SDK does, and print what it made of the answer: client_cases.py for JavaScript.
//
// Run by test_clients.py in a folder that has the packages: `node client_cases.mjs URL`. Prints a line of JSON per case:
// its name, how many requests it cost, and what came of it.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const LATE = "say: all is well here, and then comes the harm, and more of it than one window has";
const FIRST = "harm: all is well";
const CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>';
const CALLED = `say: Let me look. ${CALL} and on it goes for a while, on and on, until the harm comes, and more of it`;
const BOOKED = '{"city": "Ulm", "guests": 12}';
const HALF = '{"city": "all is well here, and then comes the harm, and more of it than one window has';
const PATH = 'anydepth_requests_total{path="/v1/chat/completions"';

const url = process.argv[2];
const provider = createOpenAICompatible({
  name: "anydepth",
  baseURL: `${url}/v1`,
  apiKey: "none",
  supportsStructuredOutputs: true,
});
const model = provider("scripted");

// How many chats the server was asked for.
async function requests() {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n").filter((line) => line.startsWith(PATH));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}

async function whole(prompt) {
  const answer = await generateText({ model, prompt, include: { responseBody: true } });
  return [answer.text, answer.finishReason, answer.response.body.choices[0].anydepth.halted];
}

async function streamed(prompt) {
  const answer = streamText({ model, prompt, onError: () => {} });
  let text = "";
  for await (const part of answer.textStream) text += part;
  return [text, await answer.finishReason];
}

async function agent() {
  const ran = [];
  const weather = tool({
    description: "Look the weather up.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      ran.push(city);
      return "sunny";
    },
  });
  const answer = await generateText({ model, prompt: CALLED, tools: { weather }, stopWhen: stepCountIs(5) });
  return [ran, answer.text];
}

async function booking(prompt) {
  const schema = z.object({ city: z.string(), guests: z.number().int() });
  const { output } = await generateText({ model, prompt, output: Output.object({ schema }) });
  return [output.city, output.guests];
}

const cases = {
  late: () => whole(LATE),
  first: () => whole(FIRST),
  "late, streamed": () => streamed(LATE),
  "first, streamed": () => streamed(FIRST),
  agent,
  json: () => booking(`say: ${BOOKED}`),
  "json, late": () => booking(`say: ${HALF}`),
};

for (const [name, run] of Object.entries(cases)) {
  const before = await requests();
  let outcome;
  try {
    outcome = await run();
  } catch (error) {
    outcome = { error: error.name, text: `${error.message} ${error.responseBody ?? ""}` };
  }
  console.log(JSON.stringify({ case: name, requests: (await requests()) - before, outcome }));
}
