import { afterEach, expect, test, vi } from 'vitest';
import { ApiError, address, onSignedOut, request } from '$lib/api/http';

function answerWith(status: number, body: string, headers: Record<string, string> = {}) {
  const answer = vi.fn(async () => new Response(status === 204 ? null : body, { status, headers }));
  vi.stubGlobal('fetch', answer);
  return answer;
}

afterEach(() => vi.unstubAllGlobals());

test('JSON goes out and comes back', async () => {
  const answer = answerWith(200, '{"a":1}');
  expect(
    await request('POST', '/api/x', { body: { b: 2 }, query: { q: 'a b', none: null } }),
  ).toEqual({ a: 1 });
  const [path, options] = answer.mock.calls[0] as unknown as [string, RequestInit];
  expect(path).toBe('/api/x?q=a+b');
  expect(options).toMatchObject({ method: 'POST', body: '{"b":2}', credentials: 'same-origin' });
});

test('an answer without content is nothing', async () => {
  answerWith(204, '');
  expect(await request('DELETE', '/api/x')).toBeUndefined();
});

test('an error is told as the server told it', async () => {
  const body = '{"error":{"message":"Too many","type":"t","param":"p","code":"c"}}';
  answerWith(429, body, { 'Retry-After': '7' });
  const error = await request('GET', '/api/x').catch((reason: unknown) => reason);
  expect(error).toMatchObject({
    status: 429,
    message: 'Too many',
    code: 'c',
    param: 'p',
    retryAfter: 7,
  });
});

test('an error in somebody else’s words is one too', async () => {
  answerWith(502, '<html>Bad gateway</html>');
  const error = await request('GET', '/api/x').catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ApiError);
  expect(error).toMatchObject({ status: 502 });
});

test('no answer is an error of its own', async () => {
  vi.stubGlobal('fetch', vi.fn().mockRejectedValue(new TypeError('Failed to fetch')));
  const error = await request('GET', '/api/x').catch((reason: unknown) => reason);
  expect(error).toMatchObject({ status: 0, isOffline: true });
});

test('an answer that is cut off is no answer', async () => {
  answerWith(200, '{"a":');
  await expect(request('GET', '/api/x')).rejects.toMatchObject({ status: 0 });
});

test('those who are signed out are told, but not for a wrong password', async () => {
  const listener = vi.fn();
  const stop = onSignedOut(listener);
  answerWith(401, '{"error":{"message":"No"}}');
  await request('POST', '/api/account/log-in').catch(() => undefined);
  expect(listener).not.toHaveBeenCalled();
  await request('GET', '/api/x').catch(() => undefined);
  expect(listener).toHaveBeenCalledOnce();
  stop();
});

test('addresses leave out what is not given', () => {
  expect(address('/a', { b: '', c: undefined, d: 0, e: false })).toBe('/a?d=0&e=false');
});
