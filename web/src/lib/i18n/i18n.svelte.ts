/** The site's texts in the language that was chosen. English is built in, others come as needed. */

import { en } from './en';

export type Catalogue = Record<keyof typeof en, string>;
export type Key = keyof typeof en;
/** Keys that have a form for one and a form for others. */
export type PluralKey = Key extends infer K ? (K extends `${infer P}.other` ? P : never) : never;
export type Locale = 'en' | 'zh';
export type Values = Record<string, string | number>;

export const LOCALES: Record<Locale, string> = { en: 'English', zh: '中文' };

let catalogue = $state.raw<Catalogue>(en);
let current = $state<Locale>('en');

export function systemLocale(languages: readonly string[] = navigator.languages): Locale {
  for (const language of languages) {
    if (language.startsWith('zh')) return 'zh';
    if (language.startsWith('en')) return 'en';
  }
  return 'en';
}

export async function setLocale(locale: Locale): Promise<void> {
  catalogue = locale === 'zh' ? (await import('./zh')).zh : en;
  current = locale;
  document.documentElement.lang = locale === 'zh' ? 'zh-CN' : 'en';
}

export function locale(): Locale {
  return current;
}

/** A text, with `{name}` replaced by the value of that name. */
export function t(key: Key, values?: Values): string {
  return fillIn(catalogue[key], values);
}

/** A text for a number, `{n}`. */
export function tn(key: PluralKey, n: number, values?: Values): string {
  const form = new Intl.PluralRules(current).select(n) === 'one' ? 'one' : 'other';
  return fillIn(catalogue[`${key}.${form}` as Key], { n: n.toLocaleString(current), ...values });
}

/** One of the server's words, such as a state; one that has no text stays as it is. */
export function word(group: string, value: string, values?: Values): string {
  const key = `${group}.${value}`;
  return Object.hasOwn(catalogue, key) ? t(key as Key, values) : value;
}

export function fillIn(text: string, values: Values = {}): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) =>
    Object.hasOwn(values, name) ? String(values[name]) : whole,
  );
}
