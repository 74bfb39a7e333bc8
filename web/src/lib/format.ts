/** Numbers, money and dates as they are read. */

export const MICRO = 1_000_000;

/** Micro-units with the currency: two places, and more where that would hide what there is. */
export function money(micro: number, currency: string, locale: string): string {
  const value = micro / MICRO;
  const size = Math.abs(value);
  const digits = size > 0 && size < 0.01 ? 6 : size > 0 && size < 1 ? 4 : 2;
  return new Intl.NumberFormat(locale, {
    style: 'currency',
    currency,
    currencyDisplay: 'narrowSymbol',
    minimumFractionDigits: 2,
    maximumFractionDigits: digits,
  }).format(value);
}

/** What somebody typed as an amount, in micro-units; null if it is none. */
export function parseMoney(text: string): number | null {
  const plain = text.trim().replace(/[\s,_]/g, '');
  if (!/^\d{1,9}(\.\d{0,6})?$/.test(plain)) return null;
  const [whole = '0', part = ''] = plain.split('.');
  return Number(whole) * MICRO + Number(part.padEnd(6, '0'));
}

export function count(n: number, locale: string): string {
  return n.toLocaleString(locale);
}

/** 12.3K, 4.5M. */
export function short(n: number, locale: string): string {
  return new Intl.NumberFormat(locale, {
    notation: 'compact',
    maximumFractionDigits: n < 1000 ? 0 : 1,
  }).format(n);
}

/** 5.4 MB. */
export function megabytes(bytes: number, locale: string): string {
  return new Intl.NumberFormat(locale, {
    style: 'unit',
    unit: 'megabyte',
    maximumFractionDigits: 1,
  }).format(bytes / 1e6);
}

export function percent(part: number, whole: number, locale: string, digits = 0): string {
  const value = whole > 0 ? part / whole : 0;
  return new Intl.NumberFormat(locale, { style: 'percent', maximumFractionDigits: digits }).format(
    value,
  );
}

export function seconds(value: number, locale: string): string {
  return new Intl.NumberFormat(locale, {
    style: 'unit',
    unit: 'second',
    unitDisplay: 'narrow',
    maximumFractionDigits: value < 10 ? 1 : 0,
  }).format(value);
}

/** Tokens a second after the first; null where there is too little to say. */
export function rate(tokens: number, time: number): number | null {
  return tokens > 1 && time > 0 ? (tokens - 1) / time : null;
}

/** The year only where it is another one. */
export function dateTime(time: number, locale: string, now = Date.now()): string {
  const isThisYear = new Date(time).getFullYear() === new Date(now).getFullYear();
  return new Intl.DateTimeFormat(locale, {
    year: isThisYear ? undefined : 'numeric',
    month: 'short',
    day: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
  }).format(time);
}

export function date(time: number, locale: string): string {
  return new Intl.DateTimeFormat(locale, { dateStyle: 'medium' }).format(time);
}

export function clock(time: number, locale: string): string {
  return new Intl.DateTimeFormat(locale, { hour: '2-digit', minute: '2-digit' }).format(time);
}

/** `YYYY-MM-DD` in UTC, as usage is summed. */
export function utcDay(time: number): string {
  return new Date(time).toISOString().slice(0, 10);
}

/** A UTC day's label, which must not slip into the day before in the reader's zone. */
export function dayLabel(day: string, locale: string): string {
  const options = { month: 'short', day: 'numeric', timeZone: 'UTC' } as const;
  return new Intl.DateTimeFormat(locale, options).format(new Date(`${day}T00:00:00Z`));
}

/** Every day from the first to the last, both included. */
export function daysBetween(first: string, last: string): string[] {
  const days: string[] = [];
  const end = Date.parse(`${last}T00:00:00Z`);
  for (let at = Date.parse(`${first}T00:00:00Z`); at <= end; at += 86_400_000) {
    days.push(utcDay(at));
  }
  return days;
}
