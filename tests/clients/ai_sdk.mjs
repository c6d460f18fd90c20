// Streams a chat and an object through the AI SDK, which checks every chunk: ai_sdk.mjs BASE_URL
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "mlx-flash",
  baseURL: `${process.argv[2]}/v1`,
  includeUsage: true,
});
const model = provider("bundled");
const read = tool({
  description: "Read a file.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { path: { type: "string", maxLength: 12 } },
    required: ["path"],
    additionalProperties: false,
  }),
});

async function streamed(options) {
  const failures = [];
  const result = streamText({ model, onError: ({ error }) => failures.push(error), ...options });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  if (failures.length) throw failures[0];
  const calls = (await result.toolCalls).map((call) => ({ name: call.toolName, input: call.input }));
  return { text, calls, reason: await result.finishReason, usage: await result.usage };
}

const prompt = "What does shutil.copytree do?";
const chat = await streamed({ prompt, temperature: 0, maxOutputTokens: 40 });
const call = await streamed({ prompt, tools: { read }, toolChoice: "required", maxOutputTokens: 80 });
console.log(JSON.stringify({ chat, call }));
