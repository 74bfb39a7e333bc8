/** How sure the model was of each token. */

/** From 0, it would hardly have been chosen, to 4, it was certain. */
export function sureness(logprob: number): 0 | 1 | 2 | 3 | 4 {
  const p = Math.exp(logprob);
  if (p >= 0.95) return 4;
  if (p >= 0.7) return 3;
  if (p >= 0.4) return 2;
  return p >= 0.1 ? 1 : 0;
}

/** A token's text with what cannot be seen made visible. */
export function visible(text: string): string {
  return text.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replaceAll(' ', '·') || '∅';
}
