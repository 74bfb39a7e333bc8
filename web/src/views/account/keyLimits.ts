/** A key's limits as a form has them: texts, where nothing is no limit. */

import type { KeyLimits } from '$lib/api/types';
import { MICRO, parseMoney } from '$lib/format';

export interface LimitForm {
  models: string[];
  budget: string;
  period: string;
  requests: string;
  tokens: string;
  concurrent: string;
  expires: string;
}

export function toForm(limits: Partial<KeyLimits>): LimitForm {
  const text = (value: number | null | undefined) => (value ?? '').toString();
  return {
    models: limits.models ?? [],
    budget:
      limits.budget === null || limits.budget === undefined ? '' : text(limits.budget / MICRO),
    period: limits.budget_period ?? 'total',
    requests: text(limits.requests_per_minute),
    tokens: text(limits.tokens_per_minute),
    concurrent: text(limits.max_concurrent),
    expires: limits.expires_at ? new Date(limits.expires_at).toISOString().slice(0, 10) : '',
  };
}

/** The limits; null if a text is none. A key holds to the end of the day on which it expires. */
export function toLimits(form: LimitForm): KeyLimits | null {
  const count = (text: string): number | null | undefined => {
    if (text.trim() === '') return null;
    return /^\d{1,12}$/.test(text.trim()) && Number(text) > 0 ? Number(text) : undefined;
  };
  const budget = form.budget.trim() === '' ? null : (parseMoney(form.budget) ?? undefined);
  const [requests, tokens, concurrent] = [form.requests, form.tokens, form.concurrent].map(count);
  const end = form.expires === '' ? null : Date.parse(`${form.expires}T23:59:59.999Z`);
  if (budget === undefined || Number.isNaN(end)) return null;
  if (requests === undefined || tokens === undefined || concurrent === undefined) return null;
  return {
    models: form.models.length > 0 ? form.models : null,
    budget,
    budget_period: form.period,
    requests_per_minute: requests,
    tokens_per_minute: tokens,
    max_concurrent: concurrent,
    expires_at: end,
  };
}
