/** What can be done with a conversation, in the list and in its own header. */

import { exportAddress, type ConversationChange } from '$lib/api/chat';
import type { ConversationSummary } from '$lib/api/types';
import { conversations } from '$lib/chat/list.svelte';
import { parseTags } from '$lib/chat/tags';
import { t } from '$lib/i18n/i18n.svelte';
import { router } from '$lib/router/router.svelte';
import { asking } from '$lib/state/asking.svelte';
import { attempt } from '$lib/state/loading.svelte';
import type { MenuItem } from '$lib/ui/Menu.svelte';

type Subject = Pick<ConversationSummary, 'id' | 'title' | 'tags' | 'is_pinned'>;
type Change = (id: string, change: ConversationChange) => Promise<void>;

/** @param change  how a change is made; the open conversation must know of it too. */
export function conversationMenu(
  subject: Subject,
  change: Change = (id, what) => conversations.change(id, what),
): MenuItem[] {
  const { id } = subject;
  const save = async (what: ConversationChange) => void (await attempt(() => change(id, what)));
  return [
    { label: t('list.rename'), icon: 'edit', onselect: () => void rename(subject, save) },
    {
      label: subject.is_pinned ? t('list.unpin') : t('list.pin'),
      icon: 'pin',
      onselect: () => void save({ is_pinned: !subject.is_pinned }),
    },
    { label: t('list.editTags'), icon: 'tag', onselect: () => void editTags(subject, save) },
    {
      label: t('list.exportMarkdown'),
      icon: 'download',
      isApart: true,
      href: exportAddress(id, 'markdown'),
      download: true,
    },
    {
      label: t('list.exportJson'),
      icon: 'download',
      href: exportAddress(id, 'json'),
      download: true,
    },
    {
      label: t('list.delete'),
      icon: 'trash',
      isApart: true,
      isDanger: true,
      onselect: () => void remove(subject),
    },
  ];
}

type Save = (change: ConversationChange) => Promise<void>;

async function rename(subject: Subject, save: Save): Promise<void> {
  const title = await asking.ask({
    title: t('list.rename'),
    label: t('list.title'),
    action: t('dialog.save'),
    value: subject.title,
    most: 200,
  });
  if (title) await save({ title });
}

async function editTags(subject: Subject, save: Save): Promise<void> {
  const text = await asking.ask({
    title: t('list.editTags'),
    label: t('list.tags'),
    hint: t('list.tagsHint'),
    action: t('dialog.save'),
    value: subject.tags.join(', '),
    most: 1000,
  });
  if (text !== null) await save({ tags: parseTags(text) });
}

async function remove(subject: Subject): Promise<void> {
  const isSure = await asking.confirm({
    title: t('list.deleteTitle'),
    text: t('list.deleteText', { title: subject.title || t('chat.untitled') }),
    action: t('list.delete'),
    isDanger: true,
  });
  if (!isSure) return;
  await attempt(async () => {
    await conversations.remove(subject.id);
    if (router.path === `/c/${subject.id}`) router.go('/', { replaces: true });
  });
}
