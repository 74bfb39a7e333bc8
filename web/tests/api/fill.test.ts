import { expect, test, vi } from 'vitest';
import { fill } from '$lib/api/chat';
import { ApiError } from '$lib/api/http';
import { troubleOf } from '$lib/chat/failures';

const DELTA = 'event: delta\ndata: {"text":"x = 1"}\n\n';
const USAGE = { prompt_tokens: 4, cached_tokens: 0, completion_tokens: 3, seconds: 0.1 };

/** What the page gets of a stream: the text and the end, or the error. */
async function filled(stream: string) {
  vi.spyOn(globalThis, 'fetch').mockResolvedValue(new Response(stream));
  let text = '';
  const end = await fill(
    { model: 'm', prefix: '', suffix: '' },
    (piece) => (text += piece),
    new AbortController().signal,
  ).catch((error: unknown) => error);
  return { text, end };
}

test('a gap is filled', async () => {
  const done = `event: done\ndata: ${JSON.stringify({ usage: USAGE, finish: 'stop' })}\n\n`;
  expect(await filled(DELTA + done)).toEqual({
    text: 'x = 1',
    end: { usage: USAGE, finish: 'stop' },
  });
});

test.each([
  ['overloaded_error', 'overloaded', 'overloaded'],
  ['overloaded_error', 'engine_unavailable', 'engine_lost'],
  ['insufficient_balance_error', 'insufficient_balance_error', 'no_money'],
  ['server_error', 'numerical_error', 'failed'],
])('a stream that ends with %s, %s is an error', async (type, code, trouble) => {
  const body = { error: { message: 'It went wrong', type, param: null, code } };
  const { text, end } = await filled(`${DELTA}event: error\ndata: ${JSON.stringify(body)}\n\n`);
  expect(text).toBe('x = 1');
  expect(end).toBeInstanceOf(ApiError);
  expect((end as ApiError).message).toBe('It went wrong');
  expect(troubleOf(end as ApiError)).toBe(trouble);
});

test('a stream that only ends was cut off', async () => {
  const { end } = await filled(DELTA);
  expect((end as ApiError).isOffline).toBe(true);
});
