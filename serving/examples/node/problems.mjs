// What an error says: of a call (ConnectError), or of one item of a stream (ItemStatus, a google.rpc.Status).
import { setTimeout as pause } from "node:timers/promises";
import { anyUnpack, durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

export const TRIES = 5;
const FIRST_WAIT_MS = 200;
const LONGEST_WAIT_MS = 5_000;

/** Call, and call again while that may help and there is time; a photograph that is sent twice does no harm. */
export async function patiently(call, timeoutMs, report) {
  const end = performance.now() + timeoutMs;
  const leftMs = () => Math.max(1, Math.round(end - performance.now()));
  for (let tried = 0; ; tried += 1) {
    try {
      return await call(leftMs());
    } catch (error) {
      const waiting = waitMs(error, tried);
      if (!mayPass(error) || tried + 1 >= TRIES || waiting >= leftMs()) {
        throw error;
      }
      report(error, waiting);
      await pause(waiting);
    }
  }
}

/** Whether another try may do better. */
export function mayPass(problem) {
  switch (problem.code) {
    case Code.Unavailable:
      return true;
    case Code.Aborted:
    case Code.Canceled: // how a connection that breaks is told; these programs cancel nothing themselves
      return problem instanceof ConnectError;
    case Code.ResourceExhausted: // without RetryInfo it may also mean a message that is too large
      return detail(problem, RetryInfoSchema) !== undefined;
    case Code.FailedPrecondition: // of a server that is still warming up
      return detail(problem, ErrorInfoSchema)?.reason === "NOT_READY";
    default:
      return false;
  }
}

/** Milliseconds before the next try: as long as the server asks for, else longer each time, spread at random. */
export function waitMs(problem, tried) {
  const asked = detail(problem, RetryInfoSchema)?.retryDelay;
  const backing = Math.min(FIRST_WAIT_MS * 2 ** tried, LONGEST_WAIT_MS) * (0.5 + Math.random() / 2);
  return Math.round(Math.max(asked ? durationMs(asked) : 0, backing));
}

/** One line about it, with the call's own name for the server's log, if it has one. */
export function complaint(name, problem, requestId) {
  if (problem.code === undefined || typeof problem.code === "string") {
    return `${name}: ${problem.message}`; // not the server's: a file that cannot be read
  }
  const info = detail(problem, ErrorInfoSchema);
  const fields = detail(problem, BadRequestSchema)?.fieldViolations ?? [];
  const parts = [
    `${name}: ${codeName(problem.code)}`,
    ...(info ? [`${info.domain}/${info.reason}`] : []),
    problem.rawMessage ?? problem.message,
    ...fields.map(({ field }) => `(field ${field})`),
    ...(requestId ? [`(request ${requestId})`] : []),
  ];
  return parts.join(" ");
}

function detail(problem, schema) {
  if (problem instanceof ConnectError) {
    return problem.findDetails(schema)[0];
  }
  return (problem.details ?? []).map((packed) => anyUnpack(packed, schema)).find(Boolean);
}

/** ResourceExhausted → RESOURCE_EXHAUSTED. */
function codeName(code) {
  return (Code[code] ?? `code ${code}`).replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}
