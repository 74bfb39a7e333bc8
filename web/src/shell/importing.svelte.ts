/** Reading exported conversations back in. */

import { importConversations } from '$lib/api/chat';
import { ApiError } from '$lib/api/http';
import { addAll, contentOf, reasonOf, type Outcome, type Refusal } from '$lib/chat/archive';
import { conversations } from '$lib/chat/list.svelte';
import { megabytes } from '$lib/format';
import { locale, t, tn } from '$lib/i18n/i18n.svelte';
import { router } from '$lib/router/router.svelte';
import { complain } from '$lib/state/loading.svelte';
import { toasts } from '$lib/state/toasts.svelte';

class Importing {
  /** Of the file that is being read in; 0 where there is none. */
  total = $state(0);
  settled = $state(0);
  isCalledOff = $state(false);
  /** What a person must hear of: something did not come in. */
  outcome = $state.raw<Outcome | null>(null);

  #last: Promise<void> = Promise.resolve();

  /** Not for what one request does. */
  get isLong(): boolean {
    return this.total > 0 && this.settled > 0 && this.settled < this.total;
  }

  /** Add what is in a file, after the files before it. */
  read(file: File): Promise<void> {
    return (this.#last = this.#last.catch(() => {}).then(() => this.#read(file)));
  }

  async #read(file: File): Promise<void> {
    const content = contentOf(await file.text());
    if (content === undefined) {
      toasts.error(t('import.unknown', { name: file.name }));
      return;
    }
    try {
      await this.#add(content);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      complain(error);
    } finally {
      this.total = this.settled = 0;
      this.isCalledOff = false;
    }
  }

  async #add(content: unknown): Promise<void> {
    const all = conversationsOf(content);
    if (all === null) {
      // The server has the words for what is wrong with it.
      await importConversations(content);
      return;
    }
    this.total = all.length;
    const outcome = await addAll(all, {
      add: (some) => importConversations({ ...(content as object), conversations: some }),
      onProgress: (settled) => (this.settled = settled),
      isOver: () => this.isCalledOff,
    });
    const { added, refused, left, cause } = outcome;
    if (added.length > 0) await conversations.load();
    if (all.length === 1 && refused.length === 1) {
      toasts.error(refusalOf(refused[0]!));
    } else if (added.length === 0 && refused.length === 0 && cause !== null) {
      complain(cause);
    } else if (refused.length > 0 || (left > 0 && cause !== null)) {
      this.outcome = outcome;
    } else {
      toasts.done(tn('import.done', added.length));
      if (all.length === 1 && added.length === 1) router.go(`/c/${added[0]!.id}`);
    }
  }
}

export const importing = new Importing();

/** A conversation and why it did not come in. */
export function refusalOf({ entry, error }: Refusal): string {
  const title = entry.title || t('chat.untitled');
  if (error.status !== 413) return t('import.refused', { title, reason: reasonOf(error) });
  return t('import.tooLarge', { title, size: megabytes(entry.bytes, locale()) });
}

function conversationsOf(content: unknown): unknown[] | null {
  if (Object(content) !== content) return null;
  const all = (content as { conversations?: unknown }).conversations;
  return Array.isArray(all) ? (all as unknown[]) : null;
}
