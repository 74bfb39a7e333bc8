/** Coloured pieces of code, cut where something else begins or ends. */

import type { Piece } from '$lib/markdown/highlight';

export interface CutPiece extends Piece {
  /** Whether it lies between the two ends. */
  isIn: boolean;
}

export function cutPieces(pieces: Piece[], from: number, to: number): CutPiece[] {
  const cut: CutPiece[] = [];
  let at = 0;
  for (const { text, scopes } of pieces) {
    const ends = [from, to].map((end) => end - at).filter((end) => end > 0 && end < text.length);
    let start = 0;
    for (const end of [...ends, text.length]) {
      const isIn = at + start >= from && at + start < to;
      if (end > start) cut.push({ text: text.slice(start, end), scopes, isIn });
      start = end;
    }
    at += text.length;
  }
  return cut;
}
