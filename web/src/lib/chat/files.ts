/** Text files that become part of a message. */

import type { Attachment } from '$lib/api/types';

/** All files of a message together. */
export const MOST_BYTES = 1 << 20;
const MOST_NAME = 200;

export type FileProblem = 'binary' | 'large';

export class FileError extends Error {
  constructor(
    readonly problem: FileProblem,
    readonly file: string,
  ) {
    super(`${file}: ${problem}`);
  }
}

/** A file as an attachment.
 *
 * @param room  how many bytes may still be attached.
 */
export async function readTextFile(file: File, room: number): Promise<Attachment> {
  if (file.size > room) throw new FileError('large', file.name);
  const bytes = await file.arrayBuffer();
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new FileError('binary', file.name);
  }
  if (text.includes('\0')) throw new FileError('binary', file.name);
  return { name: shorten(file.name), text };
}

export function bytesOf(attachments: Attachment[]): number {
  const encoder = new TextEncoder();
  return attachments.reduce((sum, { text }) => sum + encoder.encode(text).length, 0);
}

/** A name that keeps its ending. */
export function shorten(name: string): string {
  if (name.length <= MOST_NAME) return name || 'file';
  const ending = /\.[^.]{1,20}$/.exec(name)?.[0] ?? '';
  return name.slice(0, MOST_NAME - ending.length) + ending;
}
