import { describe, expect, test } from 'vitest';
import { repair } from '$lib/markdown/repair';
import { CORPUS } from './corpus';

test.each([
  ['plain text', 'plain text'],
  ['some **bold', 'some **bold**'],
  ['some **bold*', 'some **bold**'],
  ['some **', 'some '],
  ['some *', 'some '],
  ['some *word', 'some *word*'],
  ['some ***both', 'some ***both***'],
  ['**a *b', '**a *b***'],
  ['~~gone', '~~gone~~'],
  ['use `code', 'use `code`'],
  ['use `', 'use '],
  ['use ``a ` b', 'use ``a ` b``'],
  ['**use `code', '**use `code`**'],
  ['snake_case_name', 'snake_case_name'],
  ['2 * 3 * 4', '2 * 3 * 4'],
  ['done **bold** and `code`', 'done **bold** and `code`'],
  ['a [link](https://exam', 'a link'],
  ['a [link', 'a link'],
  ['a [link]', 'a [link]'],
  ['a [link](https://example.com)', 'a [link](https://example.com)'],
  ['see ![alt](https://e', 'see '],
  ['see ![al', 'see '],
  ['see !', 'see !'],
  ['text <scr', 'text '],
  ['text <b>bold</', 'text <b>bold'],
  ['a < b', 'a < b'],
  ['one\n\n**two', 'one\n\n**two**'],
  ['**one\n\ntwo', '**one\n\ntwo'],
  ['text\n-', 'text'],
  ['text\n=', 'text'],
  ['- item\n-', '- item'],
  ['- item\n- [', '- item'],
  ['1. one\n2', '1. one'],
  ['text\n#', 'text'],
  ['text\n```', 'text\n```'],
  ['text\n``', 'text'],
  ['42', '42'],
  ['escaped \\*star', 'escaped \\*star'],
])('%j becomes %j', (raw, whole) => {
  expect(repair(raw)).toBe(whole);
});

describe('a table', () => {
  test('is one from its first row on', () => {
    expect(repair('| a | b |')).toBe('| a | b |\n| --- | --- |');
    expect(repair('| a | b')).toBe('| a | b\n| --- | --- |');
  });

  test('keeps its rule once that is whole', () => {
    expect(repair('| a | b |\n|--')).toBe('| a | b |\n| --- | --- |');
    expect(repair('| a | b |\n|:--|--:|')).toBe('| a | b |\n|:--|--:|');
  });

  test('keeps its rows', () => {
    expect(repair('| a |\n|---|\n| 1 |\n| **2')).toBe('| a |\n|---|\n| 1 |\n| **2**');
  });
});

test.each(Object.entries(CORPUS))('%s, whole or cut anywhere, never throws', (_, text) => {
  for (let at = 0; at <= text.length; at++) expect(typeof repair(text.slice(0, at))).toBe('string');
});
