import { chat } from './en/chat';
import { docs } from './en/docs';
import { errors } from './en/errors';
import { platform } from './en/platform';
import { shell } from './en/shell';

export const en = { ...shell, ...chat, ...platform, ...docs, ...errors };
