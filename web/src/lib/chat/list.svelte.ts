/** The list of conversations, as it was searched for. */

import * as api from '$lib/api/chat';
import type { ConversationSummary } from '$lib/api/types';

const PAGE = 60;

class ConversationList {
  all = $state.raw<ConversationSummary[]>([]);
  query = $state('');
  tag = $state('');
  isLoading = $state(false);
  hasFailed = $state(false);
  #next = $state<string | null>(null);
  #abort: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  get hasMore(): boolean {
    return this.#next !== null;
  }

  /** All that are in use, also in conversations that are not in the list yet. */
  tags = $state.raw<string[]>([]);

  /** @param isOther  whether another list is wanted, of which one page will do. */
  async load(isOther = false): Promise<void> {
    this.#abort?.abort();
    const abort = new AbortController();
    this.#abort = abort;
    this.isLoading = true;
    try {
      // As many as are shown, so that nothing jumps.
      const limit = isOther ? PAGE : Math.min(500, Math.max(PAGE, this.all.length));
      const page = await api.listConversations(
        { query: this.query.trim(), tag: this.tag, limit },
        abort.signal,
      );
      this.all = page.conversations;
      this.tags = page.tags;
      this.#next = page.next;
      this.hasFailed = false;
    } catch {
      if (!abort.signal.aborted) this.hasFailed = true;
    } finally {
      if (this.#abort === abort) this.isLoading = false;
    }
  }

  /** Load once the typing rests. */
  search(query: string): void {
    this.query = query;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.load(true), 200);
  }

  filter(tag: string): void {
    this.tag = tag;
    void this.load(true);
  }

  async more(): Promise<void> {
    if (this.#next === null || this.isLoading) return;
    this.isLoading = true;
    try {
      const query = { query: this.query.trim(), tag: this.tag, before: this.#next, limit: PAGE };
      const page = await api.listConversations(query);
      const known = new Set(this.all.map((one) => one.id));
      this.all = [...this.all, ...page.conversations.filter((one) => !known.has(one.id))];
      this.#next = page.next;
    } finally {
      this.isLoading = false;
    }
  }

  async change(id: string, change: api.ConversationChange): Promise<void> {
    await api.changeConversation(id, change);
    await this.load();
  }

  async remove(id: string): Promise<void> {
    await api.deleteConversation(id);
    const gone = this.all.find((one) => one.id === id);
    this.all = this.all.filter((one) => one !== gone);
    // Its tags may have been the last of theirs.
    if (gone?.tags.length) void this.load();
  }
}

export const conversations = new ConversationList();
