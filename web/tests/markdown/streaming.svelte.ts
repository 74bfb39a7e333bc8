/** Properties of a component that a test changes. */
export function makeStreaming(): { source: string; isStreaming: boolean } {
  const props = $state({ source: '', isStreaming: true });
  return props;
}
