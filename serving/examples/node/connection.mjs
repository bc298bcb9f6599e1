// What both programs are told, and how they reach the server.
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { RecognitionService } from "./gen/l2r2/v1/recognition_pb.js";

const MAX_MESSAGE_BYTES = 32 * 2 ** 20; // the server's own default
export const MAX_IMAGE_BYTES = MAX_MESSAGE_BYTES - 2 ** 16; // what is known of a photograph needs some room, too
const KEEPALIVE = { pingIntervalMs: 60_000, pingTimeoutMs: 20_000 };

const OPTIONS = {
  server: { type: "string", default: "127.0.0.1:50051" }, // HOST:PORT
  ca: { type: "string" }, // PEM file with the authority that vouches for the server: turns TLS on
  certificate: { type: "string" }, // PEM files, where the server asks callers for a certificate of their own (mTLS)
  key: { type: "string" },
  habitat: { type: "string" },
  substrate: { type: "string" },
  month: { type: "string" },
  "timeout-ms": { type: "string", default: "30000" },
};

/** The command line: options, and the photographs' paths. */
export function readArguments(usage) {
  try {
    const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
    if (positionals.length === 0) {
      throw new Error("no photographs");
    }
    const { habitat, substrate } = values;
    const month = values.month === undefined ? undefined : wholeNumber("--month", values.month);
    const timeoutMs = wholeNumber("--timeout-ms", values["timeout-ms"]);
    checkSafe(values);
    return { ...values, timeoutMs, known: { habitat, substrate, month }, photos: positionals };
  } catch (error) {
    console.error(`error: ${error.message}\nusage: ${usage}`);
    process.exit(2);
  }
}

/** A client of the server. A token, if there is one, is in the environment variable L2R2_TOKEN. */
export function connect({ server, ca, certificate, key }) {
  const token = process.env.L2R2_TOKEN;
  const authorize = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  const own = certificate ? { cert: readFileSync(certificate), key: readFileSync(key) } : {};
  const transport = createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${server}`,
    nodeOptions: ca ? { ca: readFileSync(ca), ...own } : {},
    interceptors: token ? [authorize] : [],
    readMaxBytes: MAX_MESSAGE_BYTES,
    writeMaxBytes: MAX_MESSAGE_BYTES,
    ...KEEPALIVE,
  });
  return createClient(RecognitionService, transport);
}

function checkSafe({ server, ca, certificate, key }) {
  if (process.env.L2R2_TOKEN && !ca && !isLoopback(server)) {
    throw new Error(`a token would be sent to ${server} in plain text; give --ca`);
  }
  if (Boolean(certificate) !== Boolean(key) || (certificate && !ca)) {
    throw new Error("--certificate, --key and --ca go together");
  }
}

function wholeNumber(option, text) {
  if (!/^\d+$/.test(text)) {
    throw new Error(`${option} is ${text}; expected a whole number`);
  }
  return Number(text);
}

function isLoopback(server) {
  const host = server.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}
