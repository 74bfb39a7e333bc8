/** Tags as they are typed: with commas, Chinese ones too, between them. */
export function parseTags(text: string): string[] {
  const tags = text.split(/[,，、]/).map((tag) => tag.trim().replace(/^#/, '').slice(0, 50));
  return [...new Set(tags.filter((tag) => tag !== ''))].slice(0, 20);
}
