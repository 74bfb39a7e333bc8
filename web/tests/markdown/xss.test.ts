import { flushSync, mount, tick, unmount } from 'svelte';
import { afterEach, describe, expect, test, vi } from 'vitest';
import Markdown from '$lib/markdown/Markdown.svelte';
import { tameHtml } from '$lib/markdown/lexer';
import { isSafeLink, sanitize } from '$lib/markdown/sanitize';
import { renderTex } from '$lib/markdown/tex';
import { makeStreaming } from './streaming.svelte';
import { XSS, problemsOf } from './xss';

const mounted: Record<string, unknown>[] = [];

function show(source: string): HTMLElement {
  const target = document.createElement('div');
  document.body.append(target);
  mounted.push(mount(Markdown, { target, props: { source } }));
  flushSync();
  return target;
}

afterEach(async () => {
  for (const one of mounted.splice(0)) await unmount(one);
  document.body.replaceChildren();
});

describe('the corpus', () => {
  test('is large', () => expect(XSS.length).toBeGreaterThanOrEqual(150));

  test.each(XSS)('%j is shown without harm', async (source) => {
    const alert = vi.spyOn(window, 'alert').mockImplementation(() => undefined);
    const target = show(source);
    await tick();
    expect(problemsOf(target)).toEqual([]);
    expect(alert).not.toHaveBeenCalled();
  });

  test.each(XSS)('%j is harmless at each moment as it streams', (source) => {
    const target = document.createElement('div');
    document.body.append(target);
    const props = makeStreaming();
    mounted.push(mount(Markdown, { target, props }));
    // Every cut of a short tag; longer texts in some pieces, for a DOM in JavaScript is slow.
    const isTag = source.startsWith('<') && source.length < 45;
    const step = isTag ? 1 : Math.ceil(source.length / 8);
    for (let at = 1; at <= source.length; at += step) {
      props.source = source.slice(0, at);
      flushSync();
      expect(problemsOf(target)).toEqual([]);
    }
    props.isStreaming = false;
    flushSync();
    expect(problemsOf(target)).toEqual([]);
  });

  test.each(XSS)('%j after a text that the reader knows', (source) => {
    expect(problemsOf(show(`Some **text**.\n\n- a list\n\n${source}\n\nand more`))).toEqual([]);
  });
});

test('the oracle sees what is wrong', () => {
  const target = document.createElement('div');
  const link = document.createElement('a');
  link.setAttribute('href', 'javascript:alert(1)');
  link.setAttribute('onclick', 'alert(1)');
  target.append(link, document.createElement('img'));
  expect(problemsOf(target)).toHaveLength(4);
});

test('a script that is explained can be read', () => {
  expect(show('Use <script>alert(1)</script> with care').textContent).toContain(
    '<script>alert(1)</script>',
  );
});

test('harmless tags do what they say', () => {
  const target = show('H<sub>2</sub>O, press <kbd>Enter</kbd>, line<br>break');
  expect(target.querySelector('sub')?.textContent).toBe('2');
  expect(target.querySelector('kbd')?.textContent).toBe('Enter');
  expect(target.querySelector('br')).not.toBeNull();
});

test('links lead out, in a page of their own', () => {
  const link = show('[x](https://example.com/a?b=c)').querySelector('a')!;
  expect(link.href).toBe('https://example.com/a?b=c');
  expect(link.target).toBe('_blank');
  expect(link.rel).toBe('noopener noreferrer nofollow');
});

test('an image is named and not fetched', () => {
  const target = show('![A cat](https://example.com/cat.png)');
  expect(target.querySelector('img')).toBeNull();
  expect(target.textContent).toContain('A cat');
  expect(target.querySelector('a')?.href).toBe('https://example.com/cat.png');
});

test('a fence’s language is a word or nothing', () => {
  expect(show('```py title="x"\na\n```').querySelector('.head span')?.textContent).toBe('py');
  expect(show('```"><b>\na\n```').querySelector('.head span')?.textContent).toBe('text');
});

test.each(['https://a.example', 'http://a.example/x', 'mailto:a@b.example'])(
  '%s is safe',
  (address) => expect(isSafeLink(address)).toBe(true),
);

test.each([
  'javascript:1',
  'data:text/html,x',
  '/api',
  'a',
  '',
  ' javascript:1',
  'ftp://a',
  '//a.example',
])('%j is not safe', (address) => expect(isSafeLink(address)).toBe(false));

test('HTML that got past the renderer is stopped by the sanitiser', () => {
  const root = document.createElement('div');
  for (const html of XSS) root.append(sanitize(html));
  expect(problemsOf(root)).toEqual([]);
});

test('tamed HTML is text', () => {
  expect(tameHtml('<b>x</b><b onclick=1>y</b>')).toBe('<b>x</b>&lt;b onclick=1&gt;y</b>');
});

describe('formulas', () => {
  test.each(XSS.filter((source) => source.includes('\\')))(
    '%j draws nothing harmful',
    async (source) => {
      const node = document.createElement('span');
      const tex = source.replace(/^\$+\n?|\n?\$+$|^\\[([]|\\[)\]]$/g, '');
      await renderTex(tex, false, node);
      expect(problemsOf(node)).toEqual([]);
    },
  );

  test('that are wrong stay as they were written', async () => {
    const node = document.createElement('span');
    await renderTex('\\frac{<img src=x onerror=alert(1)>', true, node);
    expect(node.textContent).toBe('\\frac{<img src=x onerror=alert(1)>');
    expect(node.children).toHaveLength(0);
    expect(node.classList).toContain('tex-source');
  });

  test('that are right are drawn', async () => {
    const node = document.createElement('span');
    await renderTex('x^2', false, node);
    expect(node.querySelector('.katex')).not.toBeNull();
    expect(node.querySelector('math')).not.toBeNull();
  });
});
