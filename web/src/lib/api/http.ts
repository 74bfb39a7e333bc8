/** One place through which every request goes, and the one shape of what may go wrong. */

export class ApiError extends Error {
  constructor(
    /** The HTTP status; 0 where no answer came. */
    readonly status: number,
    message: string,
    /** A stable word for programs, or null. */
    readonly code: string | null = null,
    /** The field that is wrong, by its path in the body. */
    readonly param: string | null = null,
    /** Seconds after which to try again. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
    this.name = 'ApiError';
  }

  get isOffline(): boolean {
    return this.status === 0;
  }
}

export type Query = Record<string, string | number | boolean | null | undefined>;

export interface RequestOptions {
  query?: Query;
  body?: unknown;
  signal?: AbortSignal;
  accept?: string;
}

/** Where a 401 means that the password was wrong, whoever asks. */
const ASKS_PASSWORD = new Set(['/api/account/log-in', '/api/account/password']);

type Listener = () => void;
const listeners = new Set<Listener>();

/** Be told when the server no longer knows who one is. */
export function onSignedOut(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function address(path: string, query: Query = {}): string {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== '') params.set(name, String(value));
  }
  const text = params.toString();
  return text ? `${path}?${text}` : path;
}

/** Ask, and return the answer once its status is known to be good. */
export async function send(
  method: string,
  path: string,
  { query, body, signal, accept = 'application/json' }: RequestOptions = {},
): Promise<Response> {
  const headers: Record<string, string> = { Accept: accept };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let response: Response;
  try {
    response = await fetch(address(path, query), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: 'same-origin',
      cache: 'no-store',
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, error instanceof Error ? error.message : String(error), 'offline');
  }
  if (response.ok) return response;
  const failure = await readFailure(response);
  if (failure.status === 401 && !ASKS_PASSWORD.has(path)) {
    for (const listener of listeners) listener();
  }
  throw failure;
}

/** Ask for JSON. */
export async function request<T>(
  method: string,
  path: string,
  options?: RequestOptions,
): Promise<T> {
  const response = await send(method, path, options);
  if (response.status === 204) return undefined as T;
  try {
    return (await response.json()) as T;
  } catch {
    throw new ApiError(0, 'The answer was cut off', 'offline');
  }
}

interface Failure {
  error: { message?: string; type?: string; code?: string | null; param?: string | null };
}

async function readFailure(response: Response): Promise<ApiError> {
  const wait = Number.parseInt(response.headers.get('Retry-After') ?? '', 10);
  const after = Number.isFinite(wait) ? wait : null;
  try {
    const { error } = (await response.json()) as Failure;
    const message = error.message ?? response.statusText;
    return new ApiError(response.status, message, error.code ?? null, error.param ?? null, after);
  } catch {
    // A proxy in between answers in its own words.
    const message = response.statusText || `HTTP ${response.status}`;
    return new ApiError(response.status, message, null, null, after);
  }
}

/** The types whose statuses say more than that something failed. */
const STATUS_OF: Record<string, number> = {
  invalid_request_error: 400,
  insufficient_balance_error: 402,
  rate_limit_error: 429,
  overloaded_error: 503,
};

/** What an answer failed with whose status was good: its stream ends with an `error` event. */
export function failureOfEvent(data: string): ApiError {
  const { error } = JSON.parse(data) as Failure;
  const status = STATUS_OF[error.type ?? ''] ?? 500;
  return new ApiError(status, error.message ?? '', error.code ?? null, error.param ?? null);
}
