import { expect, test } from 'vitest';
import { languageOf, toHtml } from '$lib/markdown/lexer';

const math = (source: string) =>
  [...toHtml(source).matchAll(/data-tex="(\w+)">([^<]*)</g)].map(
    ([, kind, tex]) => `${kind} ${tex}`,
  );

test.each([
  ['$x$', ['inline x']],
  ['a $x+1$ b $y$', ['inline x+1', 'inline y']],
  ['\\(x\\)', ['inline x']],
  ['$$x$$', ['display x']],
  ['\\[x\\]', ['display x']],
  ['text $$x$$ text', ['display x']],
  ['$$\na\n\nb\n$$', ['display a\n\nb']],
  ['It costs $5 and $6', []],
  ['$5-$10', []],
  ['$ x $', []],
  ['$x$5', []],
  ['`$x$`', []],
  ['\\$x\\$', []],
  ['$a_1 b_2$ and $c_3$', ['inline a_1 b_2', 'inline c_3']],
  ['$\\alpha$', ['inline \\alpha']],
  ['| a |\n|---|\n| $x$ |', ['inline x']],
  ['**$x$**', ['inline x']],
])('%j has the formulas %j', (source, found) => {
  expect(math(source)).toEqual(found);
});

test.each([
  ['python', 'python'],
  ['Python title="x"', 'python'],
  ['c++', 'c++'],
  [undefined, ''],
  ['<b>', ''],
  ['a'.repeat(31), ''],
])('the language of %j is %j', (info, language) => {
  expect(languageOf(info)).toBe(language);
});
