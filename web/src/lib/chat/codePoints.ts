/** The server counts characters as Unicode does; strings here count some of them twice. */

const PAIR = /[\uD800-\uDBFF][\uDC00-\uDFFF]/g;

export function countCodePoints(text: string): number {
  return text.length - (text.match(PAIR)?.length ?? 0);
}

/** The text without its first `n` characters. */
export function dropCodePoints(text: string, n: number): string {
  if (n <= 0) return text;
  let at = 0;
  for (let left = n; left > 0 && at < text.length; left--) {
    at += text.codePointAt(at)! > 0xffff ? 2 : 1;
  }
  return text.slice(at);
}
