/** Sampling parameters as a form shows them. */

import type { Params } from '$lib/api/types';
import type { Key } from '$lib/i18n/i18n.svelte';

export type NumberName =
  | 'temperature'
  | 'top_p'
  | 'top_k'
  | 'min_p'
  | 'max_tokens'
  | 'repetition_penalty'
  | 'presence_penalty'
  | 'frequency_penalty'
  | 'seed';

export interface NumberField {
  name: NumberName;
  label: Key;
  hint: Key;
  min: number;
  max: number;
  step: number;
}

export const MAIN_FIELDS: NumberField[] = [
  {
    name: 'temperature',
    label: 'param.temperature',
    hint: 'param.temperature.hint',
    min: 0,
    max: 2,
    step: 0.05,
  },
  { name: 'top_p', label: 'param.top_p', hint: 'param.top_p.hint', min: 0, max: 1, step: 0.01 },
  {
    name: 'max_tokens',
    label: 'param.max_tokens',
    hint: 'param.max_tokens.hint',
    min: 1,
    max: 8192,
    step: 1,
  },
];

export const MORE_FIELDS: NumberField[] = [
  { name: 'top_k', label: 'param.top_k', hint: 'param.top_k.hint', min: 0, max: 1000, step: 1 },
  { name: 'min_p', label: 'param.min_p', hint: 'param.min_p.hint', min: 0, max: 1, step: 0.01 },
  {
    name: 'repetition_penalty',
    label: 'param.repetition_penalty',
    hint: 'param.repetition_penalty.hint',
    min: 0.1,
    max: 2,
    step: 0.05,
  },
  {
    name: 'presence_penalty',
    label: 'param.presence_penalty',
    hint: 'param.presence_penalty.hint',
    min: -2,
    max: 2,
    step: 0.1,
  },
  {
    name: 'frequency_penalty',
    label: 'param.frequency_penalty',
    hint: 'param.frequency_penalty.hint',
    min: -2,
    max: 2,
    step: 0.1,
  },
  { name: 'seed', label: 'param.seed', hint: 'param.seed.hint', min: 0, max: 2 ** 31 - 1, step: 1 },
];

/** The parameters without those that were left to the server. */
export function withNumber(params: Params, field: NumberField, text: string): Params {
  const { [field.name]: _, ...rest } = params;
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) return rest;
  const inside = Math.min(field.max, Math.max(field.min, value));
  return { ...rest, [field.name]: Number.isInteger(field.step) ? Math.round(inside) : inside };
}

/** Stop strings, one a line; `\n` stands for a line end. */
export function parseStops(text: string): string[] {
  const lines = text.split('\n').filter((line) => line !== '');
  return lines.slice(0, 16).map((line) => line.replaceAll('\\n', '\n'));
}

export function writeStops(stops: string[] | undefined): string {
  return (stops ?? []).map((stop) => stop.replaceAll('\n', '\\n')).join('\n');
}
