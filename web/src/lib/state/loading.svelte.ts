/** Something that is read from the server for a page: not yet there, there, or failed. */

import { ApiError } from '$lib/api/http';
import { explain } from './explain';
import { toasts } from './toasts.svelte';

export class Loading<T> {
  value = $state.raw<T | null>(null);
  error = $state.raw<ApiError | null>(null);
  isLoading = $state(false);
  #turn = 0;

  constructor(private readonly read: () => Promise<T>) {}

  async load(): Promise<void> {
    const turn = ++this.#turn;
    this.isLoading = true;
    try {
      const value = await this.read();
      // An answer to an earlier question must not overwrite a later one's.
      if (turn !== this.#turn) return;
      this.value = value;
      this.error = null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (turn === this.#turn) this.error = error;
    } finally {
      if (turn === this.#turn) this.isLoading = false;
    }
  }
}

/** Say what went wrong. */
export function complain(error: ApiError): void {
  const { text, detail } = explain(error);
  toasts.error(text, detail);
}

/** Do something; say what went wrong if it did. True if it worked. */
export async function attempt(action: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await action();
    if (done) toasts.done(done);
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    complain(error);
    return false;
  }
}
