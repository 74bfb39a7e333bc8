/** Markdown as models write it: GitHub's, with TeX between dollars or backslashed brackets. */

import {
  Marked,
  type MarkedExtension,
  type Token,
  type TokenizerAndRendererExtension,
} from 'marked';

export interface MathToken {
  type: 'blockMath' | 'inlineMath';
  raw: string;
  tex: string;
  isDisplay: boolean;
  /** Whether its end has come. */
  isClosed: boolean;
}

export function escapeHtml(text: string): string {
  return text.replace(
    /[&<>"']/g,
    (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[c]!,
  );
}

/** Where math stands in a block's HTML; `render.ts` finds it and lets KaTeX build nodes in it. */
function mathHost(token: MathToken): string {
  const kind = token.isDisplay ? 'display' : 'inline';
  const tag = token.type === 'blockMath' ? 'div' : 'span';
  return `<${tag} data-tex="${kind}">${escapeHtml(token.tex)}</${tag}>`;
}

const BLOCK_MATH = /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n+|$)/;
const OPEN_BLOCK_MATH = /^ {0,3}(?:\$\$|\\\[)([\s\S]*)$/;

function blockMath(isStreaming: boolean): TokenizerAndRendererExtension {
  return {
    name: 'blockMath',
    level: 'block',
    start(source) {
      const found = /(?:^|\n) {0,3}(?:\$\$|\\\[)/.exec(source);
      if (!found) return undefined;
      return found.index + (found[0].startsWith('\n') ? 1 : 0);
    },
    tokenizer(source): MathToken | undefined {
      const whole = BLOCK_MATH.exec(source);
      if (whole) {
        const tex = (whole[1] ?? whole[2] ?? '').trim();
        return { type: 'blockMath', raw: whole[0], tex, isDisplay: true, isClosed: true };
      }
      const open = isStreaming ? OPEN_BLOCK_MATH.exec(source) : null;
      // What follows the dollars on their line must not be the end of something in the line.
      if (!open || /\$\$|\\\]/.test(open[1]!)) return undefined;
      // The first half of its end says nothing yet.
      const tex = open[1]!.replace(/\s*[$\\]$/, '').trim();
      return { type: 'blockMath', raw: open[0], tex, isDisplay: true, isClosed: false };
    },
    renderer: (token) => mathHost(token as unknown as MathToken),
  };
}

// After a dollar no space, before the closing one no space, and no digit after it: prices are not
// math.
const DISPLAY = /^(?:\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\])/;
const INLINE = /^(?:\$(?![\s$])((?:\\.|[^\\$\n])*?[^\\\s$]|\\.)\$(?![\d$])|\\\(([\s\S]+?)\\\))/;

const inlineMath: TokenizerAndRendererExtension = {
  name: 'inlineMath',
  level: 'inline',
  start: (source) => {
    const at = source.search(/\$|\\[([]/);
    return at < 0 ? undefined : at;
  },
  tokenizer(source): MathToken | undefined {
    for (const [pattern, isDisplay] of [
      [DISPLAY, true],
      [INLINE, false],
    ] as const) {
      const found = pattern.exec(source);
      if (!found) continue;
      const tex = (found[1] ?? found[2] ?? '').trim();
      return { type: 'inlineMath', raw: found[0], tex, isDisplay, isClosed: true };
    }
    return undefined;
  },
  renderer: (token) => mathHost(token as unknown as MathToken),
};

// Tags without attributes that change how text looks and nothing else. All other HTML is shown as
// the text it is: a model that explains <script> should be readable.
const HARMLESS = /^<\/?(?:br|sub|sup|kbd|mark|b|i|u|s|details|summary)\s*\/?>$/i;
const TAG = /<\/?[a-z][^<>]*>/gi;

/** HTML with everything but harmless tags turned into text. */
export function tameHtml(html: string): string {
  let tamed = '';
  let at = 0;
  for (const tag of html.matchAll(TAG)) {
    tamed += escapeHtml(html.slice(at, tag.index));
    tamed += HARMLESS.test(tag[0]) ? tag[0] : escapeHtml(tag[0]);
    at = tag.index + tag[0].length;
  }
  return tamed + escapeHtml(html.slice(at));
}

const rendering: MarkedExtension = {
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }) => tameHtml(text),
    code({ text, lang }) {
      const language = escapeHtml(languageOf(lang));
      return `<pre data-code="${language}">${escapeHtml(text)}</pre>`;
    },
    checkbox: ({ checked }) => `<span data-check="${checked ? 'yes' : 'no'}"></span> `,
    // Nothing is fetched because a model wrote it: an address in an image can carry a secret away.
    image: ({ href, text }) => `<span data-image="${escapeHtml(href)}">${escapeHtml(text)}</span>`,
  },
};

function make(isStreaming: boolean): Marked {
  const marked = new Marked(rendering);
  marked.use({ extensions: [blockMath(isStreaming), inlineMath] });
  return marked;
}

const settled = make(false);
const streaming = make(true);

/** Top-level tokens; while streaming, math that has not ended is math too. */
export function lex(source: string, isStreaming: boolean): Token[] {
  return (isStreaming ? streaming : settled).lexer(source);
}

/** HTML, which nobody may use before it is sanitised. */
export function toHtml(source: string): string {
  return settled.parse(source, { async: false });
}

/** A fence's language: the first word of its info string, if it looks like a name. */
export function languageOf(info: string | undefined): string {
  const word = (info ?? '').trim().split(/\s+/)[0] ?? '';
  return /^[\w+#.-]{1,30}$/.test(word) ? word.toLowerCase() : '';
}
