/** Usage rows as series of a chart. */

import type { DailyUsage } from '$lib/api/types';

export type Measure = 'tokens' | 'requests' | 'charge';
export type GroupBy = 'model' | 'key_id' | 'account_id';

export interface Series {
  name: string;
  values: number[];
  total: number;
}

/** More than this many colours nobody tells apart; the rest is one series. */
export const MOST_SERIES = 5;

export function measureOf(row: DailyUsage, measure: Measure): number {
  return measure === 'tokens' ? row.prompt_tokens + row.completion_tokens : row[measure];
}

/** One series for each model, key or account, the largest first; the smallest are put together. */
export function seriesOf(
  rows: DailyUsage[],
  days: string[],
  measure: Measure,
  by: GroupBy,
  others: string,
): Series[] {
  const index = new Map(days.map((day, i) => [day, i]));
  const byName = new Map<string, number[]>();
  for (const row of rows) {
    const at = index.get(row.day);
    if (at === undefined) continue;
    const values = byName.get(row[by]) ?? days.map(() => 0);
    values[at] = values[at]! + measureOf(row, measure);
    byName.set(row[by], values);
  }
  const all = [...byName]
    .map(([name, values]) => ({ name, values, total: sum(values) }))
    .sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  if (all.length <= MOST_SERIES + 1) return all;
  const rest = all.slice(MOST_SERIES);
  const values = days.map((_, i) => sum(rest.map((series) => series.values[i]!)));
  return [...all.slice(0, MOST_SERIES), { name: others, values, total: sum(values) }];
}

export function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
