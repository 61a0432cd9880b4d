// Talk to the server: the key, errors in words, and the stream of an answer.

const STORE = "anydepth-key";

export class ApiError extends Error {
  constructor(message, { status = 0, code = null, report = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.report = report; // of a blocked answer, where the operator wants those to be errors
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORE) ?? "",
  set: (value) => sessionStorage.setItem(STORE, value),
  forget: () => sessionStorage.removeItem(STORE),
};

/** Called with an ApiError of status 401 or 0, whatever asked for it. */
let onTrouble = () => {};
export const watchTrouble = (listener) => {
  onTrouble = listener;
};

export const UNREACHABLE = "The server cannot be reached. Check that it is running, then try again.";
const CUT = "The connection ended before the answer did. What had arrived is shown.";

async function request(path, { body, signal } = {}) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw signal?.aborted ? error : trouble(new ApiError(UNREACHABLE));
  }
  if (!response.ok) {
    throw trouble(await failure(response));
  }
  return response;
}

export async function call(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw options?.signal?.aborted ? error : trouble(new ApiError(UNREACHABLE));
  }
}

/** The chunks of a streamed answer, parsed; throws if the stream ends early. */
export async function* stream(path, { body, signal }) {
  const response = await request(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        throw new ApiError(CUT);
      }
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data:")) {
          continue; // a comment that keeps the connection open
        }
        const data = event.replace(/^data: ?/, "");
        if (data === "[DONE]") {
          return;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) {
          throw new ApiError(sentence(chunk.error.message), { status: 500, code: chunk.error.code });
        }
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) {
      throw error;
    }
    throw trouble(new ApiError(CUT));
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function failure(response) {
  let detail = {};
  try {
    detail = (await response.json()).error ?? {};
  } catch {
    // not this server's envelope: a proxy answered
  }
  const { status } = response;
  const facts = { status, code: detail.code, report: detail.anydepth ?? null };
  if (status === 401) {
    return new ApiError("This server asks for an API key.", facts);
  }
  if (status === 429) {
    const seconds = response.headers.get("Retry-After");
    return new ApiError(`The server is busy. Try again ${seconds ? `in ${seconds} s` : "in a moment"}.`, facts);
  }
  return new ApiError(sentence(detail.message ?? `The server answered with status ${status}`), facts);
}

function trouble(error) {
  if (error.status === 401 || error.status === 0) {
    onTrouble(error);
  }
  return error;
}

/** The server's messages begin small and end without a stop. */
function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
