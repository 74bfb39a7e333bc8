import { chat } from './en/chat';
import { platform } from './en/platform';
import { shell } from './en/shell';

export const en = { ...shell, ...chat, ...platform };
