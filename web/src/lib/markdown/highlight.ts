/** Colours of code: highlight.js and each language are loaded when a block first needs them. */

import type { HLJSApi, LanguageFn } from 'highlight.js';

type Loader = () => Promise<{ default: LanguageFn }>;

const LOADERS: Record<string, Loader> = {
  bash: () => import('highlight.js/lib/languages/bash'),
  c: () => import('highlight.js/lib/languages/c'),
  cpp: () => import('highlight.js/lib/languages/cpp'),
  csharp: () => import('highlight.js/lib/languages/csharp'),
  css: () => import('highlight.js/lib/languages/css'),
  diff: () => import('highlight.js/lib/languages/diff'),
  dockerfile: () => import('highlight.js/lib/languages/dockerfile'),
  go: () => import('highlight.js/lib/languages/go'),
  ini: () => import('highlight.js/lib/languages/ini'),
  java: () => import('highlight.js/lib/languages/java'),
  javascript: () => import('highlight.js/lib/languages/javascript'),
  json: () => import('highlight.js/lib/languages/json'),
  kotlin: () => import('highlight.js/lib/languages/kotlin'),
  latex: () => import('highlight.js/lib/languages/latex'),
  lua: () => import('highlight.js/lib/languages/lua'),
  makefile: () => import('highlight.js/lib/languages/makefile'),
  markdown: () => import('highlight.js/lib/languages/markdown'),
  php: () => import('highlight.js/lib/languages/php'),
  python: () => import('highlight.js/lib/languages/python'),
  r: () => import('highlight.js/lib/languages/r'),
  ruby: () => import('highlight.js/lib/languages/ruby'),
  rust: () => import('highlight.js/lib/languages/rust'),
  sql: () => import('highlight.js/lib/languages/sql'),
  swift: () => import('highlight.js/lib/languages/swift'),
  typescript: () => import('highlight.js/lib/languages/typescript'),
  xml: () => import('highlight.js/lib/languages/xml'),
  yaml: () => import('highlight.js/lib/languages/yaml'),
};

const ALIASES: Record<string, string> = {
  sh: 'bash',
  shell: 'bash',
  zsh: 'bash',
  console: 'bash',
  h: 'c',
  'c++': 'cpp',
  cc: 'cpp',
  hpp: 'cpp',
  cu: 'cpp',
  cuda: 'cpp',
  cs: 'csharp',
  'c#': 'csharp',
  patch: 'diff',
  docker: 'dockerfile',
  golang: 'go',
  toml: 'ini',
  js: 'javascript',
  jsx: 'javascript',
  mjs: 'javascript',
  jsonl: 'json',
  json5: 'json',
  kt: 'kotlin',
  tex: 'latex',
  make: 'makefile',
  md: 'markdown',
  py: 'python',
  python3: 'python',
  rb: 'ruby',
  rs: 'rust',
  ts: 'typescript',
  tsx: 'typescript',
  html: 'xml',
  svg: 'xml',
  vue: 'xml',
  svelte: 'xml',
  yml: 'yaml',
};

/** A piece of code and the classes of its colour, outermost first. */
export interface Piece {
  text: string;
  scopes: string[];
}

/** More than this is shown without colours: they would cost more than they tell. */
export const MOST_CHARACTERS = 100_000;

/** highlight.js' own name of a language, or null if it is not among ours. */
export function languageName(language: string): string | null {
  const name = ALIASES[language] ?? language;
  return Object.hasOwn(LOADERS, name) ? name : null;
}

/** Collects pieces where highlight.js would build HTML. */
class Pieces {
  readonly pieces: Piece[] = [];
  readonly #scopes: string[] = [];

  addText(text: string): void {
    if (text) this.pieces.push({ text, scopes: [...this.#scopes] });
  }
  openNode(scope: string): void {
    this.#scopes.push(scope);
  }
  closeNode(): void {
    this.#scopes.pop();
  }
  startScope(scope: string): void {
    this.openNode(scope);
  }
  endScope(): void {
    this.closeNode();
  }
  __addSublanguage(other: Pieces): void {
    for (const { text, scopes } of other.pieces) {
      this.pieces.push({ text, scopes: [...this.#scopes, ...scopes] });
    }
  }
  finalize(): void {
    this.#scopes.length = 0;
  }
  toHTML(): string {
    return '';
  }
}

let core: Promise<HLJSApi> | undefined;
const loaded = new Map<string, Promise<void>>();

async function load(name: string): Promise<HLJSApi> {
  core ??= import('highlight.js/lib/core').then(({ default: hljs }) => {
    // highlight.js asks for its own class, which builds HTML; ours has the same methods.
    hljs.configure({ __emitter: Pieces as never });
    return hljs;
  });
  const hljs = await core;
  let language = loaded.get(name);
  if (!language) {
    language = LOADERS[name]!().then(({ default: grammar }) => {
      hljs.registerLanguage(name, grammar);
    });
    loaded.set(name, language);
  }
  await language;
  return hljs;
}

/** Code in coloured pieces, or null where it stays plain. */
export async function highlight(code: string, language: string): Promise<Piece[] | null> {
  const name = languageName(language);
  if (!name || code.length > MOST_CHARACTERS) return null;
  try {
    const hljs = await load(name);
    const result = hljs.highlight(code, { language: name, ignoreIllegals: true });
    const { pieces } = result._emitter as unknown as Pieces;
    return pieces.map(({ text, scopes }) => ({ text, scopes }));
  } catch {
    // Without its chunk, as after an update of the server, the code is still readable.
    return null;
  }
}

/** A scope's class: `title.function` is coloured as `hl-title`. */
export function scopeClass(scope: string): string {
  return `hl-${(scope.startsWith('language:') ? 'sub' : scope.split('.')[0]!).replace(/[^\w-]/g, '')}`;
}
