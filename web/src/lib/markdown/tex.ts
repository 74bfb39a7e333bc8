/** Mathematics: KaTeX, loaded when a formula first comes, builds nodes and never HTML. */

type Katex = typeof import('katex').default;

let katex: Promise<Katex> | undefined;

function load(): Promise<Katex> {
  katex ??= Promise.all([import('katex'), import('katex/dist/katex.min.css')]).then(
    ([{ default: loaded }]) => loaded,
    (error: unknown) => {
      katex = undefined;
      throw error;
    },
  );
  return katex;
}

/** Draw a formula into a node; what is no formula stays there as its source. */
export async function renderTex(tex: string, isDisplay: boolean, node: HTMLElement): Promise<void> {
  try {
    const { render } = await load();
    const drawn = document.createElement('span');
    // Untrusted: no \href, \includegraphics or \htmlClass, and macros that grow are cut short.
    render(tex, drawn, {
      displayMode: isDisplay,
      throwOnError: true,
      trust: false,
      errorColor: 'var(--danger)',
      strict: 'ignore',
      maxExpand: 500,
      maxSize: 20,
    });
    node.replaceChildren(...drawn.childNodes);
    node.classList.remove('tex-source');
  } catch {
    node.textContent = tex;
    node.classList.add('tex-source');
  }
}
