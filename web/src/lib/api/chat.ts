/** The chat's routes. */

import { address, ApiError, failureOfEvent, request, send } from './http';
import { readEvents } from './events';
import type {
  Attachment,
  Conversation,
  ConversationSummary,
  Message,
  Model,
  Params,
  Preset,
  Site,
  Token,
  TokenUsage,
} from './types';

const CHAT = '/api/chat';
const conversation = (id: string) => `${CHAT}/conversations/${encodeURIComponent(id)}`;
const message = (id: string) => `${CHAT}/messages/${encodeURIComponent(id)}`;
const preset = (id: string) => `${CHAT}/presets/${encodeURIComponent(id)}`;

export interface ConversationChange {
  title?: string;
  tags?: string[];
  system?: string;
  params?: Params;
  leaf_id?: string;
  is_pinned?: boolean;
}

export interface ConversationPage {
  conversations: ConversationSummary[];
  next: string | null;
  /** Of all conversations. */
  tags: string[];
}

export const getSite = () => request<Site>('GET', '/api/site');

export const listModels = async () =>
  (await request<{ models: Model[] }>('GET', `${CHAT}/models`)).models;

export const listConversations = (
  query: { query?: string; tag?: string; before?: string; limit?: number },
  signal?: AbortSignal,
) => request<ConversationPage>('GET', `${CHAT}/conversations`, { query, signal });

export const createConversation = (body: {
  title?: string;
  system?: string;
  params?: Params;
  tags?: string[];
}) => request<Conversation>('POST', `${CHAT}/conversations`, { body });

export const getConversation = (id: string, signal?: AbortSignal) =>
  request<Conversation>('GET', conversation(id), { signal });

export const changeConversation = (id: string, body: ConversationChange) =>
  request<ConversationSummary>('PATCH', conversation(id), { body });

export const deleteConversation = (id: string) => request<undefined>('DELETE', conversation(id));

export const postMessage = (
  id: string,
  body: { parent_id: string | null; content: string; attachments?: Attachment[] },
) => request<{ user: Message; answer: Message }>('POST', `${conversation(id)}/messages`, { body });

const act = (verb: string) => async (id: string) =>
  (await request<{ answer: Message }>('POST', `${message(id)}/${verb}`)).answer;

export const regenerate = act('regenerate');
export const continueAnswer = act('continue');
export const stopAnswer = act('stop');

export const getTokens = async (id: string) =>
  (await request<{ tokens: Token[] }>('GET', `${message(id)}/tokens`)).tokens;

export const exportAddress = (id: string, format: 'json' | 'markdown') =>
  address(`${conversation(id)}/export`, { format });

export const exportAllAddress = `${CHAT}/export`;

export const importConversations = async (body: unknown) =>
  (await request<{ conversations: ConversationSummary[] }>('POST', `${CHAT}/import`, { body }))
    .conversations;

export const listPresets = async () =>
  (await request<{ presets: Preset[] }>('GET', `${CHAT}/presets`)).presets;

export const createPreset = (body: Omit<Preset, 'id'>) =>
  request<Preset>('POST', `${CHAT}/presets`, { body });

export const changePreset = (id: string, body: Partial<Omit<Preset, 'id'>>) =>
  request<Preset>('PATCH', preset(id), { body });

export const deletePreset = (id: string) => request<undefined>('DELETE', preset(id));

export interface Filled {
  usage: TokenUsage;
  finish: string | null;
}

/** Fill the middle; `onText` gets it as it comes. Aborting the signal stops the model too.
 *
 * What goes wrong after the first word is thrown as well: it comes as an event.
 */
export async function fill(
  body: { model: string; prefix: string; suffix: string; params?: Params },
  onText: (text: string) => void,
  signal: AbortSignal,
): Promise<Filled> {
  const response = await send('POST', `${CHAT}/fill`, {
    body,
    accept: 'text/event-stream',
    signal,
  });
  for await (const event of readEvents(response)) {
    if (event.name === 'error') throw failureOfEvent(event.data);
    if (event.name === 'done') return JSON.parse(event.data) as Filled;
    if (event.name === 'delta') onText((JSON.parse(event.data) as { text: string }).text);
  }
  throw new ApiError(0, 'The answer was cut off', 'offline');
}
