/** What each cell of a table is, for narrow screens, on which every row is a card of its own. */

/** Copies the words of a table's head to its cells, also where either changes later. */
export function labelCells(frame: HTMLElement): () => void {
  const label = () => {
    for (const table of frame.querySelectorAll('table')) {
      const words = [...(table.tHead?.rows[0]?.cells ?? [])].map((cell) => cell.textContent.trim());
      for (const row of table.tBodies[0]?.rows ?? []) {
        for (const [place, cell] of [...row.cells].entries()) {
          const word = cell.colSpan > 1 ? '' : (words[place] ?? '');
          if (cell.dataset['label'] !== word) cell.dataset['label'] = word;
        }
      }
    }
  };
  label();
  const observer = new MutationObserver(label);
  observer.observe(frame, { childList: true, characterData: true, subtree: true });
  return () => observer.disconnect();
}
