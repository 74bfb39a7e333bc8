/** The platform's settings as they are shown and typed. */

import type { Settings } from '$lib/api/admin';
import { MICRO } from '$lib/format';
import type { Key } from '$lib/i18n/i18n.svelte';

export type Unit = 'plain' | 'money' | 'days';

const DAY = 86_400_000;

export const SETTINGS: Record<string, { label: Key; unit?: Unit }> = {
  sign_up_open: { label: 'setting.sign_up_open' },
  sign_up_grant: { label: 'setting.sign_up_grant', unit: 'money' },
  currency: { label: 'setting.currency' },
  session_ms: { label: 'setting.session_ms', unit: 'days' },
  idempotency_ms: { label: 'setting.idempotency_ms', unit: 'days' },
  requests_per_minute: { label: 'setting.requests_per_minute' },
  tokens_per_minute: { label: 'setting.tokens_per_minute' },
  max_concurrent: { label: 'setting.max_concurrent' },
  argon2_time_cost: { label: 'setting.argon2_time_cost' },
  argon2_memory_kib: { label: 'setting.argon2_memory_kib' },
  argon2_parallelism: { label: 'setting.argon2_parallelism' },
};

const FACTORS: Record<Unit, number> = { plain: 1, money: MICRO, days: DAY };

export function writeSetting(value: Settings[string], unit: Unit): string {
  if (value === null) return '';
  return typeof value === 'number' ? String(value / FACTORS[unit]) : String(value);
}

/** What was typed, as the server takes it; what is no number it will refuse with its reason. */
export function readSetting(text: string, kind: string, unit: Unit): Settings[string] {
  const plain = text.trim();
  if (plain === '') return kind === 'string' ? '' : null;
  const value = Number(plain);
  return kind === 'string' || Number.isNaN(value) ? plain : Math.round(value * FACTORS[unit]);
}
