/** What a transfer did to the money that is there. */

import type { Transfer } from '$lib/api/types';

/** Micro-units that the balance grew by; negative for a charge. */
export function changeOf({ moves }: Pick<Transfer, 'moves'>): number {
  return (moves['granted'] ?? 0) + (moves['paid'] ?? 0);
}
