// The server's protocol: models, and answers as they come.

/** A request that the server refused, or an answer that failed: its message is for the reader. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Returns the served model: {id, max_model_len}. */
export async function fetchModel(key) {
  const response = await ask('v1/models', { headers: headers(key) });
  return (await response.json()).data[0];
}

/**
 * Yields an answer: {text} as it comes, {finish} and {usage} at its end.
 *
 * Leaving the loop, or the signal, ends the request, and the server stops with it.
 */
export async function* streamChat(body, key, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await ask('v1/chat/completions', {
    method: 'POST',
    headers: { ...headers(key), 'Content-Type': 'application/json' },
    body: JSON.stringify({ ...body, ...options }),
    signal,
  });
  for await (const data of readEvents(response.body)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    const choice = chunk.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new ServerError('The connection ended before the answer did.');
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The server does not answer: is it still running?');
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = `The server answered ${response.status}.`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // A proxy's page, say: the status has to do.
  }
  throw new ServerError(message, response.status);
}

/** Yields the data of server-sent events. */
async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split('\n\n');
      rest = events.pop();
      for (const event of events) if (event.startsWith('data: ')) yield event.slice(6);
    }
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The connection broke while the answer came.');
  } finally {
    reader.cancel().catch(() => {});
  }
}
