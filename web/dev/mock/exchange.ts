import type { IncomingMessage, ServerResponse } from 'node:http';

export interface Exchange<Body = Record<string, never>> {
  params: Record<string, string>;
  query: URLSearchParams;
  body: Body;
  request: IncomingMessage;
  response: ServerResponse;
}

// Each route knows what its body is.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Routes = Record<string, (exchange: Exchange<any>) => unknown>;

export class Fault extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

export function sendEvent(response: ServerResponse, name: string, data: unknown): void {
  response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
}

export function openEvents(response: ServerResponse): void {
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
  response.write(': keep-alive\n\n');
}

export function sendFile(response: ServerResponse, name: string, type: string, text: string): void {
  response.writeHead(200, {
    'Content-Type': `${type}; charset=utf-8`,
    'Content-Disposition': `attachment; filename="${name}"`,
  });
  response.end(text);
}
