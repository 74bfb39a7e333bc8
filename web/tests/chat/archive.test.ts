import { describe, expect, test } from 'vitest';
import { addAll, contentOf, group, GROUP_BYTES, reasonOf } from '$lib/chat/archive';
import { ApiError } from '$lib/api/http';
import type { ConversationSummary } from '$lib/api/types';

const chat = (title: string, size = 0) => ({ title, text: 'x'.repeat(size) });
type Chat = ReturnType<typeof chat>;
const titles = (some: unknown[]) => some.map((one) => (one as Chat).title);
const bytes = (some: unknown[]) =>
  new TextEncoder().encode(JSON.stringify({ conversations: some })).length;

describe('what a file has', () => {
  test('is told by its text, whatever it is called', () => {
    expect(contentOf('{"conversations": []}')).toEqual({ conversations: [] });
    const head = '<!-- dsv2 chat {"tags": ["a"]} -->';
    for (const text of [`# A\n\n${head}\n`, `# A\r\n\r\n${head}\r\n`, '<!-- dsv2-12 chat -->']) {
      expect(contentOf(text)).toEqual({ conversations: [{ markdown: text }] });
    }
    for (const text of ['', '# A\n\n## User\n\nHi', ` ${head}`, '<!-- dsv2 user -->', '{']) {
      expect(contentOf(text)).toBeUndefined();
    }
  });
});

describe('a file is cut', () => {
  const inGroups = (all: unknown[], most: number) =>
    group(all, most).map((entries) => entries.map((entry) => entry.title));

  test('between conversations, in their order', () => {
    expect(inGroups([], 100)).toEqual([]);
    const all = [chat('a', 40), chat('b', 40), chat('c', 40), chat('d', 900), chat('e')];
    expect(inGroups(all, 150)).toEqual([['a', 'b'], ['c'], ['d'], ['e']]);
  });

  test('by bytes, not by characters', () => {
    const all = ['你', '好', '吗'].map((title) => ({ title, text: '字'.repeat(20) }));
    const one = bytes([all[0]]) - bytes([]) + 1;
    expect(inGroups(all, 2 * one)).toEqual([['你', '好'], ['吗']]);
    expect(inGroups(all, 2 * one - 1)).toEqual([['你'], ['好'], ['吗']]);
  });

  test('into requests that stay within the bound', () => {
    const all = Array.from({ length: 400 }, (_, i) => chat(`${i}`, (i * 7919) % 20_000));
    const groups = group(all).map((entries) => entries.map((entry) => entry.value));
    expect(groups.flat()).toEqual(all);
    expect(groups.length).toBeLessThan(8);
    for (const some of groups) expect(bytes(some)).toBeLessThan(GROUP_BYTES + 50);
  });

  test('whatever is in it', () => {
    expect(inGroups([null, 3, { title: 4 }, { title: 'a' }], 1000)).toEqual([['', '', '', 'a']]);
    const written = [{ markdown: '# My chat\n\n# x' }, { markdown: '#' }];
    expect(inGroups(written, 1000)).toEqual([['My chat', '']]);
  });
});

/** A server that adds all or none, names the first that is bad, and bounds bodies. */
function server(most = Infinity) {
  const kept: string[] = [];
  const asked: string[][] = [];
  const add = async (some: unknown[]) => {
    asked.push(titles(some));
    if (bytes(some) > most) throw new ApiError(413, 'too large');
    const place = titles(some).findIndex((title) => title.startsWith('bad'));
    if (place >= 0) {
      const param = `conversations[${place}].title`;
      throw new ApiError(422, `${param} is not allowed`, null, param);
    }
    if (titles(some).includes('deep')) throw new ApiError(400, 'too deep', 'invalid_json');
    if (titles(some).includes('full')) throw new ApiError(409, 'there are 20000');
    if (titles(some).includes('odd')) throw new ApiError(400, 'version: no', null, 'version');
    kept.push(...titles(some));
    return titles(some).map((title) => ({ id: title, title }) as ConversationSummary);
  };
  return { kept, asked, add };
}

describe('an archive', () => {
  test('comes in whole, and says how far it is', async () => {
    const all = Array.from({ length: 9 }, (_, i) => chat(`${i}`, GROUP_BYTES / 3));
    const { kept, add } = server();
    const seen: number[] = [];
    const outcome = await addAll(all, { add, onProgress: (n) => seen.push(n) });
    expect(kept).toEqual(titles(all));
    expect(titles(outcome.added)).toEqual(kept);
    expect(outcome).toMatchObject({ refused: [], left: 0, cause: null });
    expect(seen).toEqual([2, 4, 6, 8, 9]);
  });

  test('comes in without the conversations that the server names', async () => {
    const all = ['a', 'bad 1', 'b', 'bad 2', 'c'].map((title) => chat(title));
    const { kept, asked, add } = server();
    const { refused, left } = await addAll(all, { add });
    expect(kept).toEqual(['a', 'b', 'c']);
    expect(refused.map(({ entry, error }) => [entry.title, reasonOf(error)])).toEqual([
      ['bad 1', 'title is not allowed'],
      ['bad 2', 'title is not allowed'],
    ]);
    expect(left).toBe(0);
    expect(asked).toHaveLength(3);
  });

  test('is cut further for a server that takes less', async () => {
    const all = Array.from({ length: 8 }, (_, i) => chat(`${i}`, i === 5 ? 5000 : 1000));
    const { kept, add } = server(3000);
    const { refused } = await addAll(all, { add });
    expect(kept).toEqual(['0', '1', '2', '3', '4', '6', '7']);
    expect(refused).toHaveLength(1);
    expect(refused[0]).toMatchObject({ entry: { title: '5' }, error: { status: 413 } });
    expect(refused[0]!.entry.bytes).toBeGreaterThan(5000);
  });

  test('is searched for what the server does not name', async () => {
    const all = ['a', 'b', 'deep', 'c'].map((title) => chat(title));
    const { kept, add } = server();
    const { refused } = await addAll(all, { add });
    expect(kept).toEqual(['a', 'b', 'c']);
    expect(refused.map(({ entry }) => entry.title)).toEqual(['deep']);
  });

  test.each(['full', 'odd'])('ends with what is wrong with no conversation: %s', async (title) => {
    const all = [chat('a', GROUP_BYTES), chat(title, GROUP_BYTES), chat('b'), chat('c')];
    const { kept, asked, add } = server();
    const { added, left, cause, refused } = await addAll(all, { add });
    expect(kept).toEqual(['a']);
    expect([added.length, refused.length, left]).toEqual([1, 0, 3]);
    expect(cause).toBeInstanceOf(ApiError);
    expect(asked).toHaveLength(2);
  });

  test('can be called off', async () => {
    const all = Array.from({ length: 5 }, (_, i) => chat(`${i}`, GROUP_BYTES));
    const { kept, add } = server();
    let settled = 0;
    const { left, cause } = await addAll(all, {
      add,
      onProgress: (n) => (settled = n),
      isOver: () => settled === 2,
    });
    expect(kept).toEqual(['0', '1']);
    expect([left, cause]).toEqual([3, null]);
  });

  test('passes on what is no answer of the server', async () => {
    const add = () => Promise.reject(new TypeError('a mistake of ours'));
    await expect(addAll([chat('a')], { add })).rejects.toThrow('a mistake of ours');
  });
});
