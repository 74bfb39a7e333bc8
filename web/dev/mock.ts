/** A server in memory for looking at the site: the same routes as the real one, none of its rules. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Connect, Plugin } from 'vite';
import { accountRoutes } from './mock/account.ts';
import { adminRoutes } from './mock/admin.ts';
import { chatRoutes } from './mock/chat.ts';
import { Fault, type Exchange, type Routes } from './mock/exchange.ts';
import { World } from './mock/world.ts';

/** As the real server sends it. */
const POLICY =
  "default-src 'self'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; " +
  "base-uri 'none'; form-action 'self'; object-src 'none'";

export function mockServer(): Plugin {
  return {
    name: 'mock-server',
    configureServer(server) {
      server.middlewares.use(middleware(new World()));
    },
    configurePreviewServer(server) {
      server.middlewares.use((_request, response, next) => {
        response.setHeader('Content-Security-Policy', POLICY);
        next();
      });
      server.middlewares.use(middleware(new World()));
    },
  };
}

function middleware(world: World): Connect.NextHandleFunction {
  const routes: Routes = { ...chatRoutes(world), ...accountRoutes(world), ...adminRoutes(world) };
  return (request, response, next) => {
    const url = new URL(request.url ?? '/', 'http://localhost');
    if (!url.pathname.startsWith('/api/')) {
      next();
      return;
    }
    void answer(routes, request, response, url);
  };
}

async function answer(
  routes: Routes,
  request: IncomingMessage,
  response: ServerResponse,
  url: URL,
): Promise<void> {
  try {
    for (const [pattern, handle] of Object.entries(routes)) {
      const [method, path = ''] = pattern.split(' ');
      const found = method === request.method && matches(path, url.pathname);
      if (!found) continue;
      const exchange: Exchange = {
        params: found,
        query: url.searchParams,
        body: (await readBody(request)) as never,
        request,
        response,
      };
      const result = await handle(exchange);
      if (response.headersSent) return;
      if (result === undefined) {
        response.statusCode = 204;
        response.end();
        return;
      }
      response.setHeader('Content-Type', 'application/json');
      response.end(JSON.stringify(result));
      return;
    }
    throw new Fault(404, `No route ${request.method} ${url.pathname}`);
  } catch (error) {
    const fault = error instanceof Fault ? error : new Fault(500, String(error));
    if (response.headersSent) return;
    response.statusCode = fault.status;
    response.setHeader('Content-Type', 'application/json');
    if (fault.status === 429) response.setHeader('Retry-After', '5');
    const { message, code } = fault;
    response.end(JSON.stringify({ error: { message, type: 'error', param: null, code } }));
  }
}

function matches(pattern: string, path: string): Record<string, string> | null {
  const names: string[] = [];
  const source = pattern.replace(/:(\w+)/g, (_, name: string) => {
    names.push(name);
    return '([^/]+)';
  });
  const found = new RegExp(`^${source}$`).exec(path);
  if (!found) return null;
  return Object.fromEntries(names.map((name, i) => [name, decodeURIComponent(found[i + 1]!)]));
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text ? JSON.parse(text) : {};
}
