/** What a transfer did to the money that is there, and what it was for. */

import type { Transfer } from '$lib/api/types';
import { word } from '$lib/i18n/i18n.svelte';

/** Micro-units that the balance grew by; negative for a charge. */
export function changeOf({ moves }: Pick<Transfer, 'moves'>): number {
  return (moves['granted'] ?? 0) + (moves['paid'] ?? 0);
}

/** Its reason in words; its name in the books says the kind of reason, a colon, and which. */
export function reasonOf({ memo, cause, model }: Pick<Transfer, 'memo' | 'cause' | 'model'>): {
  text: string;
  id: string;
} {
  const [kind = ''] = cause.split(':', 1);
  const isRequest = kind === 'charge' || kind === 'refund';
  const origin = isRequest && model === null ? kind : word('origin', kind, { model: model ?? '' });
  return {
    text: memo || (origin === kind ? cause : origin),
    id: isRequest ? cause.slice(kind.length + 1) : cause,
  };
}
