import { expect, test } from 'vitest';
import { newestLeaf, pathTo, siblingsOf } from '$lib/chat/tree';

const node = (id: string, parent_id: string | null, created_at: number) => ({
  id,
  parent_id,
  created_at,
});

// a ─ b ─ c
//   └ d ─ e
//       └ f
const TREE = [
  node('a', null, 1),
  node('b', 'a', 2),
  node('c', 'b', 3),
  node('d', 'a', 4),
  node('f', 'd', 6),
  node('e', 'd', 5),
];
const ids = (nodes: { id: string }[]) => nodes.map(({ id }) => id).join('');
const get = (id: string) => TREE.find((one) => one.id === id)!;

test('the path to a leaf', () => {
  expect(ids(pathTo(TREE, 'c'))).toBe('abc');
  expect(ids(pathTo(TREE, 'e'))).toBe('ade');
  expect(pathTo(TREE, null)).toEqual([]);
  expect(pathTo(TREE, 'gone')).toEqual([]);
});

test('a path in a circle ends', () => {
  expect(ids(pathTo([node('x', 'y', 1), node('y', 'x', 2)], 'x'))).toBe('yx');
});

test('siblings come by age', () => {
  expect(ids(siblingsOf(TREE, get('b')))).toBe('bd');
  expect(ids(siblingsOf(TREE, get('f')))).toBe('ef');
  expect(ids(siblingsOf(TREE, get('a')))).toBe('a');
});

test('a branch is followed to what was written last', () => {
  expect(newestLeaf(TREE, 'a')).toBe('f');
  expect(newestLeaf(TREE, 'b')).toBe('c');
  expect(newestLeaf(TREE, 'e')).toBe('e');
  expect(newestLeaf([node('x', 'y', 1), node('y', 'x', 2)], 'x')).toBe('x');
});
