/** Reads a running answer to its end across lost connections. */

import { dropCodePoints } from '$lib/chat/codePoints';
import { ApiError, send } from './http';
import { readEvents } from './events';
import type { Delta, Message, Token } from './types';

export type FollowState = 'open' | 'waiting';

export interface Follower {
  /** How many characters, as Unicode counts them, are known so far. */
  length(): number;
  onText(text: string, tokens: Token[] | undefined, count: number): void;
  onDone(message: Message): void;
  /** The connection came, or was lost and is tried again. */
  onState(state: FollowState): void;
  /** The server refused for good; trying again would not help. */
  onRefused(error: ApiError): void;
}

export interface Timing {
  /** Waits before the nth attempt in a row that brought nothing. */
  backoff(attempt: number): number;
  sleep(milliseconds: number, signal: AbortSignal): Promise<void>;
}

/** Half a second, doubled each time, at most eight. */
export const backoff = (attempt: number): number => Math.min(8000, 500 * 2 ** attempt);

/** Waits, but not past the moment in which the network or the page comes back. */
export function sleepUntilBack(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const onVisible = () => document.visibilityState === 'visible' && wake();
    const wake = () => {
      clearTimeout(timer);
      window.removeEventListener('online', wake);
      document.removeEventListener('visibilitychange', onVisible);
      signal.removeEventListener('abort', wake);
      resolve();
    };
    const timer = setTimeout(wake, milliseconds);
    window.addEventListener('online', wake);
    document.addEventListener('visibilitychange', onVisible);
    signal.addEventListener('abort', wake);
  });
}

/** What of a delta is new to somebody who knows `length` characters; null if there is a gap. */
export function newPart(delta: Delta, length: number): string | null {
  if (delta.at > length) return null;
  return dropCodePoints(delta.text, length - delta.at);
}

export async function follow(
  id: string,
  follower: Follower,
  signal: AbortSignal,
  timing: Timing = { backoff, sleep: sleepUntilBack },
): Promise<void> {
  for (let attempt = 0; !signal.aborted;) {
    const before = follower.length();
    try {
      const response = await send('GET', `/api/chat/messages/${encodeURIComponent(id)}/events`, {
        query: { from: before },
        accept: 'text/event-stream',
        signal,
      });
      follower.onState('open');
      for await (const event of readEvents(response)) {
        if (signal.aborted) return;
        if (event.name === 'done') {
          follower.onDone(JSON.parse(event.data) as Message);
          return;
        }
        if (event.name !== 'delta') continue;
        const delta = JSON.parse(event.data) as Delta;
        const text = newPart(delta, follower.length());
        // Something was missed: ask again from where we are.
        if (text === null) break;
        if (text || delta.tokens) follower.onText(text, delta.tokens, delta.count ?? 0);
        attempt = 0;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && !isWorthWaiting(error)) {
        follower.onRefused(error);
        return;
      }
    }
    if (signal.aborted) return;
    follower.onState('waiting');
    await timing.sleep(timing.backoff(attempt++), signal);
  }
}

function isWorthWaiting(error: ApiError): boolean {
  return error.isOffline || error.status === 429 || error.status >= 500;
}
