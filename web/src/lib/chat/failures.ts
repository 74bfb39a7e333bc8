/** What can go wrong with an answer, in words, and what may help. */

import type { ApiError } from '$lib/api/http';
import type { FailureCode } from '$lib/api/types';
import type { Key } from '$lib/i18n/i18n.svelte';

export type Trouble = FailureCode | 'offline';

export interface Advice {
  text: Key;
  /** Whether trying again can help. */
  canRetry: boolean;
  /** Another way out. */
  way?: 'billing' | 'new' | 'settings';
}

export const ADVICE: Record<Trouble, Advice> = {
  context_length: { text: 'failure.context_length', canRetry: false, way: 'new' },
  no_money: { text: 'failure.no_money', canRetry: true, way: 'billing' },
  overloaded: { text: 'failure.overloaded', canRetry: true },
  rate_limited: { text: 'failure.rate_limited', canRetry: true },
  engine_lost: { text: 'failure.engine_lost', canRetry: true },
  interrupted: { text: 'failure.interrupted', canRetry: true },
  failed: { text: 'failure.failed', canRetry: true },
  offline: { text: 'failure.offline', canRetry: true },
};

/** Which trouble a refused request is. */
export function troubleOf(error: ApiError): Trouble {
  if (error.isOffline) return 'offline';
  if (error.code === 'engine_unavailable') return 'engine_lost';
  if (error.code && /context/.test(error.code)) return 'context_length';
  if (error.status === 402) return 'no_money';
  if (error.status === 429) return 'rate_limited';
  if (error.status === 503) return 'overloaded';
  return 'failed';
}

/** Whether the server's own words say more than ours. */
export function needsDetail(trouble: Trouble): boolean {
  return trouble === 'failed' || trouble === 'context_length' || trouble === 'rate_limited';
}
