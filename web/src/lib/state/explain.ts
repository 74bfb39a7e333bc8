/** What went wrong, in the reader's language; what the server says of it stands below. */

import type { ApiError } from '$lib/api/http';
import { t, type Key } from '$lib/i18n/i18n.svelte';

export interface Explanation {
  text: string;
  /** The server's own words, which are English; empty where they say nothing more. */
  detail: string;
}

/** Codes whose text says all there is to say. */
const WHOLE: Record<string, Key> = {
  answer_running: 'error.answer_running',
  code_redeemed: 'error.code_redeemed',
  cross_site: 'error.cross_site',
  email_taken: 'error.email_taken',
  engine_unavailable: 'failure.engine_lost',
  guest: 'error.guest',
  insufficient_balance: 'failure.no_money',
  invalid_api_key: 'error.credentials',
  no_tokens: 'tokens.none',
  not_an_administrator: 'error.not_an_administrator',
  offline: 'failure.offline',
  overloaded: 'failure.overloaded',
  queue_timeout: 'failure.overloaded',
  server_is_stopping: 'error.server_is_stopping',
  sign_up_closed: 'door.closed',
  store_unavailable: 'error.store_unavailable',
  usable_redemption_code_not_found: 'error.redemption_code_not_found',
};

/** Codes and statuses of which the server knows more: which field, how many, until when. */
const PART: Record<string, Key> = {
  400: 'error.refused',
  402: 'failure.no_money',
  403: 'error.forbidden',
  404: 'error.gone',
  409: 'error.conflict',
  413: 'error.too_large',
  422: 'error.refused',
  429: 'failure.rate_limited',
  503: 'failure.overloaded',
  budget_exceeded: 'error.budget_exceeded',
  context_length_exceeded: 'failure.context_length',
  limit_reached: 'error.limit_reached',
  model_not_found: 'error.model_not_found',
  model_not_priced: 'error.model_not_priced',
  suspended: 'error.suspended',
  too_many: 'error.too_many',
};

export function explain(error: ApiError): Explanation {
  const code = error.isOffline ? 'offline' : (error.code ?? '');
  if (Object.hasOwn(WHOLE, code)) return { text: t(WHOLE[code]!), detail: '' };
  const part = [code, String(error.status)].find((name) => Object.hasOwn(PART, name));
  return { text: t(part ? PART[part]! : 'failure.failed'), detail: error.message };
}
