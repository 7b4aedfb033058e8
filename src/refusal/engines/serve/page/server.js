// The server's side of the page: requests, errors in plain words, events of a stream.

// The key is kept in this variable and nowhere else.
let key = "";
export const useKey = (text) => { key = text; };

const LEADS = {
  401: "The server asks for a key, or for another one.",
  403: "The server does not let this request in.",
  413: "That is too long for this server.",
  429: "The server has too much to do just now; try again in a moment.",
  503: "The server cannot answer just now.",
};

export class Complaint extends Error {
  constructor(words, status = null, code = null) {
    super(words);
    Object.assign(this, { status, code });
  }
}

// Of an error as the API has it: what its status means, and what the server says.
export function complaint(error, status) {
  const words = [LEADS[status], error?.message].filter(Boolean).join(" ");
  return new Complaint(words || `The server answered with status ${status} and no word why.`, status, error?.code ?? null);
}

export async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Complaint("The server cannot be reached. Is refusal serve still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let error = null;
  try { error = JSON.parse(text).error; } catch { /* not JSON: the status has to do */ }
  throw complaint(error, response.status);
}

// The data of each server-sent event, parsed; ends at [DONE].
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Complaint("The connection ended before the answer did.");
      const found = (rest + value).split(/\r?\n\r?\n/);
      rest = found.pop();
      for (const event of found) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Complaint) throw error;
    throw new Complaint("The connection broke before the answer was done.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
