// OpenAI's SDK for Node, told by one JSON argument what to do, telling in one line of JSON what came of it:
// {options, method, body, request, leave}: `options` of the client, a method of it by its path, the body and the options
// of the request, and after how many events of a stream to leave it.
import OpenAI from "openai";

const asked = JSON.parse(process.argv[2]);
const client = new OpenAI(asked.options);
const result = { events: [], reply: null, error: null };

function told(error) {
  const headers = error.headers ? Object.fromEntries(error.headers.entries()) : {};
  const { status = null, code = null, type = null, param = null, message } = error;
  // A class of the SDK is known by what it is an instance of, as its users find out.
  const kinds = Object.keys(OpenAI).filter((name) => name.endsWith("Error") && error instanceof OpenAI[name]);
  return { kinds, status, code, type, param, message, headers };
}

try {
  let owner = client;
  const path = asked.method.split(".");
  for (const name of path.slice(0, -1)) owner = owner[name];
  const reply = await owner[path.at(-1)](...(asked.body === undefined ? [] : [asked.body]), asked.request ?? {});
  if (asked.body?.stream) {
    for await (const event of reply) {
      result.events.push(event);
      if (result.events.length === asked.leave) reply.controller.abort();
    }
  } else {
    result.reply = reply.data && reply.getNextPage ? { data: reply.data } : reply;
  }
} catch (error) {
  result.error = told(error);
}
console.log(JSON.stringify(result));
if (asked.leave) await new Promise((done) => process.stdin.once("end", done).resume()); // so that leaving is not dying
