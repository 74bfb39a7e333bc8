import { describe, expect, test } from 'vitest';
import { BlockStream, isFenceClosed, splitBlocks, type Block } from '$lib/markdown/blocks';
import { CORPUS } from './corpus';

/** The blocks after the text came in pieces that end at the given places. */
function streamed(text: string, ends: number[]): Block[] {
  const stream = new BlockStream();
  for (const end of ends) stream.update(text.slice(0, end), true);
  stream.update(text, false);
  return stream.blocks;
}

const every = (n: number, step = 1) =>
  Array.from({ length: Math.ceil(n / step) }, (_, i) => i * step);

describe.each(Object.entries(CORPUS))('%s', (_, text) => {
  const whole = splitBlocks(text);

  test('comes out the same a character at a time', () => {
    expect(streamed(text, every(text.length))).toEqual(whole);
  });

  test('comes out the same in two pieces, cut anywhere', () => {
    for (const at of every(text.length)) expect(streamed(text, [at])).toEqual(whole);
  });

  test('comes out the same in pieces of any size', () => {
    for (const step of [2, 3, 5, 7, 11]) {
      expect(streamed(text, every(text.length, step))).toEqual(whole);
    }
  });
});

test('all of the corpus at once comes out the same a character at a time', () => {
  const text = Object.values(CORPUS).join('\n\n');
  expect(streamed(text, every(text.length, 3))).toEqual(splitBlocks(text));
});

test('blocks that have not changed are the same objects', () => {
  const stream = new BlockStream();
  stream.update('# One\n\nTwo\n\nThree', true);
  const before = stream.blocks;
  stream.update('# One\n\nTwo\n\nThree and more\n\nFour', true);
  const after = stream.blocks;
  expect(after[0]).toBe(before[0]);
  expect(after[1]).toBe(before[1]);
  expect(after[2]).not.toBe(before[2]);
});

test('a long text is not read from its beginning again', () => {
  const stream = new BlockStream();
  let text = '';
  for (let i = 0; i < 2000; i++) {
    text += `Paragraph ${i} with some **text** in it.\n\n`;
    stream.update(text, true);
  }
  expect(stream.blocks).toHaveLength(2000);
});

test('another text begins anew', () => {
  const stream = new BlockStream();
  stream.update('# A\n\nb\n\nc\n\nd', true);
  stream.update('other', false);
  expect(stream.blocks).toEqual([{ kind: 'prose', raw: 'other' }]);
  expect(stream.definitions).toBe('');
});

test('definitions hold for the blocks before them', () => {
  const stream = new BlockStream();
  stream.update(CORPUS['references']!, false);
  stream.update(`${CORPUS['references']!}\n\na\n\nb\n\nc\n`, false);
  expect(stream.definitions).toContain('[p]: https://example.com/p');
  expect(stream.definitions).toContain('[other]: https://example.com/o');
});

test('code that has not ended is code', () => {
  const stream = new BlockStream();
  stream.update('```py\na = 1\n', true);
  expect(stream.blocks).toMatchObject([
    { kind: 'code', language: 'py', text: 'a = 1', isClosed: false },
  ]);
});

test('math that has not ended is math only while it streams', () => {
  const stream = new BlockStream();
  stream.update('$$\na + b', true);
  expect(stream.blocks).toMatchObject([{ kind: 'math', tex: 'a + b', isClosed: false }]);
  stream.update('$$\na + b', false);
  expect(stream.blocks).toMatchObject([{ kind: 'prose' }]);
});

test.each([
  ['```\na\n```', true],
  ['```\na\n``', false],
  ['````\na\n```', false],
  ['```\na\n~~~', false],
  ['```', false],
  ['~~~x\na\n~~~~\n', true],
])('a fence is closed by its like: %j', (raw, isClosed) => {
  expect(isFenceClosed(raw)).toBe(isClosed);
});
