import { afterEach, describe, expect, test, vi } from 'vitest';
import { backoff, follow, newPart, sleepUntilBack, type Follower } from '$lib/api/follow';
import type { ApiError } from '$lib/api/http';
import type { Message } from '$lib/api/types';
import { countCodePoints } from '$lib/chat/codePoints';

afterEach(() => vi.unstubAllGlobals());

const event = (name: string, data: unknown) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
const delta = (at: number, text: string) => event('delta', { at, text });
const done = event('done', { id: 'm', content: 'all' });

/** Answers in turn: a text is a stream that then ends, a number is a status. */
function server(...answers: (string | number | Error)[]) {
  const asked: string[] = [];
  const fetch = vi.fn(async (path: string) => {
    asked.push(path);
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    if (typeof answer === 'number') {
      return new Response('{"error":{"message":"no"}}', { status: answer });
    }
    return new Response(answer ?? done);
  });
  vi.stubGlobal('fetch', fetch);
  return asked;
}

function reader() {
  let text = '';
  const states: string[] = [];
  const waits: number[] = [];
  const outcome: { done?: Message; refused?: ApiError } = {};
  const follower: Follower = {
    length: () => countCodePoints(text),
    onText: (more) => (text += more),
    onDone: (message) => (outcome.done = message),
    onState: (state) => states.push(state),
    onRefused: (error) => (outcome.refused = error),
  };
  const timing = {
    backoff: (attempt: number) => attempt,
    sleep: async (wait: number) => void waits.push(wait),
  };
  const run = (signal = new AbortController().signal) => follow('m', follower, signal, timing);
  return { run, states, waits, outcome, text: () => text };
}

describe('an answer', () => {
  test('is read to its end', async () => {
    server(delta(0, 'Hel') + ': keep-alive\n\n' + delta(3, 'lo') + done);
    const { run, text, outcome } = reader();
    await run();
    expect(text()).toBe('Hello');
    expect(outcome.done?.content).toBe('all');
  });

  test('goes on where a lost connection left it', async () => {
    const asked = server(delta(0, 'Hel'), new TypeError('network'), delta(3, 'lo') + done);
    const { run, text, states } = reader();
    await run();
    expect(text()).toBe('Hello');
    expect(asked.map((path) => path.split('?')[1])).toEqual(['from=0', 'from=3', 'from=3']);
    expect(states).toEqual(['open', 'waiting', 'waiting', 'open']);
  });

  test('is counted in characters and not in halves of them', async () => {
    const asked = server(delta(0, 'a🎉b'), delta(3, 'c') + done);
    const { run, text } = reader();
    await run();
    expect(text()).toBe('a🎉bc');
    expect(asked[1]).toContain('from=3');
  });

  test('takes nothing twice', async () => {
    server(delta(0, 'Hello') + delta(2, 'llo wor') + delta(0, 'Hell') + done);
    const { run, text } = reader();
    await run();
    expect(text()).toBe('Hello wor');
  });

  test('asks again where something is missing', async () => {
    const asked = server(delta(0, 'a') + delta(5, 'z') + done, delta(1, 'b') + done);
    const { run, text } = reader();
    await run();
    expect(text()).toBe('ab');
    expect(asked).toHaveLength(2);
  });

  test('is waited for longer and longer while the server is away', async () => {
    server(503, new TypeError('x'), 502, delta(0, 'a'), done);
    const { run, waits } = reader();
    await run();
    expect(waits).toEqual([0, 1, 2, 0]);
  });

  test('that is refused is not asked for again', async () => {
    const asked = server(404);
    const { run, outcome } = reader();
    await run();
    expect(outcome.refused?.status).toBe(404);
    expect(asked).toHaveLength(1);
  });

  test('is left alone once nobody reads it', async () => {
    const asked = server(delta(0, 'a'));
    const controller = new AbortController();
    controller.abort();
    const { run, outcome } = reader();
    await run(controller.signal);
    expect(asked).toEqual([]);
    expect(outcome).toEqual({});
  });
});

test('the new part of a delta', () => {
  expect(newPart({ at: 2, text: 'cd' }, 2)).toBe('cd');
  expect(newPart({ at: 0, text: 'abcd' }, 2)).toBe('cd');
  expect(newPart({ at: 0, text: 'ab' }, 2)).toBe('');
  expect(newPart({ at: 3, text: 'd' }, 2)).toBeNull();
  expect(newPart({ at: 0, text: '🎉🎉x' }, 2)).toBe('x');
});

test('waits double up to eight seconds', () => {
  expect([0, 1, 2, 3, 4, 9].map(backoff)).toEqual([500, 1000, 2000, 4000, 8000, 8000]);
});

test('the network’s return ends a wait', async () => {
  const waiting = sleepUntilBack(60_000, new AbortController().signal);
  window.dispatchEvent(new Event('online'));
  await waiting;
});

test('leaving ends a wait', async () => {
  const controller = new AbortController();
  const waiting = sleepUntilBack(60_000, controller.signal);
  controller.abort();
  await waiting;
});
