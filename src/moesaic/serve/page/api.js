// What the page asks of the server, and its errors in words.

const KEY = "moesaic-api-key";

/** Kept for this tab only; a browser that keeps nothing asks again after a reload. */
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch { /* storage is switched off */ }

export const apiKey = () => key;

export function setApiKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* storage is switched off */ }
}

/** An error that a reader can act on; `status` is 0 when no answer came. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function ask(address, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = "";
  try {
    message = messageOf((await response.json()).error);
  } catch { /* not JSON: a proxy in between, perhaps */ }
  message ||= `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  const seconds = Number(response.headers.get("Retry-After"));
  if (response.status === 429 && seconds > 0 && !/\d s\b/.test(message)) message += ` (in ${seconds} s)`;
  if (response.status === 401) message = `${message.replace(/\.$/, "")}. It belongs into “API key” under Parameters.`;
  return new ServerError(message, response.status);
}

const messageOf = (error) => (typeof error === "string" ? error : (error?.message ?? ""));

/** Names of the models that are served. */
export async function models() {
  return (await (await ask("v1/models")).json()).data.map((model) => model.id);
}

/** The engine's steps after number `since`, and what stands beside them. */
export const live = async (since, signal) => (await ask(`live?since=${since}`, { signal })).json();

/** Chunks of an answer as they come. Throws ServerError, or AbortError when `signal` was raised. */
export async function* chat(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ServerError("The server sent something that is not JSON.");
    }
    if (chunk.error) throw new ServerError(messageOf(chunk.error) || "The server gave up on this answer.", 500);
    yield chunk;
  }
  throw new ServerError("The answer broke off: the connection was closed before its end.");
}

/** The data of each server-sent event of a byte stream. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The answer broke off: the connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
