/** Server-sent events over fetch: EventSource can neither show an error's body nor POST. */

export interface ServerEvent {
  name: string;
  data: string;
}

/** Takes the stream's text in pieces of any size and returns the events that are complete. */
export class EventParser {
  #rest = '';
  #name = '';
  #data: string[] = [];

  push(text: string): ServerEvent[] {
    const events: ServerEvent[] = [];
    this.#rest += text;
    for (;;) {
      const end = this.#rest.search(/\r\n|\n|\r/);
      if (end < 0) break;
      // A carriage return at the very end may be half of a line end.
      if (this.#rest[end] === '\r' && end === this.#rest.length - 1) break;
      const line = this.#rest.slice(0, end);
      this.#rest = this.#rest.slice(end + (this.#rest.startsWith('\r\n', end) ? 2 : 1));
      const event = this.#take(line);
      if (event) events.push(event);
    }
    return events;
  }

  #take(line: string): ServerEvent | null {
    if (line === '') {
      const event = { name: this.#name || 'message', data: this.#data.join('\n') };
      const isWhole = this.#data.length > 0;
      this.#name = '';
      this.#data = [];
      return isWhole ? event : null;
    }
    if (line.startsWith(':')) return null;
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#name = value;
    else if (field === 'data') this.#data.push(value);
    return null;
  }
}

/** A stream's events until it ends.
 *
 * @param silence  milliseconds without a byte, keep-alive comments included, after which the
 *   connection is taken for dead and the iteration throws.
 */
export async function* readEvents(
  response: Response,
  silence = 45_000,
): AsyncGenerator<ServerEvent, void, undefined> {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await withDeadline(reader.read(), silence);
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    // Leaving early must close the connection, not leave it to be filled.
    reader.cancel().catch(() => undefined);
  }
}

function withDeadline<T>(promise: Promise<T>, milliseconds: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('The connection fell silent')), milliseconds);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
