import { svelte } from '@sveltejs/vite-plugin-svelte';
import { fileURLToPath } from 'node:url';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';
import { budget } from './dev/budget.ts';
import { mockServer } from './dev/mock.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

const OUT = here('../src/dsv2/service/static');

/** KaTeX's styles name three formats of each font; every browser that runs this site reads woff2. */
function onlyWoff2(): Plugin {
  return {
    name: 'only-woff2',
    enforce: 'pre',
    transform(code, id) {
      if (!/katex.*\.css/.test(id)) return null;
      return code.replace(
        /,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\(["'](?:woff|truetype)["']\)/g,
        '',
      );
    },
  };
}

export default defineConfig(({ mode }) => ({
  plugins: [
    onlyWoff2(),
    svelte(),
    budget(OUT),
    // `DSV2_API=http://127.0.0.1:8000 npm run dev` talks to a real server instead.
    ...(mode === 'test' || process.env['DSV2_API'] ? [] : [mockServer()]),
  ],
  resolve: {
    alias: { $lib: here('./src/lib') },
    // Tests mount components, so they need Svelte's browser build.
    conditions: mode === 'test' ? ['browser'] : undefined,
  },
  server: {
    proxy: process.env['DSV2_API']
      ? { '/api': { target: process.env['DSV2_API'], changeOrigin: true } }
      : undefined,
  },
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: ['chrome123', 'firefox121', 'safari17.5'],
    cssTarget: ['chrome123', 'firefox121', 'safari17.5'],
    // The site's policy allows no data: scripts, styles or fonts.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: {
      // What the first page loads anyway is one file, not one for each set of pages that share it.
      output: { codeSplitting: { groups: [{ name: 'index', tags: ['$initial'] }] } },
    },
    sourcemap: false,
  },
  test: {
    environment: 'jsdom',
    include: ['tests/**/*.test.ts', 'src/**/*.test.ts'],
    restoreMocks: true,
    testTimeout: 30_000,
  },
}));
