/** How sure the model was of each token, and where tokens are code. */

import type { Token } from '$lib/api/types';

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

/** A token, or what of it lies in one stretch. */
export interface TokenPart {
  /** Its place among the tokens. */
  index: number;
  text: string;
  /** Whether it belongs to the line that opens or closes the code. */
  isFence: boolean;
}

export interface Stretch {
  isCode: boolean;
  parts: TokenPart[];
}

/** Tokens as prose and as code. Each keeps its place; one that crosses a border is cut there. */
export function stretchesOf(tokens: Token[]): Stretch[] {
  const lines = linesOf(tokens.map((token) => token.text).join(''));
  const stretches: Stretch[] = [];
  let line = lines.next();
  let left = line.done ? 0 : line.value.length;
  for (const [index, token] of tokens.entries()) {
    let text = token.text;
    while (text !== '' && !line.done) {
      const { isCode, isFence, begins } = line.value;
      if (stretches.at(-1)?.isCode !== isCode || (begins && left === line.value.length))
        stretches.push({ isCode, parts: [] });
      stretches.at(-1)!.parts.push({ index, text: text.slice(0, left), isFence });
      const taken = Math.min(left, text.length);
      text = text.slice(taken);
      left -= taken;
      if (left > 0) continue;
      line = lines.next();
      left = line.done ? 0 : line.value.length;
    }
  }
  return stretches;
}

interface Line {
  length: number;
  isCode: boolean;
  isFence: boolean;
  /** Whether code begins with it. */
  begins: boolean;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;

function* linesOf(text: string): Generator<Line, void> {
  let open = '';
  for (const [line] of text.matchAll(/[^\n]*\n|[^\n]+/g)) {
    const mark = FENCE.exec(line)?.[1] ?? '';
    const begins = open === '' && mark !== '';
    const ends = open !== '' && mark.startsWith(open) && line.trim() === mark;
    const isFence = begins || ends;
    yield { length: line.length, isCode: open !== '' || begins, isFence, begins };
    if (begins) open = mark;
    else if (ends) open = '';
  }
}
