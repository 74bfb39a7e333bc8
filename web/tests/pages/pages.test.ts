import { describe, expect, test } from 'vitest';
import {
  date,
  daysBetween,
  megabytes,
  money,
  parseMoney,
  percent,
  rate,
  short,
  utcDay,
} from '$lib/format';
import { isOurs, match } from '$lib/router/match';
import { actionOf, keysOf, SHORTCUTS } from '$lib/shortcuts';
import { findPage } from '../../src/routes';
import { toForm, toLimits } from '../../src/views/account/keyLimits';
import { factsOf, subjectOf } from '../../src/views/admin/auditing';
import { changeOf, reasonOf } from '../../src/views/account/transfers';
import { readSetting, writeSetting } from '../../src/views/admin/settings';
import { EXAMPLES } from '../../src/views/fill/examples';
import { cutPieces } from '../../src/views/fill/pieces';

describe('the router', () => {
  test.each([
    ['/', '/', {}],
    ['/c/:id', '/c/abc', { id: 'abc' }],
    ['/c/:id', '/c/a%2Fb/', { id: 'a/b' }],
    ['/c/:id', '/c', null],
    ['/c/:id', '/c/a/b', null],
    ['/c/:id', '/c/%', null],
    ['/account', '/admin', null],
  ])('%s fits %s: %j', (pattern, path, params) => {
    expect(match(pattern, path)).toEqual(params);
  });

  test('knows every page', () => {
    expect(findPage('/admin/users/u1')?.params).toEqual({ id: 'u1' });
    expect(findPage('/c/x')?.page.section).toBe('chat');
    expect(findPage('/nowhere')).toBeNull();
  });

  test('takes plain clicks on this site’s pages', () => {
    const link = document.createElement('a');
    const click = (init: MouseEventInit = {}) =>
      isOurs(new MouseEvent('click', init), link, location.origin);
    link.href = '/account';
    expect(click()).toBe(true);
    expect(click({ ctrlKey: true })).toBe(false);
    expect(click({ button: 1 })).toBe(false);
    link.href = '/api/chat/export';
    expect(click()).toBe(false);
    link.href = 'https://example.com/';
    expect(click()).toBe(false);
    link.href = '/x';
    link.target = '_blank';
    expect(click()).toBe(false);
  });
});

describe('shortcuts', () => {
  const press = (key: string, init: KeyboardEventInit = {}, target?: HTMLElement) => {
    const event = new KeyboardEvent('keydown', { key, bubbles: true, ...init });
    (target ?? document.body).dispatchEvent(event);
    return event;
  };

  test('are found by their keys', () => {
    expect(actionOf(press('k', { ctrlKey: true }), false)).toBe('search');
    expect(actionOf(press('k', { metaKey: true }), true)).toBe('search');
    expect(actionOf(press('k', { ctrlKey: true }), true)).toBeNull();
    expect(actionOf(press('O', { ctrlKey: true, shiftKey: true }), false)).toBe('new');
    expect(actionOf(press('o', { ctrlKey: true }), false)).toBeNull();
    expect(actionOf(press('?', { shiftKey: true }), false)).toBe('help');
    expect(actionOf(press('?', { shiftKey: true, altKey: true }), false)).toBeNull();
  });

  test('without a modifier are letters where one types', () => {
    const field = document.createElement('textarea');
    document.body.append(field);
    expect(actionOf(press('/', {}, field), false)).toBeNull();
    expect(actionOf(press('k', { ctrlKey: true }, field), false)).toBe('search');
  });

  test('each have keys of their own', () => {
    const keys = SHORTCUTS.map((shortcut) => keysOf(shortcut, false).join());
    expect(new Set(keys).size).toBe(keys.length);
    expect(keysOf(SHORTCUTS[0]!, true)).toEqual(['⌘', '⇧', 'O']);
  });
});

describe('figures', () => {
  test('of sizes', () => {
    expect(megabytes(5_430_000, 'en')).toBe('5.4 MB');
  });

  test('money shows what there is', () => {
    expect(money(12_345_678, 'USD', 'en')).toBe('$12.35');
    expect(money(280_000, 'USD', 'en')).toBe('$0.28');
    expect(money(1_234, 'USD', 'en')).toBe('$0.001234');
    expect(money(0, 'USD', 'en')).toBe('$0.00');
    expect(money(-1_500_000, 'USD', 'en')).toBe('-$1.50');
    expect(money(1_000_000, 'CNY', 'zh')).toBe('¥1.00');
  });

  test.each([
    ['12.5', 12_500_000],
    ['1,000', 1_000_000_000],
    ['0.000001', 1],
    ['.5', null],
    ['-1', null],
    ['1e3', null],
    ['0.0000001', null],
    ['', null],
  ])('%j is the amount %j', (text, amount) => {
    expect(parseMoney(text)).toBe(amount);
  });

  test('shares and rates have no zero below the line', () => {
    expect(percent(1, 0, 'en')).toBe('0%');
    expect(rate(1, 5)).toBeNull();
    expect(rate(101, 2)).toBe(50);
    expect(rate(10, 0)).toBeNull();
    expect(short(12_345, 'en')).toBe('12.3K');
  });

  test('days are UTC', () => {
    expect(utcDay(Date.UTC(2026, 0, 31, 23, 59))).toBe('2026-01-31');
    expect(daysBetween('2026-02-27', '2026-03-01')).toEqual([
      '2026-02-27',
      '2026-02-28',
      '2026-03-01',
    ]);
    expect(date(0, 'en')).toContain('19');
  });
});

describe('a key’s limits', () => {
  const limits = {
    models: ['m'],
    budget: 5_500_000,
    budget_period: 'month',
    requests_per_minute: 60,
    tokens_per_minute: null,
    max_concurrent: 2,
    expires_at: Date.UTC(2026, 11, 31, 23, 59, 59, 999),
  };

  test('come back from the form', () => {
    expect(toLimits(toForm(limits))).toEqual(limits);
    expect(toLimits(toForm({}))).toMatchObject({ models: null, budget: null, expires_at: null });
  });

  test.each(['0', '-1', 'x', '1.5'])('%j is no number of requests', (requests) => {
    expect(toLimits({ ...toForm({}), requests })).toBeNull();
  });
});

test('a transfer’s change is what the balance grew by', () => {
  expect(changeOf({ moves: { granted: -5, spent: 5 } })).toBe(-5);
  expect(changeOf({ moves: { issued: -7, paid: 7 } })).toBe(7);
});

test('a transfer’s reason is told in words, and its name is kept', () => {
  const reason = (cause: string, model: string | null = null, memo = '') =>
    reasonOf({ cause, model, memo });
  expect(reason('charge:req_1', 'pocket')).toEqual({ text: 'Request to pocket', id: 'req_1' });
  expect(reason('refund:req_1', 'pocket').text).toBe('Request to pocket');
  expect(reason('charge:req_1')).toEqual({ text: 'charge:req_1', id: 'req_1' });
  expect(reason('redeem:code_1:acct_1').text).toBe('Redemption code');
  expect(reason('admin:x', null, 'Invoice 7')).toEqual({ text: 'Invoice 7', id: 'admin:x' });
  expect(reason('elsewhere').text).toBe('elsewhere');
});

test('a line of the audit log is told in words', () => {
  const facts = (action: string, detail: unknown, subject = '') =>
    factsOf({ action, subject, detail }, (micro) => `$${micro / 1e6}`);
  expect(facts('account.grant', { amount: 5_000_000, cause: 'sign-up:x' })).toBe('$5');
  expect(facts('account.withdraw', { amount: 1_000_000, book: 'paid', cause: 'x' })).toBe(
    '$1 · Paid in',
  );
  expect(facts('user.create', { role: 'admin', unlimited: false })).toBe('Administrator');
  expect(facts('code.create', { amount: 5e6, book: 'granted', max_uses: 25 })).toBe(
    '$5 · Granted · good for 25 uses',
  );
  expect(facts('user.status', { status: 'suspended' })).toBe('suspended');
  expect(facts('price.set', { version: 2, input: 2e6, cached_input: 0, output: 3e6 })).toBe(
    'Input $2 · Input from the cache $0 · Output $3',
  );
  expect(facts('setting.change', { value: 2e6 }, 'sign_up_grant')).toBe('$2');
  expect(facts('setting.change', { value: 86_400_000 }, 'session_ms')).toBe('1');
  expect(facts('setting.change', { value: null }, 'max_concurrent')).toBe('no limit');
  expect(facts('setting.change', { value: false }, 'sign_up_open')).toBe('no');
  expect(facts('data.export', { folder: 'x' })).toBe('');
  expect(facts('x', 'text')).toBe('');
  expect(subjectOf({ action: 'setting.change', subject: 'currency' })).toBe('Currency');
  expect(subjectOf({ action: 'user.role', subject: 'user_1' })).toBe('');
});

test('settings come back as they were', () => {
  expect(readSetting(writeSetting(5_000_000, 'money'), 'number', 'money')).toBe(5_000_000);
  expect(readSetting(writeSetting(30 * 86_400_000, 'days'), 'number', 'days')).toBe(
    30 * 86_400_000,
  );
  expect(readSetting('', 'number', 'plain')).toBeNull();
  expect(readSetting('USD', 'string', 'plain')).toBe('USD');
  expect(writeSetting(null, 'plain')).toBe('');
});

test('pieces are cut where the model’s text begins and ends', () => {
  const pieces = [
    { text: 'abc', scopes: ['keyword'] },
    { text: 'def', scopes: [] },
  ];
  for (let from = 0; from <= 6; from++) {
    for (let to = from; to <= 6; to++) {
      const cut = cutPieces(pieces, from, to);
      expect(cut.map(({ text }) => text).join('')).toBe('abcdef');
      const inside = cut.filter(({ isIn }) => isIn).map(({ text }) => text);
      expect(inside.join('')).toBe('abcdef'.slice(from, to));
    }
  }
});

test('examples have a place for the cursor', () => {
  expect(EXAMPLES.every(({ cursor, code }) => cursor > 0 && !code.includes('▮'))).toBe(true);
});
