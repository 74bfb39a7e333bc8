import { expect, test } from 'vitest';
import { MOST_CHARACTERS, highlight, languageName, scopeClass } from '$lib/markdown/highlight';

test('pieces make up the code', async () => {
  const code = 'def f(x: int) -> str:\n    return f"{x}<b>"  # done\n';
  const pieces = await highlight(code, 'py');
  expect(pieces?.map(({ text }) => text).join('')).toBe(code);
  expect(pieces?.find(({ text }) => text === 'def')?.scopes).toEqual(['keyword']);
});

test.each(['html', 'markdown', 'php', 'tsx', 'c++', 'sh', 'yaml'])(
  '%s is known',
  async (language) => {
    const code = '<p class="a">text</p>\n# x\n';
    const pieces = await highlight(code, language);
    expect(pieces?.map(({ text }) => text).join('')).toBe(code);
  },
);

test('languages in languages are coloured', async () => {
  const pieces = await highlight('<script>let a = 1;</script>', 'html');
  expect(pieces?.map(({ text }) => text).join('')).toBe('<script>let a = 1;</script>');
});

test('what is not known, or very long, stays plain', async () => {
  expect(await highlight('x', 'klingon')).toBeNull();
  expect(await highlight('x', 'constructor')).toBeNull();
  expect(await highlight('x'.repeat(MOST_CHARACTERS + 1), 'py')).toBeNull();
  expect(languageName('__proto__')).toBeNull();
});

test('classes are words', () => {
  expect(scopeClass('title.function')).toBe('hl-title');
  expect(scopeClass('language:xml')).toBe('hl-sub');
  expect(scopeClass('x"><b>')).toBe('hl-xb');
});
