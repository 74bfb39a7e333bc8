// Node's own: that of the DOM in JavaScript has no bytes.
import { File as NodeFile } from 'node:buffer';
import { describe, expect, test } from 'vitest';
import { ApiError } from '$lib/api/http';
import type { ConversationSummary } from '$lib/api/types';
import { countCodePoints, dropCodePoints } from '$lib/chat/codePoints';
import { ADVICE, troubleOf } from '$lib/chat/failures';
import { FileError, bytesOf, readTextFile, shorten } from '$lib/chat/files';
import { groupByPeriod } from '$lib/chat/periods';
import { MAIN_FIELDS, MORE_FIELDS, parseStops, withNumber, writeStops } from '$lib/chat/sampling';
import { parseTags } from '$lib/chat/tags';
import { stretchesOf, sureness, visible } from '$lib/chat/tokens';

test('characters are counted as Unicode does', () => {
  for (const text of ['', 'abc', '你好', 'a🎉b', '👩‍👩‍👧']) {
    expect(countCodePoints(text)).toBe([...text].length);
    for (let n = 0; n <= [...text].length; n++) {
      expect(dropCodePoints(text, n)).toBe([...text].slice(n).join(''));
    }
  }
});

describe('troubles', () => {
  test.each([
    [new ApiError(0, '', 'offline'), 'offline'],
    [new ApiError(400, '', 'context_length_exceeded'), 'context_length'],
    [new ApiError(402, ''), 'no_money'],
    [new ApiError(429, ''), 'rate_limited'],
    [new ApiError(503, ''), 'overloaded'],
    [new ApiError(500, ''), 'failed'],
  ] as const)('%j is %s', (error, trouble) => {
    expect(troubleOf(error)).toBe(trouble);
    expect(ADVICE[trouble]).toBeDefined();
  });
});

const File = NodeFile as unknown as typeof globalThis.File;

describe('files', () => {
  const problem = async (promise: Promise<unknown>) =>
    ((await promise.catch((error: unknown) => error)) as FileError).problem;

  test('of text are read', async () => {
    const file = new File(['Grüße'], 'a.txt');
    expect(await readTextFile(file, 100)).toEqual({ name: 'a.txt', text: 'Grüße' });
  });

  test('of other kinds are not', async () => {
    const bytes = new File([new Uint8Array([0xff, 0xfe, 0xfd])], 'a.bin');
    expect(await problem(readTextFile(bytes, 100))).toBe('binary');
    expect(await problem(readTextFile(new File(['a\0b'], 'a'), 100))).toBe('binary');
  });

  test('have room or not', async () => {
    expect(await problem(readTextFile(new File(['12345'], 'a'), 4))).toBe('large');
    expect(bytesOf([{ name: 'a', text: '你好' }])).toBe(6);
  });

  test('keep their ending when their name is cut', () => {
    expect(shorten(`${'a'.repeat(300)}.py`)).toMatch(/^a{197}\.py$/);
    expect(shorten('')).toBe('file');
  });
});

test('conversations are grouped by when they changed', () => {
  const now = new Date(2026, 5, 15, 12).getTime();
  const hour = 3_600_000;
  const one = (id: string, hours: number, is_pinned = false): ConversationSummary => ({
    id,
    title: id,
    tags: [],
    created_at: 0,
    updated_at: now - hours * hour,
    is_pinned,
  });
  const groups = groupByPeriod(
    [one('p', 900, true), one('a', 1), one('b', 13), one('c', 30), one('d', 60), one('e', 900)],
    now,
  );
  expect(
    groups.map(({ period, conversations }) => [period, ...conversations.map(({ id }) => id)]),
  ).toEqual([
    ['pinned', 'p'],
    ['today', 'a'],
    ['yesterday', 'b', 'c'],
    ['week', 'd'],
    ['older', 'e'],
  ]);
});

describe('sampling', () => {
  const field = (name: string) =>
    [...MAIN_FIELDS, ...MORE_FIELDS].find((one) => one.name === name)!;

  test('numbers are kept within their bounds', () => {
    expect(withNumber({}, field('temperature'), '0.7')).toEqual({ temperature: 0.7 });
    expect(withNumber({}, field('temperature'), '9')).toEqual({ temperature: 2 });
    expect(withNumber({}, field('top_k'), '3.6')).toEqual({ top_k: 4 });
    expect(withNumber({ seed: 1, top_p: 0.5 }, field('seed'), '')).toEqual({ top_p: 0.5 });
    expect(withNumber({ seed: 1 }, field('seed'), 'x')).toEqual({});
    expect(withNumber({ temperature: 1 }, field('temperature'), '0')).toEqual({ temperature: 0 });
  });

  test('stops come back as they were written', () => {
    const stops = ['END', '\n\n', 'a b'];
    expect(parseStops(writeStops(stops))).toEqual(stops);
    expect(parseStops('')).toEqual([]);
  });
});

test('tags are cut at commas of both kinds', () => {
  expect(parseTags(' a, #b，c、a,, ')).toEqual(['a', 'b', 'c']);
  expect(parseTags(Array.from({ length: 30 }, (_, i) => i).join())).toHaveLength(20);
});

test('tokens have five degrees of sureness', () => {
  expect([0.99, 0.8, 0.5, 0.2, 0.01].map((p) => sureness(Math.log(p)))).toEqual([4, 3, 2, 1, 0]);
  expect(visible(' a\n\t')).toBe('·a⏎⇥');
  expect(visible('')).toBe('∅');
});

describe('tokens', () => {
  const shown = (...texts: string[]) =>
    stretchesOf(texts.map((text) => ({ text, logprob: 0, top: [] }))).map(({ isCode, parts }) => [
      isCode ? 'code' : 'prose',
      ...parts.map(({ index, text, isFence }) => `${index}${isFence ? '`' : ':'}${text}`),
    ]);

  test('are cut where code begins and ends', () => {
    expect(shown('So:\n', '```', 'py\nx', ' = 1', '\n```\nDone', '.')).toEqual([
      ['prose', '0:So:\n'],
      ['code', '1````', '2`py\n', '2:x', '3: = 1', '4:\n', '4````\n'],
      ['prose', '4:Done', '5:.'],
    ]);
  });

  test.each([
    ['in a line of prose', ['a ``` b\n', 'c'], [['prose', '0:a ``` b\n', '1:c']]],
    ['of another kind within code', ['~~~\n```\n~~~'], [['code', '0`~~~\n', '0:```\n', '0`~~~']]],
    ['that nothing closes', ['```\n', '', 'x'], [['code', '0````\n', '2:x']]],
    [
      'one behind another',
      ['```\n```\n```'],
      [
        ['code', '0````\n', '0````\n'],
        ['code', '0````'],
      ],
    ],
    ['of nothing', [], []],
  ])('know a fence %s', (_, texts, stretches) => {
    expect(shown(...texts)).toEqual(stretches);
  });
});
