/** What this browser remembers about how the site should look. */

import { setLocale, systemLocale, type Locale } from '$lib/i18n/i18n.svelte';

export type Theme = 'system' | 'light' | 'dark';

function read(name: string): string | null {
  try {
    return localStorage.getItem(`dsv2.${name}`);
  } catch {
    // Storage may be forbidden; then nothing is remembered, and all else works.
    return null;
  }
}

function write(name: string, value: string): void {
  try {
    localStorage.setItem(`dsv2.${name}`, value);
  } catch {
    // As above.
  }
}

function oneOf<T extends string>(value: string | null, allowed: readonly T[], otherwise: T): T {
  return allowed.find((one) => one === value) ?? otherwise;
}

class Prefs {
  theme = $state<Theme>(oneOf(read('theme'), ['system', 'light', 'dark'] as const, 'system'));
  isSidebarOpen = $state(read('sidebar') !== 'closed');
  showsUsage = $state(read('usage') === 'yes');
  locale = $state<Locale>(oneOf(read('locale'), ['en', 'zh'] as const, systemLocale()));

  setTheme(theme: Theme): void {
    this.theme = theme;
    write('theme', theme);
    if (theme === 'system') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = theme;
  }

  async setLocale(locale: Locale): Promise<void> {
    await setLocale(locale);
    this.locale = locale;
    write('locale', locale);
  }

  setSidebar(isOpen: boolean): void {
    this.isSidebarOpen = isOpen;
    write('sidebar', isOpen ? 'open' : 'closed');
  }

  setUsage(isShown: boolean): void {
    this.showsUsage = isShown;
    write('usage', isShown ? 'yes' : 'no');
  }

  /** The model that was chosen last, for the next conversation. */
  get model(): string | null {
    return read('model');
  }

  set model(name: string | null) {
    write('model', name ?? '');
  }
}

export const prefs = new Prefs();
