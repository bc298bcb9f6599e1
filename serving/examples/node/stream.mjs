// Uploads a queue of photographs: answers are printed when they are ready, and a broken connection loses nothing.
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import { told } from "./answers.mjs";
import { MAX_IMAGE_BYTES, connect, readArguments } from "./connection.mjs";
import { TRIES, complaint, mayPass, waitMs } from "./problems.mjs";

const asked = readArguments("node stream.mjs [--server HOST:PORT] [--habitat WORDS] [--month 1-12] PHOTO...");
const client = connect(asked);
const session = randomUUID(); // the server remembers under this name what it has answered
const waiting = new Map(asked.photos.map((path, place) => [String(place), path])); // id to path, not yet answered
let tried = 0; // in a row without an answer

while (waiting.size > 0) {
  const problem = await upload();
  if (waiting.size === 0) {
    break;
  }
  tried += 1;
  if (!mayPass(problem) || tried >= TRIES) {
    console.error(complaint("the queue", problem));
    console.error(`not answered: ${[...waiting.values()].map((path) => basename(path)).join(", ")}`);
    process.exitCode = 1;
    break;
  }
  const ms = waitMs(problem, tried - 1);
  console.error(`${complaint("the queue", problem)}; ${waiting.size} left, trying again in ${ms} ms`);
  await pause(ms);
}

/** One call with all that waits; gives why some of it still does. */
async function upload() {
  let problem = new ConnectError("the call ended before all was answered", Code.Unavailable);
  try {
    for await (const { id, result, replayed } of client.streamRecognize(queue())) {
      const path = waiting.get(id);
      if (result.case === "status" && mayPass(result.value)) {
        problem = result.value; // the item is sent again with the next call
      } else if (path !== undefined) {
        tried = 0;
        waiting.delete(id);
        if (result.case === "status") {
          refuse(complaint(basename(path), result.value));
        } else {
          const note = replayed ? "\n  answered before the connection broke" : "";
          console.log(told(basename(path), result.value) + note);
        }
      }
    }
  } catch (error) {
    problem = ConnectError.from(error);
  }
  return problem;
}

/** What waits, each read only when the connection has room for it. */
async function* queue() {
  for (const [id, path] of [...waiting]) {
    const image = await read(id, path);
    if (image !== undefined) {
      yield { id, session, request: { image, ...asked.known } }; // where a call that breaks throws its error
    }
  }
}

async function read(id, path) {
  try {
    const image = await readFile(path);
    if (image.length > MAX_IMAGE_BYTES) {
      throw new Error(`${image.length} bytes; at most ${MAX_IMAGE_BYTES} are sent`);
    }
    return image;
  } catch (error) {
    waiting.delete(id);
    refuse(complaint(basename(path), error));
    return undefined;
  }
}

function refuse(line) {
  console.error(line);
  process.exitCode = 1;
}
