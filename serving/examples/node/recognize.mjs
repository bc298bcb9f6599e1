// Recognizes photographs one after the other; a server that is full or away for a moment is asked again.
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { told } from "./answers.mjs";
import { connect, readArguments } from "./connection.mjs";
import { complaint, patiently } from "./problems.mjs";

const asked = readArguments("node recognize.mjs [--server HOST:PORT] [--habitat WORDS] [--month 1-12] PHOTO...");
const client = connect(asked);
for (const path of asked.photos) {
  const name = basename(path);
  const id = randomUUID(); // the server's log has it, the same for each try
  const again = (error, ms) => console.error(`${complaint(name, error)}; trying again in ${ms} ms`);
  try {
    const request = { image: await readFile(path), ...asked.known };
    const call = (timeoutMs) => client.recognize(request, { timeoutMs, headers: { "x-request-id": id } });
    console.log(told(name, await patiently(call, asked.timeoutMs, again)));
  } catch (error) {
    console.error(complaint(name, error, id));
    process.exitCode = 1;
  }
}
