/** Keys that do something anywhere on the site. One table for what they do and for the help sheet. */

import type { Key } from './i18n/i18n.svelte';

export type Action =
  'new' | 'search' | 'sidebar' | 'settings' | 'compose' | 'copy' | 'regenerate' | 'help';

export interface Shortcut {
  action: Action;
  label: Key;
  key: string;
  /** With Control, or Command on a Mac. */
  isControl?: boolean;
  isShift?: boolean;
}

export const SHORTCUTS: Shortcut[] = [
  { action: 'new', label: 'shortcut.new', key: 'o', isControl: true, isShift: true },
  { action: 'search', label: 'shortcut.search', key: 'k', isControl: true },
  { action: 'compose', label: 'shortcut.compose', key: '/' },
  { action: 'sidebar', label: 'shortcut.sidebar', key: 's', isControl: true, isShift: true },
  { action: 'settings', label: 'shortcut.settings', key: '.', isControl: true },
  { action: 'copy', label: 'shortcut.copy', key: 'c', isControl: true, isShift: true },
  { action: 'regenerate', label: 'shortcut.regenerate', key: 'e', isControl: true, isShift: true },
  { action: 'help', label: 'shortcut.help', key: '?' },
];

/** Keys that belong to the field one types in. */
export const COMPOSER_KEYS: { keys: string[]; label: Key }[] = [
  { keys: ['Enter'], label: 'shortcut.send' },
  { keys: ['Shift', 'Enter'], label: 'shortcut.newline' },
  { keys: ['Esc'], label: 'shortcut.stop' },
  { keys: ['↑'], label: 'shortcut.edit' },
];

export function isMac(platform: string = navigator.platform): boolean {
  return /mac|iphone|ipad/i.test(platform);
}

/** The keys of a shortcut as they are printed on a keyboard. */
export function keysOf({ key, isControl, isShift }: Shortcut, onMac = isMac()): string[] {
  const keys = [key.toUpperCase()];
  if (isShift) keys.unshift(onMac ? '⇧' : 'Shift');
  if (isControl) keys.unshift(onMac ? '⌘' : 'Ctrl');
  return keys;
}

/** What a key press asks for; null if nothing. */
export function actionOf(event: KeyboardEvent, onMac = isMac()): Action | null {
  if (event.altKey || event.isComposing) return null;
  const isControl = onMac ? event.metaKey : event.ctrlKey;
  const isTyping = isEditable(event.target);
  const found = SHORTCUTS.find((shortcut) => {
    if (shortcut.key !== event.key.toLowerCase()) return false;
    if (Boolean(shortcut.isControl) !== isControl) return false;
    // `?` and `/` need Shift on some keyboards.
    if (shortcut.isControl) return Boolean(shortcut.isShift) === event.shiftKey;
    return !isTyping;
  });
  return found?.action ?? null;
}

function isEditable(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(target.tagName))
  );
}
