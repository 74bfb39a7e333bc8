/** Cuts a growing Markdown text into blocks, and keeps those that can no longer change. */

import type { Token, Tokens } from 'marked';
import { languageOf, lex, type MathToken } from './lexer';

export type Block =
  | { kind: 'code'; raw: string; language: string; text: string; isClosed: boolean }
  | { kind: 'math'; raw: string; tex: string; isClosed: boolean }
  | { kind: 'prose'; raw: string };

/** Later text may still join the last block and, where that is the start of a list's next item or
 * a line under a heading, the one before it; so many blocks stay open. */
const OPEN_BLOCKS = 2;

export class BlockStream {
  #settled: Block[] = [];
  #tail = '';
  #open: Block[] = [];
  #source = '';
  #isStreaming = true;
  #definitions = '';

  /** All blocks; those that have not changed are the same objects as before. */
  get blocks(): Block[] {
    return [...this.#settled, ...this.#open];
  }

  /** Reference definitions, which hold for the blocks before them too. */
  get definitions(): string {
    return this.#definitions;
  }

  /** Take the text as it is now: usually what it was with something after it. */
  update(text: string, isStreaming: boolean): void {
    // The lexer would do the same, and then its lengths would not be those of the text.
    const source = text.includes('\r') ? text.replace(/\r\n?/g, '\n') : text;
    if (source === this.#source && isStreaming === this.#isStreaming) return;
    const isLonger = source.length >= this.#source.length && source.startsWith(this.#source);
    if (!isLonger) {
      this.#settled = [];
      this.#tail = '';
      this.#open = [];
      this.#definitions = '';
    }
    this.#tail += isLonger ? source.slice(this.#source.length) : source;
    this.#source = source;
    this.#isStreaming = isStreaming;
    this.#cut();
  }

  #cut(): void {
    const tokens = lex(this.#tail, this.#isStreaming).filter((token) => token.raw !== '');
    let settles = tokens.length;
    for (let open = 0; settles > 0 && open < OPEN_BLOCKS;) {
      if (tokens[--settles]!.type !== 'space') open++;
    }
    const settled = tokens.slice(0, settles);
    const length = settled.reduce((sum, token) => sum + token.raw.length, 0);
    for (const token of settled) {
      if (token.type === 'space') continue;
      if (token.type === 'def') this.#definitions += `${token.raw.trim()}\n`;
      this.#settled.push(this.#known(toBlock(token)));
    }
    this.#tail = this.#tail.slice(length);
    const blocks = tokens.slice(settles).filter((token) => token.type !== 'space');
    this.#open = blocks.map((token) => this.#known(toBlock(token)));
  }

  /** The same object for the same block, so that nothing is drawn twice. */
  #known(block: Block): Block {
    const known = this.#open.find((open) => open.raw === block.raw && isSame(open, block));
    return known ?? block;
  }
}

function isSame(a: Block, b: Block): boolean {
  return a.kind === b.kind && (a.kind === 'prose' || a.isClosed === (b as typeof a).isClosed);
}

function toBlock(token: Token): Block {
  if (token.type === 'code') {
    const { raw, lang, text, codeBlockStyle } = token as Tokens.Code;
    const isClosed = codeBlockStyle === 'indented' || isFenceClosed(raw);
    return { kind: 'code', raw, language: languageOf(lang), text, isClosed };
  }
  if (token.type === 'blockMath') {
    const { raw, tex, isClosed } = token as unknown as MathToken;
    return { kind: 'math', raw, tex, isClosed };
  }
  return { kind: 'prose', raw: token.raw };
}

/** Whether a fenced block ends with a fence at least as long as the one it began with. */
export function isFenceClosed(raw: string): boolean {
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(raw)?.[1];
  if (!fence) return true;
  const lines = raw.trimEnd().split('\n');
  if (lines.length < 2) return false;
  const last = lines.at(-1)!.trim();
  return last.length >= fence.length && last === fence[0]!.repeat(last.length);
}

/** A text's blocks at once. */
export function splitBlocks(source: string): Block[] {
  const stream = new BlockStream();
  stream.update(source, false);
  return stream.blocks;
}
