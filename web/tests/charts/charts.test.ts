import { describe, expect, test } from 'vitest';
import type { DailyUsage, EngineState } from '$lib/api/types';
import { pointOf } from '$lib/charts/rates';
import { everyNth, niceCeiling, roomFor, ticks } from '$lib/charts/scale';
import { MOST_SERIES, seriesOf } from '$lib/charts/series';

test.each([
  [0, 1],
  [-3, 1],
  [NaN, 1],
  [0.3, 0.5],
  [1, 1],
  [7, 10],
  [21, 25],
  [1e6, 1e6],
  [1_000_001, 2e6],
])('an axis for %d ends at %d', (value, top) => {
  expect(niceCeiling(value)).toBeCloseTo(top, 9);
});

test.each([
  [10, [0, 2.5, 5, 7.5, 10]],
  [2.7e6, [0, 1e6, 2e6, 3e6]],
  [2e6, [0, 5e5, 1e6, 1.5e6, 2e6]],
  [0, [0, 1]],
])('an axis up to %d has round marks, and no more room than it needs', (value, marks) => {
  expect(ticks(value)).toEqual(marks);
});

test('labels leave room, and the last is always there', () => {
  const shown = Array.from({ length: 30 }, (_, i) => i).filter(everyNth(30, 6));
  expect(shown.length).toBeLessThanOrEqual(6);
  expect(shown.at(-1)).toBe(29);
});

test('wider labels leave room for fewer', () => {
  expect(roomFor(Array<string>(30).fill('Nov 27'), 600)).toBe(10);
  expect(roomFor(Array<string>(30).fill('11月27日'), 600)).toBe(8);
  expect(roomFor([], 600)).toBe(100);
});

const row = (day: string, model: string, tokens: number): DailyUsage => ({
  day,
  account_id: 'a',
  key_id: '',
  model,
  requests: 1,
  prompt_tokens: tokens,
  cached_tokens: 0,
  completion_tokens: 1,
  charge: 5,
});

describe('series', () => {
  const days = ['2026-01-01', '2026-01-02'];

  test('are sums per day, the largest first', () => {
    const rows = [
      row(days[0]!, 'x', 1),
      row(days[1]!, 'y', 10),
      row(days[0]!, 'x', 2),
      row('2025-12-31', 'x', 99),
    ];
    expect(seriesOf(rows, days, 'tokens', 'model', 'others')).toEqual([
      { name: 'y', values: [0, 11], total: 11 },
      { name: 'x', values: [5, 0], total: 5 },
    ]);
    expect(seriesOf(rows, days, 'charge', 'model', 'others')[0]).toMatchObject({
      name: 'x',
      total: 10,
    });
  });

  test('are few: the smallest are one', () => {
    const rows = Array.from({ length: 9 }, (_, i) => row(days[0]!, `m${i}`, 100 - i));
    const series = seriesOf(rows, days, 'tokens', 'model', 'others');
    expect(series).toHaveLength(MOST_SERIES + 1);
    expect(series.at(-1)).toMatchObject({ name: 'others', total: 95 + 94 + 93 + 92 + 4 });
  });
});

test('an engine’s rates are what its counters grew by', () => {
  const engine = (change: Partial<EngineState>): EngineState => ({
    model: 'm',
    description: '',
    is_healthy: true,
    running: 3,
    waiting: 1,
    total_blocks: 100,
    free_blocks: 25,
    generated_tokens: 1000,
    prompt_tokens: 500,
    cached_tokens: 100,
    steps: 1,
    step_seconds: 1,
    ...change,
  });
  const before = { at: 1000, engine: engine({}) };
  const now = {
    at: 3000,
    engine: engine({ generated_tokens: 1100, prompt_tokens: 700, cached_tokens: 150 }),
  };
  expect(pointOf(undefined, before)).toMatchObject({
    running: 3,
    cacheUse: 0.75,
    tokensPerSecond: 0,
  });
  expect(pointOf(before, now)).toMatchObject({ tokensPerSecond: 50, hitRate: 0.25 });
  // A restarted engine counts from zero.
  expect(pointOf(now, { at: 4000, engine: engine({ generated_tokens: 5 }) }).tokensPerSecond).toBe(
    0,
  );
});
