import type { Catalogue } from './i18n.svelte';
import { chat } from './zh/chat';
import { docs } from './zh/docs';
import { errors } from './zh/errors';
import { platform } from './zh/platform';
import { shell } from './zh/shell';

export const zh: Catalogue = { ...shell, ...chat, ...platform, ...docs, ...errors };
