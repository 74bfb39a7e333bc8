import { flushSync, mount, unmount } from 'svelte';
import { afterEach, expect, test } from 'vitest';
import Markdown from '$lib/markdown/Markdown.svelte';
import { CORPUS } from './corpus';
import { makeStreaming } from './streaming.svelte';

const mounted: Record<string, unknown>[] = [];

function stream() {
  const target = document.createElement('div');
  document.body.append(target);
  const props = makeStreaming();
  mounted.push(mount(Markdown, { target, props }));
  const say = (source: string, isStreaming = true) => {
    props.source = source;
    props.isStreaming = isStreaming;
    flushSync();
  };
  return { target, say };
}

/** What is shown, without ids that differ from one component to the next. */
const shown = (node: Element) => node.innerHTML.replace(/<!--.*?-->/g, '');

afterEach(async () => {
  for (const one of mounted.splice(0)) await unmount(one);
  document.body.replaceChildren();
});

test.each(Object.entries(CORPUS))('%s looks the same streamed as whole', (_, text) => {
  const streamed = stream();
  for (let at = 1; at < text.length; at += 1) streamed.say(text.slice(0, at));
  streamed.say(text, false);
  const whole = stream();
  whole.say(text, false);
  expect(shown(streamed.target)).toBe(shown(whole.target));
});

test('only the last block is drawn again', () => {
  const { target, say } = stream();
  say('# One\n\nTwo\n\nThr');
  const [heading, second] = [target.querySelector('h1'), target.querySelectorAll('p')[0]];
  let changes = 0;
  const observer = new MutationObserver((records) => (changes += records.length));
  observer.observe(heading!.parentElement!, {
    childList: true,
    subtree: true,
    characterData: true,
  });
  say('# One\n\nTwo\n\nThree\n\nFour');
  changes += observer.takeRecords().length;
  expect(target.querySelector('h1')).toBe(heading);
  expect(target.querySelectorAll('p')[0]).toBe(second);
  expect(changes).toBe(0);
});

test('in a growing list the items that are there stay the same nodes', () => {
  const { target, say } = stream();
  say('- one\n- two\n- thr');
  const items = [...target.querySelectorAll('li')];
  say('- one\n- two\n- three\n- four');
  const after = [...target.querySelectorAll('li')];
  expect(after.slice(0, 3)).toEqual(items);
  expect(after[0]).toBe(items[0]);
  expect(after.map((item) => item.textContent)).toEqual(['one', 'two', 'three', 'four']);
});

test('code in a list grows in its place', () => {
  const { target, say } = stream();
  say('- a\n\n  ```py\n  x = 1');
  const code = target.querySelector('.code');
  say('- a\n\n  ```py\n  x = 1\n  y = 2\n');
  expect(target.querySelector('.code')).toBe(code);
  expect(target.querySelector('code')?.textContent).toBe('x = 1\ny = 2');
});

test('bold text is bold before its end has come', () => {
  const { target, say } = stream();
  say('This is **imp');
  expect(target.querySelector('strong')?.textContent).toBe('imp');
});

test('a table is a table from its first row on', () => {
  const { target, say } = stream();
  say('| a | b |');
  expect(target.querySelectorAll('th')).toHaveLength(2);
  say('| a | b |\n|---|---|\n| 1 | 2');
  expect(target.querySelectorAll('td')).toHaveLength(2);
});

test('a link to a reference is one once the reference is known', () => {
  const { target, say } = stream();
  say(
    'See [the page][p].\n\nMore.\n\nAnd more.\n\n[p]: https://example.com/\n\nEnd.\n\nReally.',
    false,
  );
  expect(target.querySelector('a')?.href).toBe('https://example.com/');
});
