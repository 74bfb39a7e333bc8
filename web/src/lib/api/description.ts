/** The API's own description, in OpenAPI. */

import { request } from './http';

/** As much of a JSON schema as the description has. */
export interface Schema {
  $ref?: string;
  type?: string | string[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  items?: Schema;
  enum?: unknown[];
  const?: unknown;
  properties?: Record<string, Schema>;
  required?: string[];
}

export interface OpenApi {
  paths: Record<string, Record<string, OpenApiRoute>>;
  components: { schemas: Record<string, Schema> };
}

export interface OpenApiRoute {
  operationId: string;
  summary: string;
  requestBody?: { content: Record<string, { schema: Schema }> };
}

/** Where sessions open it too; programs with a key have it at `/openapi.json`. */
export const descriptionAddress = '/api/openapi.json';

export const getDescription = () => request<OpenApi>('GET', descriptionAddress);
