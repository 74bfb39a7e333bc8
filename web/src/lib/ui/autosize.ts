/** Makes a text field as high as its text, up to what its styles allow.
 *
 * @param text  read, so that a change of it is noticed.
 */
export function autosize(text: () => string) {
  return (node: HTMLTextAreaElement) => {
    void text();
    // Where styles can do it alone, they do it sooner.
    if (CSS.supports('field-sizing', 'content')) return;
    node.style.height = 'auto';
    const frame = node.offsetHeight - node.clientHeight;
    node.style.height = `${node.scrollHeight + frame}px`;
  };
}
