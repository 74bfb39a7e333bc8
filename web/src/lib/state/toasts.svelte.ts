/** Short news at the page's foot. */

export interface Toast {
  id: number;
  kind: 'done' | 'error';
  text: string;
}

class Toasts {
  all = $state<Toast[]>([]);
  #next = 0;

  done(text: string): void {
    this.#show('done', text, 4000);
  }

  error(text: string): void {
    this.#show('error', text, 9000);
  }

  dismiss(id: number): void {
    this.all = this.all.filter((toast) => toast.id !== id);
  }

  #show(kind: Toast['kind'], text: string, lasts: number): void {
    const id = this.#next++;
    this.all = [...this.all.filter((toast) => toast.text !== text), { id, kind, text }].slice(-3);
    setTimeout(() => this.dismiss(id), lasts);
  }
}

export const toasts = new Toasts();
