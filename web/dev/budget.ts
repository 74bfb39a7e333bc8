/** Fails a build that is larger than it may be, and says how large it is. */

import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Plugin } from 'vite';

/** What the page names itself, compressed; and all files, as the wheel holds them. */
const MOST_FIRST_LOAD = 150 * 1000;
const MOST_IN_ALL = 1_500_000;

export function budget(folder: string): Plugin {
  return {
    name: 'budget',
    apply: 'build',
    closeBundle: {
      order: 'post',
      sequential: true,
      handler() {
        const page = readFileSync(join(folder, 'index.html'), 'utf8');
        const named = [...page.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map((found) => found[1]!);
        const first = ['/index.html', ...named]
          .map((name) => gzipSync(readFileSync(join(folder, name))).length)
          .reduce((sum, size) => sum + size, 0);
        const all = sizeOf(folder);
        this.info(`first load ${kB(first)} gzip, in all ${kB(all)}`);
        if (first > MOST_FIRST_LOAD) this.error(`The first load may have ${kB(MOST_FIRST_LOAD)}`);
        if (all > MOST_IN_ALL) this.error(`All files together may have ${kB(MOST_IN_ALL)}`);
      },
    },
  };
}

const kB = (size: number) => `${(size / 1000).toFixed(0)} kB`;

function sizeOf(folder: string): number {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => statSync(join(folder, name)))
    .reduce((sum, file) => sum + (file.isFile() ? file.size : 0), 0);
}
