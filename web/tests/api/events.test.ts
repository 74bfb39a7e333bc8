import { expect, test, vi } from 'vitest';
import { EventParser, readEvents } from '$lib/api/events';

const TEXT =
  ': keep-alive\n\nevent: delta\ndata: {"at":0,"text":"a\\nb"}\n\nevent: delta\r\ndata: two\r\ndata: lines\r\n\r\ndata:bare\n\nevent: done\ndata: {}\n\n';
const EVENTS = [
  { name: 'delta', data: '{"at":0,"text":"a\\nb"}' },
  { name: 'delta', data: 'two\nlines' },
  { name: 'message', data: 'bare' },
  { name: 'done', data: '{}' },
];

test('events are whole wherever the stream is cut', () => {
  for (let at = 0; at <= TEXT.length; at++) {
    const parser = new EventParser();
    expect([...parser.push(TEXT.slice(0, at)), ...parser.push(TEXT.slice(at))]).toEqual(EVENTS);
  }
});

test('a character at a time', () => {
  const parser = new EventParser();
  expect([...TEXT].flatMap((character) => parser.push(character))).toEqual(EVENTS);
});

test('an event that has not ended is none', () => {
  expect(new EventParser().push('event: delta\ndata: x\n')).toEqual([]);
});

test('characters are whole wherever their bytes are cut', async () => {
  const bytes = new TextEncoder().encode('data: 你好 🎉\n\n');
  for (let at = 1; at < bytes.length; at++) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(bytes.slice(0, at));
        controller.enqueue(bytes.slice(at));
        controller.close();
      },
    });
    const found = [];
    for await (const { data } of readEvents(new Response(body as never))) found.push(data);
    expect(found).toEqual(['你好 🎉']);
  }
});

test('a connection that falls silent is given up', async () => {
  vi.useFakeTimers();
  const body = new ReadableStream<Uint8Array>({ start: () => undefined });
  const reading = readEvents(new Response(body as never), 1000).next();
  const outcome = expect(reading).rejects.toThrow('silent');
  await vi.advanceTimersByTimeAsync(1001);
  await outcome;
  vi.useRealTimers();
});
