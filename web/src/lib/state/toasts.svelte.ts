/** Short news at the page's foot. */

export interface Toast {
  id: number;
  kind: 'done' | 'error';
  text: string;
  /** The server's own words. */
  detail: string;
}

class Toasts {
  all = $state<Toast[]>([]);
  #next = 0;

  done(text: string): void {
    this.#show('done', text, 4000);
  }

  error(text: string, detail = ''): void {
    this.#show('error', text, 9000, detail);
  }

  dismiss(id: number): void {
    this.all = this.all.filter((toast) => toast.id !== id);
  }

  #show(kind: Toast['kind'], text: string, lasts: number, detail = ''): void {
    const id = this.#next++;
    const others = this.all.filter((toast) => toast.text !== text || toast.detail !== detail);
    this.all = [...others, { id, kind, text, detail }].slice(-3);
    setTimeout(() => this.dismiss(id), lasts);
  }
}

export const toasts = new Toasts();
