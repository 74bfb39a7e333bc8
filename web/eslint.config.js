import js from '@eslint/js';
import svelte from 'eslint-plugin-svelte';
import globals from 'globals';
import ts from 'typescript-eslint';

export default ts.config(
  { ignores: ['node_modules/', '../src/'] },
  js.configs.recommended,
  ...ts.configs.strict,
  ...svelte.configs.recommended,
  {
    languageOptions: { globals: { ...globals.browser, ...globals.node } },
    rules: {
      '@typescript-eslint/no-non-null-assertion': 'off',
      eqeqeq: 'error',
      '@typescript-eslint/no-unused-vars': ['error', { ignoreRestSiblings: true }],
      // Text becomes nodes through the Markdown component alone; nothing else takes HTML.
      'no-restricted-properties': [
        'error',
        { property: 'innerHTML', message: 'Build nodes, or use the Markdown component.' },
        { property: 'outerHTML', message: 'Build nodes, or use the Markdown component.' },
        { property: 'insertAdjacentHTML', message: 'Build nodes, or use the Markdown component.' },
      ],
    },
  },
  {
    files: ['**/*.svelte', '**/*.svelte.ts'],
    languageOptions: { parserOptions: { parser: ts.parser } },
    rules: {
      'svelte/no-at-html-tags': 'error',
      'svelte/no-inline-styles': ['error', { allowTransitions: true }],
      // The router is this project's own; its links are plain anchors.
      'svelte/no-navigation-without-resolve': 'off',
      // Maps that nothing is drawn from need not be reactive.
      'svelte/prefer-svelte-reactivity': 'off',
    },
  },
  {
    // Tests look at what was drawn.
    files: ['tests/**'],
    rules: { 'no-restricted-properties': 'off' },
  },
);
