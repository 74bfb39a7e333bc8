/** Reading exported conversations back in. */

import { importConversations } from '$lib/api/chat';
import { ApiError } from '$lib/api/http';
import { conversations } from '$lib/chat/list.svelte';
import { megabytes } from '$lib/format';
import { locale, t, tn } from '$lib/i18n/i18n.svelte';
import { router } from '$lib/router/router.svelte';
import { wordsOf } from '$lib/state/loading.svelte';
import { toasts } from '$lib/state/toasts.svelte';

export async function importFile(file: File): Promise<void> {
  let content: unknown;
  try {
    content = JSON.parse(await file.text());
  } catch {
    toasts.error(t('list.notJson', { name: file.name }));
    return;
  }
  try {
    const made = await importConversations(content);
    toasts.done(tn('list.imported', made.length));
    await conversations.load();
    if (made.length === 1) router.go(`/c/${made[0]!.id}`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    // An archive is one request, whose size is bounded.
    const isTooLarge = error.status === 413;
    const size = megabytes(file.size, locale());
    toasts.error(isTooLarge ? t('list.tooLarge', { name: file.name, size }) : wordsOf(error));
  }
}
