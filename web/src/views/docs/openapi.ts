/** From the server's OpenAPI description to what a reader of the API wants to know. */

import type { OpenApi, OpenApiRoute, Schema } from '$lib/api/description';

export interface Parameter {
  name: string;
  type: string;
  isRequired: boolean;
}

export interface Operation {
  /** The server's name of it, under which it has its words. */
  name: string;
  method: string;
  path: string;
  /** Other addresses of the same. */
  aliases: string[];
  parameters: Parameter[];
}

/** What is for programs with a key: all but the site's own routes. */
export function operationsOf(api: OpenApi): Operation[] {
  const found = new Map<string, Operation>();
  for (const [path, methods] of Object.entries(api.paths)) {
    if (path.startsWith('/api/')) continue;
    for (const [method, route] of Object.entries(methods)) {
      const name = nameOf(route);
      const known = found.get(name);
      if (known) known.aliases.push(path);
      else {
        const parameters = parametersOf(route, api.components.schemas);
        found.set(name, { name, method: method.toUpperCase(), path, aliases: [], parameters });
      }
    }
  }
  return [...found.values()].map(withMainAddress).sort((a, b) => rankOf(a) - rankOf(b));
}

/** `Create Chat Completion` is what the server calls `create_chat_completion`. */
export function nameOf(route: OpenApiRoute): string {
  return route.summary.toLowerCase().replaceAll(' ', '_');
}

/** The address that clients use comes first: the one with the version. */
function withMainAddress(operation: Operation): Operation {
  const all = [operation.path, ...operation.aliases];
  const path = all.find((address) => address.startsWith('/v1/')) ?? operation.path;
  return { ...operation, path, aliases: all.filter((address) => address !== path) };
}

/** What answers comes before what tells of it, and what operators ask last. */
function rankOf({ method, path }: Operation): number {
  if (method === 'POST') return /tokenize|count_tokens/.test(path) ? 1 : 0;
  return path.startsWith('/v1/') ? 2 : 3;
}

function parametersOf(route: OpenApiRoute, schemas: Record<string, Schema>): Parameter[] {
  const given = route.requestBody?.content['application/json']?.schema;
  const body = given && resolved(given, schemas);
  const required = new Set(body?.required);
  return Object.entries(body?.properties ?? {})
    .map(([name, schema]) => ({
      name,
      type: typeOf(schema, schemas),
      isRequired: required.has(name),
    }))
    .sort((a, b) => Number(b.isRequired) - Number(a.isRequired));
}

function resolved(schema: Schema, schemas: Record<string, Schema>): Schema {
  const name = schema.$ref?.split('/').at(-1);
  return (name ? schemas[name] : undefined) ?? schema;
}

/** More words than this are a kind of text rather than a choice. */
const MOST_CHOICES = 4;

/** A short name of a type, such as `string | integer[]`; that a value may be null goes unsaid. */
export function typeOf(schema: Schema, schemas: Record<string, Schema>): string {
  const { type, anyOf, oneOf, items, enum: choices, const: only } = resolved(schema, schemas);
  const kinds = anyOf ?? oneOf;
  if (kinds) {
    const names = kinds.map((kind) => typeOf(kind, schemas)).filter((name) => name !== 'null');
    return [...new Set(names)].join(' | ');
  }
  if (only !== undefined) return JSON.stringify(only);
  if (choices) {
    return choices.length > MOST_CHOICES
      ? 'string'
      : choices.map((choice) => JSON.stringify(choice)).join(' | ');
  }
  if (type === 'array') {
    const inner = items ? typeOf(items, schemas) : 'any';
    return inner.includes(' ') ? `(${inner})[]` : `${inner}[]`;
  }
  return typeof type === 'string' ? type : 'object';
}
