/** Gathers what streams in and hands it on once a frame, less often where drawing takes long. */

/** Drawing may take this share of the time. */
const SHARE = 0.3;
/** What hidden pages, which have no frames, wait instead. */
const HIDDEN = 250;

export class FrameBuffer<T> {
  #items: T[] = [];
  #isScheduled = false;
  #notBefore = 0;
  #cost = 0;

  constructor(private readonly take: (items: T[]) => void) {}

  push(item: T): void {
    this.#items.push(item);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    this.#schedule();
  }

  /** Hand on what there is now. */
  flush(): void {
    if (this.#items.length === 0) return;
    const items = this.#items;
    this.#items = [];
    const start = performance.now();
    this.take(items);
    // Effects run in a microtask, so what the frame cost is known after it.
    queueMicrotask(() =>
      queueMicrotask(() => {
        this.#cost = performance.now() - start;
        this.#notBefore = start + this.#cost / SHARE;
      }),
    );
  }

  #schedule(): void {
    if (document.visibilityState === 'hidden') setTimeout(() => this.#run(), HIDDEN);
    else requestAnimationFrame(() => this.#run());
  }

  #run(): void {
    if (performance.now() < this.#notBefore) {
      this.#schedule();
      return;
    }
    this.#isScheduled = false;
    this.flush();
  }
}
