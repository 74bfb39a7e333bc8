/** Makes the unfinished end of a block look as it will when its end has come. */

/** The block's Markdown with what is open closed, and with markers that say nothing yet left out. */
export function repair(raw: string): string {
  if (isInFence(raw)) return raw;
  const table = repairTable(raw);
  if (table !== null) return table;
  let text = raw.replace(/[ \t\n]+$/, '');
  text = dropLoneMarker(text);
  const at = text.lastIndexOf('\n\n') + 1;
  return text.slice(0, at) + repairInline(text.slice(at));
}

/** Whether the end is code, as in a list's item: then marks are no marks. */
function isInFence(raw: string): boolean {
  let fence = '';
  for (const line of raw.split('\n')) {
    const run = /^[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})/.exec(line)?.[1];
    if (run && !fence) fence = run;
    else if (run?.startsWith(fence)) fence = '';
  }
  return fence !== '';
}

/** A table is one from its first row on. */
function repairTable(raw: string): string | null {
  const lines = raw.trimEnd().split('\n');
  const [head = '', rule, ...rows] = lines;
  if (!/^\s{0,3}\|.*\S/.test(head)) return null;
  const cells = head
    .trim()
    .replace(/^\||\|$/g, '')
    .split(/(?<!\\)\|/).length;
  const whole = `|${' --- |'.repeat(cells)}`;
  if (rule === undefined) return `${head}\n${whole}`;
  if (rows.length > 0) return null;
  // A rule that is not whole yet would make a paragraph of it all.
  const isRule = /^[\s|:-]+$/.test(rule);
  const isWhole =
    rule
      .trim()
      .replace(/^\||\|$/g, '')
      .split('|').length === cells && /-/.test(rule);
  return isRule && !isWhole ? `${head}\n${whole}` : null;
}

/** A bullet, hash, number or rule on a line of its own turns what is above it into something else
 * (`-` under a paragraph makes a heading), until its text comes. */
function dropLoneMarker(text: string): string {
  const lone = /(^|\n)[ \t]*(?:[-*+>#=|~]+|\d{1,9}[.)]?|`{1,2}|[-*+] \[[ xX]?\]?)[ \t]*$/;
  const found = lone.exec(text);
  if (!found) return text;
  const line = text.slice(found.index).trim();
  // Rules are whole at three, and a number alone may be an answer.
  if (/^(?:\*{3,}|-{3,}|~{3,})$/.test(line) && !/\S\n[^\n]*$/.test(text)) return text;
  if (/^\d+$/.test(line) && found.index === 0 && !text.startsWith('\n')) return text;
  return text.slice(0, found.index);
}

interface Open {
  marker: string;
  /** Where its text begins. */
  at: number;
}

function repairInline(text: string): string {
  const whole = dropOpenLink(dropOpenTag(text));
  const { code, open } = scan(whole);
  if (code !== null) {
    const after = whole.slice(code.at);
    if (!after.trim()) return closeAll(whole.slice(0, code.at - code.marker.length), open);
    return closeAll(whole.replace(/`*$/, '') + code.marker, open);
  }
  return closeAll(whole, open);
}

function dropOpenTag(text: string): string {
  return text.replace(/<\/?[a-zA-Z][^<>\n]*$|<[/!]?$/, '');
}

function dropOpenLink(text: string): string {
  return text
    .replace(/!\[[^\]\n]*(?:\]\(?[^)\n]*)?$/, '')
    .replace(/\[([^\]\n]*)\]\([^)\n]*$/, '$1')
    .replace(/(^|[^\\\]])\[([^\][\n]*)$/, '$1$2');
}

/** Emphasis and code that are open at the end. */
function scan(text: string): { code: Open | null; open: Open[] } {
  const open: Open[] = [];
  for (let i = 0; i < text.length;) {
    const char = text[i]!;
    if (char === '\\') {
      i += 2;
    } else if (char === '`') {
      const run = runAt(text, i);
      const end = closingRun(text, i + run.length, run.length);
      if (end < 0) return { code: { marker: run, at: i + run.length }, open };
      i = end;
    } else if (char === '*' || char === '_' || char === '~') {
      const run = runAt(text, i);
      i += run.length;
      if (char !== '~' || run.length === 2) mark(text, run, i, open);
    } else {
      i++;
    }
  }
  return { code: null, open };
}

function mark(text: string, run: string, end: number, open: Open[]): void {
  const before = text[end - run.length - 1] ?? ' ';
  const after = text[end] ?? ' ';
  const isWord = (c: string) => /[\p{L}\p{N}]/u.test(c);
  if (run[0] === '_' && isWord(before) && isWord(after)) return;
  let left = run.length;
  if (!/\s/.test(before)) {
    while (left > 0) {
      const at = open.findLastIndex((one) => one.marker[0] === run[0] && one.marker.length <= left);
      if (at < 0) break;
      left -= open[at]!.marker.length;
      open.length = at;
    }
  }
  // An opening run stands before text; at the very end it may become one.
  const mayOpen = end === text.length || !/\s/.test(after);
  if (left === 0 || !mayOpen || left > 3) return;
  const sizes = left === 3 ? [1, 2] : [left];
  for (const size of sizes) open.push({ marker: run[0]!.repeat(size), at: end });
}

function closeAll(text: string, open: Open[]): string {
  let whole = text;
  for (const [i, { marker, at }] of open.toReversed().entries()) {
    if (whole.slice(at).trim() === '') {
      whole = whole.slice(0, Math.max(0, at - marker.length));
      continue;
    }
    // Half of the closing marker may be here already.
    if (i === 0 && marker.length === 2 && whole.endsWith(marker[0]!) && !whole.endsWith(marker)) {
      whole = whole.slice(0, -1);
    }
    whole = whole.trimEnd() + marker;
  }
  return whole;
}

function runAt(text: string, at: number): string {
  let end = at;
  while (text[end] === text[at]) end++;
  return text.slice(at, end);
}

function closingRun(text: string, from: number, length: number): number {
  for (let i = text.indexOf('`', from); i >= 0; i = text.indexOf('`', i)) {
    const run = runAt(text, i);
    i += run.length;
    if (run.length === length) return i;
  }
  return -1;
}
