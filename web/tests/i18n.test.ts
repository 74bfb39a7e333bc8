import { describe, expect, test } from 'vitest';
import { en } from '$lib/i18n/en';
import { chat as enChat } from '$lib/i18n/en/chat';
import { docs as enDocs } from '$lib/i18n/en/docs';
import { platform as enPlatform } from '$lib/i18n/en/platform';
import { shell as enShell } from '$lib/i18n/en/shell';
import { fillIn, setLocale, systemLocale, t, tn, word } from '$lib/i18n/i18n.svelte';
import { zh } from '$lib/i18n/zh';

const slots = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((found) => found[1]).sort();

describe('the catalogues', () => {
  test('do not take each other’s keys', () => {
    const keys = [enShell, enChat, enPlatform, enDocs].flatMap((part) => Object.keys(part));
    expect(keys.filter((key, i) => keys.indexOf(key) !== i)).toEqual([]);
  });

  test('have the same keys', () => {
    expect(Object.keys(zh).sort()).toEqual(Object.keys(en).sort());
  });

  test('have no empty text', () => {
    const texts = [...Object.values(en), ...Object.values(zh)];
    expect(texts.filter((text) => text.trim() === '')).toEqual([]);
  });

  test.each(Object.keys(en) as (keyof typeof en)[])('%s has the same values', (key) => {
    expect(slots(zh[key])).toEqual(slots(en[key]));
  });

  test('have both forms of every plural', () => {
    const stems = (form: string) =>
      Object.keys(en)
        .filter((key) => key.endsWith(form))
        .map((key) => key.slice(0, -form.length));
    expect(stems('.one')).toEqual(stems('.other'));
  });
});

test('values are filled in, and unknown ones stay', () => {
  expect(fillIn('{a} and {b}', { a: 1 })).toBe('1 and {b}');
  expect(fillIn('{constructor}', {})).toBe('{constructor}');
  expect(fillIn('{a}', { a: '{b}', b: 'x' })).toBe('{b}');
});

test('a word without a text stays as it is', () => {
  expect(word('finish', 'stop')).toBe('the model');
  expect(word('finish', 'toString')).toBe('toString');
  expect(word('origin', 'charge', { model: 'pocket' })).toBe('Request to pocket');
});

test('the language can be changed', async () => {
  expect(t('retry')).toBe('Try again');
  expect(tn('list.found', 1)).toBe('1 chat found');
  expect(tn('list.found', 1200)).toBe('1,200 chats found');
  await setLocale('zh');
  expect(t('retry')).toBe('重试');
  expect(tn('list.found', 1)).toBe('找到 1 个对话');
  expect(document.documentElement.lang).toBe('zh-CN');
  await setLocale('en');
});

test('the first language that we have is taken', () => {
  expect(systemLocale(['fr', 'zh-TW', 'en'])).toBe('zh');
  expect(systemLocale(['en-GB', 'zh'])).toBe('en');
  expect(systemLocale(['fr'])).toBe('en');
});
