/** A conversation is a tree: an edit or another answer is a sibling. One path of it is shown. */

export interface Node {
  id: string;
  parent_id: string | null;
  created_at: number;
}

/** Messages from the first to the leaf. */
export function pathTo<T extends Node>(messages: readonly T[], leaf: string | null): T[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path: T[] = [];
  // Each is taken out as it is passed: a loop in bad data must not hang the page.
  for (let at = leaf === null ? undefined : byId.get(leaf); at;) {
    path.push(at);
    byId.delete(at.id);
    at = at.parent_id === null ? undefined : byId.get(at.parent_id);
  }
  return path.reverse();
}

/** Messages that answer the same one, in the order in which they came. */
export function siblingsOf<T extends Node>(messages: readonly T[], message: T): T[] {
  return messages.filter((one) => one.parent_id === message.parent_id).sort(byAge);
}

/** The end of the branch through a message that was written last. */
export function newestLeaf<T extends Node>(messages: readonly T[], from: string): string {
  const children = new Map<string, T[]>();
  for (const message of messages) {
    if (message.parent_id === null) continue;
    const known = children.get(message.parent_id);
    if (known) known.push(message);
    else children.set(message.parent_id, [message]);
  }
  const reached = new Set<string>();
  let at = from;
  while (!reached.has(at)) {
    reached.add(at);
    const next = children.get(at)?.sort(byAge).at(-1);
    if (!next) break;
    at = next.id;
  }
  return at;
}

function byAge(a: Node, b: Node): number {
  return a.created_at - b.created_at || (a.id < b.id ? -1 : 1);
}
