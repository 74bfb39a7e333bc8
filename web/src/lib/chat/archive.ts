/** Adding the conversations of an export, in as many requests as the server's bound asks for. */

import { ApiError } from '$lib/api/http';
import type { ConversationSummary } from '$lib/api/types';

/** Bytes of a request: few enough to see how far it is, and below what servers bound bodies to. */
export const GROUP_BYTES = 1 << 20;

export interface Entry {
  value: unknown;
  /** May be empty. */
  title: string;
  /** Of its JSON in UTF-8, with the comma behind it. */
  bytes: number;
}

export interface Refusal {
  entry: Entry;
  error: ApiError;
}

export interface Outcome {
  added: ConversationSummary[];
  refused: Refusal[];
  /** How many were not tried. */
  left: number;
  /** Why they were not, where nobody called it off. */
  cause: ApiError | null;
}

export interface Course {
  add: (conversations: unknown[]) => Promise<ConversationSummary[]>;
  /** How many are settled: added or refused. */
  onProgress?: (settled: number) => void;
  /** Ends it before the next request; what is under way is waited for. */
  isOver?: () => boolean;
}

/** The line from which on a file of Markdown is a conversation, as the server writes it. */
const MARKDOWN = /^<!-- dsv2(-\d+)? chat .*-->\r?$/m;

/** What an exported file has: JSON as it is, Markdown as JSON that holds it; else nothing. */
export function contentOf(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return MARKDOWN.test(text) ? { conversations: [{ markdown: text }] } : undefined;
  }
}

/** Conversations in their order, as many together as stay within `most` bytes, and at least one. */
export function group(conversations: readonly unknown[], most = GROUP_BYTES): Entry[][] {
  const encoder = new TextEncoder();
  const groups: Entry[][] = [];
  let room = 0;
  for (const value of conversations) {
    const bytes = encoder.encode(JSON.stringify(value)).length + 1;
    if (groups.length === 0 || bytes > room) {
      groups.push([]);
      room = most;
    }
    groups.at(-1)!.push({ value, title: titleOf(value), bytes });
    room -= bytes;
  }
  return groups;
}

/** Add every conversation that the server takes.
 *
 * The server adds the conversations of a request all or none: the one that it names is left out,
 * and where it names none the request is cut in two. What concerns no conversation ends it.
 */
export async function addAll(conversations: readonly unknown[], course: Course): Promise<Outcome> {
  const waiting = group(conversations);
  const outcome: Outcome = { added: [], refused: [], left: 0, cause: null };
  while (waiting.length > 0 && !course.isOver?.()) {
    const now = waiting[0]!;
    try {
      outcome.added.push(...(await course.add(now.map((entry) => entry.value))));
      waiting.shift();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const place = placeOf(error, now.length);
      if (place === 'none') {
        outcome.cause = error;
        break;
      }
      if (place === 'any') {
        const middle = now.length >> 1;
        waiting.splice(0, 1, now.slice(0, middle), now.slice(middle));
        continue;
      }
      outcome.refused.push({ entry: now[place]!, error });
      const others = now.filter((_, i) => i !== place);
      waiting.splice(0, 1, ...(others.length > 0 ? [others] : []));
    }
    course.onProgress?.(outcome.added.length + outcome.refused.length);
  }
  outcome.left = waiting.reduce((sum, entries) => sum + entries.length, 0);
  return outcome;
}

/** Which of so many conversations an error is about. */
function placeOf(error: ApiError, of: number): number | 'any' | 'none' {
  const isTooLarge = error.status === 413;
  if (!isTooLarge && error.status !== 400 && error.status !== 422) return 'none';
  const place = Number(/^conversations\[(\d+)\]/.exec(error.param ?? '')?.[1] ?? NaN);
  if (place < of) return place;
  if (!isTooLarge && error.param !== null) return 'none';
  return of > 1 ? 'any' : 0;
}

/** What is wrong with a conversation, without its place in a request that nobody saw. */
export function reasonOf(error: ApiError): string {
  return error.message.replace(/conversations\[\d+\](\.|: )/g, '');
}

function titleOf(value: unknown): string {
  const { title, markdown } = Object(value) as { title?: unknown; markdown?: unknown };
  if (typeof markdown === 'string') return /^# (.*)$/m.exec(markdown)?.[1]?.trim() ?? '';
  return typeof title === 'string' ? title : '';
}
