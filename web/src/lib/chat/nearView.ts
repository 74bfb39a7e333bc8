/** Long conversations are drawn where one looks: what is far above waits as plain text. */

const DISTANCE = '1200px';

const waiting = new WeakMap<Element, () => void>();
let observer: IntersectionObserver | undefined;

function observe(): IntersectionObserver {
  observer ??= new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer?.unobserve(target);
        waiting.get(target)?.();
        waiting.delete(target);
      }
    },
    { rootMargin: DISTANCE },
  );
  return observer;
}

/** Calls back once, when the element has come near what is in view. */
export function nearView(onNear: () => void) {
  return (node: Element) => {
    waiting.set(node, onNear);
    observe().observe(node);
    return () => {
      waiting.delete(node);
      observer?.unobserve(node);
    };
  };
}
