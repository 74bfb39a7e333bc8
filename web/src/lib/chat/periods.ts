/** How conversations are grouped by when they last changed. */

import type { ConversationSummary } from '$lib/api/types';

export type Period = 'pinned' | 'today' | 'yesterday' | 'week' | 'older';

export interface Group {
  period: Period;
  conversations: ConversationSummary[];
}

export function periodOf(one: ConversationSummary, now: number): Period {
  if (one.is_pinned) return 'pinned';
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  // Days of 23 and 25 hours are off by one of them, at night, twice a year.
  const days = (midnight - one.updated_at) / 86_400_000;
  if (days <= 0) return 'today';
  if (days <= 1) return 'yesterday';
  return days <= 6 ? 'week' : 'older';
}

export function groupByPeriod(all: ConversationSummary[], now: number): Group[] {
  const groups = new Map<Period, ConversationSummary[]>();
  for (const one of all) {
    const period = periodOf(one, now);
    groups.set(period, [...(groups.get(period) ?? []), one]);
  }
  const order: Period[] = ['pinned', 'today', 'yesterday', 'week', 'older'];
  return order.flatMap((period) => {
    const found = groups.get(period);
    return found ? [{ period, conversations: found }] : [];
  });
}
