import { describe, expect, test } from 'vitest';
import type { OpenApi, Schema } from '$lib/api/description';
import { examplesFor } from '../../src/views/docs/examples';
import { operationsOf, typeOf } from '../../src/views/docs/openapi';

const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` });
const route = (summary: string, body?: string) => ({
  operationId: 'x',
  summary,
  ...(body && { requestBody: { content: { 'application/json': { schema: ref(body) } } } }),
});

const SCHEMAS: Record<string, Schema> = {
  Body: {
    type: 'object',
    required: ['messages'],
    properties: {
      seed: { anyOf: [{ type: 'integer' }, { type: 'null' }] },
      messages: { type: 'array', items: ref('Said') },
    },
  },
  Said: { type: 'object' },
  Choice: { enum: ['none', 'auto'] },
};

const API: OpenApi = {
  paths: {
    '/api/account/me': { get: route('Me') },
    '/health': { get: route('Health') },
    '/models': { get: route('List Models') },
    '/chat/completions': { post: route('Create Chat Completion', 'Body') },
    '/v1/chat/completions': { post: route('Create Chat Completion', 'Body') },
    '/v1/models': { get: route('List Models') },
  },
  components: { schemas: SCHEMAS },
};

test('each route is there once, the site’s own are not, and what answers comes first', () => {
  expect(operationsOf(API).map(({ name, path, aliases }) => [name, path, aliases])).toEqual([
    ['create_chat_completion', '/v1/chat/completions', ['/chat/completions']],
    ['list_models', '/v1/models', ['/models']],
    ['health', '/health', []],
  ]);
});

test('parameters have a type, and those that must be given come first', () => {
  expect(operationsOf(API)[0]!.parameters).toEqual([
    { name: 'messages', type: 'object[]', isRequired: true },
    { name: 'seed', type: 'integer', isRequired: false },
  ]);
});

describe('the name of a type', () => {
  test.each<[Schema, string]>([
    [{ type: 'string' }, 'string'],
    [{ anyOf: [{ type: 'string' }, { type: 'null' }] }, 'string'],
    [
      { anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'string' } }] },
      'string | string[]',
    ],
    [{ type: 'array', items: { anyOf: [{ type: 'string' }, ref('Said')] } }, '(string | object)[]'],
    [ref('Choice'), '"none" | "auto"'],
    [{ const: 'function' }, '"function"'],
    [{ enum: ['a', 'b', 'c', 'd', 'e'] }, 'string'],
    [ref('Missing'), 'object'],
  ])('%j', (schema, name) => expect(typeOf(schema, SCHEMAS)).toBe(name));
});

test('examples hold names with quotes as their languages write them', () => {
  const [shell, python] = examplesFor('http://here', `it's "x"`, 'sk-...');
  expect(shell!.text).toContain(`"model":"it'\\''s \\"x\\""`);
  expect(shell!.text).toContain("'Authorization: Bearer sk-...'");
  expect(python!.text).toContain(`model="it's \\"x\\""`);
});
