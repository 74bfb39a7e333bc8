/** Questions that must be answered before something goes on. */

export interface Question {
  title: string;
  text?: string;
  action: string;
  isDanger?: boolean;
  /** Where a text is asked for: what it is now. */
  value?: string;
  label?: string;
  hint?: string;
  most?: number;
}

class Asking {
  question = $state.raw<Question | null>(null);
  #resolve: ((value: string | null) => void) | undefined;

  /** The text that was given, or null if it was called off. */
  ask(question: Question): Promise<string | null> {
    this.answer(null);
    this.question = question;
    return new Promise((resolve) => (this.#resolve = resolve));
  }

  async confirm(question: Omit<Question, 'value'>): Promise<boolean> {
    return (await this.ask(question)) !== null;
  }

  answer(value: string | null): void {
    this.question = null;
    this.#resolve?.(value);
    this.#resolve = undefined;
  }
}

export const asking = new Asking();
