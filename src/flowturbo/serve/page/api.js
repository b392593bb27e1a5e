// The public API: JSON, and the server-sent events of a stream.

const KEY = "flowturbo-key"; // of the session's storage

/** An answer with an error; `status` is 0 where there was no answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Keep an API key until the tab is closed. */
export function keep(key) {
  sessionStorage.setItem(KEY, key);
}

/** The model that is served, as /v1/models lists it. */
export async function model() {
  const { data } = await (await ask("v1/models")).json();
  return data[0];
}

/**
 * The events of a streamed request.
 *
 * @param path of the endpoint.
 * @param fields of the request; one that is undefined is left out, and a Blob needs a form.
 * @param signal aborts the request, which the server then cancels.
 */
export async function* stream(path, fields, signal) {
  const given = Object.entries({ ...fields, stream: true }).filter(([, value]) => value !== undefined);
  const options = { method: "POST", signal };
  if (given.some(([, value]) => value instanceof Blob)) {
    options.body = new FormData();
    given.forEach(([name, value]) => options.body.append(name, value));
  } else {
    options.body = JSON.stringify(Object.fromEntries(given));
    options.headers = { "Content-Type": "application/json" };
  }
  const answer = await ask(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const line = event.split("\n").find((part) => part.startsWith("data: "));
        const data = JSON.parse(line.slice("data: ".length));
        if (data.error) throw new ApiError(400, data.error.message);
        yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that was aborted
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new ApiError(answer.status, body?.error?.message ?? `The server answered ${answer.status}.`);
}
