/** The conversation that is open: its tree of messages and what one can do with them. */

import * as api from '$lib/api/chat';
import { ApiError } from '$lib/api/http';
import type { Attachment, Conversation, Message, Params } from '$lib/api/types';
import { ShownMessage } from './message.svelte';
import { newestLeaf, pathTo, siblingsOf } from './tree';

export interface Draft {
  parent: string | null;
  content: string;
  attachments: Attachment[];
}

function says(message: Message, { parent, content }: Draft): boolean {
  return message.role === 'user' && message.parent_id === parent && message.content === content;
}

export class OpenConversation {
  readonly id: string;
  title = $state('');
  tags = $state.raw<string[]>([]);
  isPinned = $state(false);
  system = $state('');
  params = $state.raw<Params>({});
  leaf = $state<string | null>(null);
  messages = $state.raw<ShownMessage[]>([]);
  /** On its way to the server. */
  pending = $state.raw<Draft | null>(null);
  /** What the last thing that was asked for failed with, and how to ask again. */
  trouble = $state.raw<{ error: ApiError; retry: () => Promise<void>; draft: Draft | null } | null>(
    null,
  );

  readonly path = $derived(pathTo(this.messages, this.leaf));
  readonly last = $derived(this.path.at(-1));
  readonly isBusy = $derived(this.pending !== null || (this.last?.isRunning ?? false));

  /** @param onChange  told when the list of conversations should be read again. */
  constructor(
    whole: Conversation,
    private readonly onChange: () => void = () => undefined,
  ) {
    this.id = whole.id;
    this.#take(whole);
    this.#followAll();
  }

  /** Read it again: another page may have changed it. */
  async refresh(): Promise<void> {
    const asked = performance.now();
    const whole = await api.getConversation(this.id);
    if (this.pending) return;
    this.#take(whole, asked);
    this.#followAll();
  }

  close(): void {
    for (const message of this.messages) message.leave();
  }

  siblings(message: ShownMessage): ShownMessage[] {
    return siblingsOf(this.messages, message);
  }

  /** Show the branch through a message. */
  async show(message: ShownMessage): Promise<void> {
    await this.#moveTo(newestLeaf(this.messages, message.id));
  }

  async send(content: string, attachments: Attachment[]): Promise<void> {
    await this.#post({ parent: this.leaf, content, attachments });
  }

  /** Say it another way: a sibling of the message, with an answer of its own. */
  async edit(message: ShownMessage, content: string): Promise<void> {
    const { parent_id: parent, attachments } = message;
    await this.#post({ parent, content, attachments });
  }

  async regenerate(message: ShownMessage): Promise<void> {
    await this.#try(async () => this.#add(await api.regenerate(message.id)));
  }

  /** Let an answer that ended too early go on. */
  async continue(message: ShownMessage): Promise<void> {
    await this.#try(async () => {
      message.take(await api.continueAnswer(message.id));
      message.follow(this.onChange);
    });
  }

  async stop(): Promise<void> {
    const message = this.last;
    if (!message?.isRunning) return;
    // The stream ends by itself then, with the message as it was kept.
    await this.#try(async () => void (await api.stopAnswer(message.id)));
  }

  async change(change: api.ConversationChange): Promise<void> {
    const now = await api.changeConversation(this.id, change);
    this.title = now.title;
    this.tags = now.tags;
    this.isPinned = now.is_pinned;
    if (change.system !== undefined) this.system = change.system;
    if (change.params !== undefined) this.params = change.params;
    this.onChange();
  }

  async #post(draft: Draft): Promise<void> {
    this.pending = draft;
    const known = new Set(this.messages.map(({ id }) => id));
    const action = async () => {
      const { parent: parent_id, content, attachments } = draft;
      const { user, answer } = await api.postMessage(this.id, {
        parent_id,
        content,
        ...(attachments.length > 0 ? { attachments } : {}),
      });
      this.messages = [...this.messages, new ShownMessage(user)];
      this.#add(answer);
      if (!this.title) void this.refresh().catch(() => undefined);
      this.onChange();
    };
    await this.#try(action, { draft, again: () => this.#postAgain(draft, known) });
    this.pending = null;
  }

  /** A connection that broke may have lost the answer alone: what did arrive is not said twice. */
  async #postAgain(draft: Draft, known: Set<string>): Promise<void> {
    const { trouble } = this;
    this.trouble = null;
    this.pending = draft;
    if (trouble?.error.isOffline) {
      try {
        const whole = await api.getConversation(this.id);
        if (whole.messages.some((message) => !known.has(message.id) && says(message, draft))) {
          this.pending = null;
          this.#take(whole);
          this.#followAll();
          return;
        }
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.isOffline) {
          this.pending = null;
          this.trouble = { ...trouble, error };
          return;
        }
      }
    }
    await this.#post(draft);
  }

  async #try(
    action: () => Promise<void>,
    posting: { draft: Draft; again: () => Promise<void> } | null = null,
  ): Promise<void> {
    this.trouble = null;
    try {
      await action();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const retry = posting?.again ?? (() => this.#try(action));
      this.trouble = { error, retry, draft: posting?.draft ?? null };
    }
  }

  #add(answer: Message): void {
    const shown = new ShownMessage(answer);
    this.messages = [...this.messages, shown];
    this.leaf = shown.id;
    shown.follow(this.onChange);
  }

  async #moveTo(leaf: string): Promise<void> {
    const before = this.leaf;
    this.leaf = leaf;
    try {
      await api.changeConversation(this.id, { leaf_id: leaf });
    } catch (error) {
      // Shown all the same; only the next visit begins at the other branch.
      if (!(error instanceof ApiError)) this.leaf = before;
    }
  }

  /** @param asked  when; what a message has heard since is newer. */
  #take(whole: Conversation, asked = performance.now()): void {
    this.title = whole.title;
    this.tags = whole.tags;
    this.isPinned = whole.is_pinned;
    this.system = whole.system;
    this.params = whole.params;
    const known = new Map(this.messages.map((message) => [message.id, message]));
    this.messages = whole.messages.map((message) => {
      const shown = known.get(message.id);
      if (!shown) return new ShownMessage(message);
      if (!shown.isNewerThan(asked)) shown.take(message);
      return shown;
    });
    const last = whole.messages.at(-1);
    this.leaf = whole.leaf_id ?? (last ? newestLeaf(this.messages, last.id) : null);
  }

  #followAll(): void {
    for (const message of this.messages) message.follow(this.onChange);
  }
}
