import { expect, test } from 'vitest';
import { en } from '$lib/i18n/en';
import { zh } from '$lib/i18n/zh';

test('both languages have the same texts', () => {
  expect(Object.keys(zh).sort()).toEqual(Object.keys(en).sort());
});
