/** Markdown as models write it. */
export const CORPUS: Record<string, string> = {
  paragraphs: 'One line\nand another.\n\nA second paragraph with *some* **marks** and `code`.\n',
  headings: '# One\n\nText\n\n## Two\nText\n\nSetext\n======\n\nOther\n-----\n\nEnd',
  lists:
    '1. one\n2. two\n\n   more of two\n\n3. three\n   - inner\n   - other\n\nAfter it.\n\n- a\n- b\n\n\n- c\n',
  tasks: '- [ ] open\n- [x] done\n',
  fences:
    'Before\n\n```python\ndef f():\n\n    return "```"\n```\n\nAfter\n\n~~~\nplain\n~~~\n\n````md\n```\nin\n```\n````\n',
  openFence: 'Text\n\n```js\nlet a = 1;\n\nlet b = 2;\n',
  fenceInList: '- item\n\n  ```sh\n  ls\n\n  pwd\n  ```\n\n- next\n',
  table: 'Look:\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n| `x` | **y** |\n\nDone.\n',
  quote: '> a quote\n> of lines\n>\n> and more\n\nnot quoted\n',
  math: 'Let $x = 1$ and \\(y\\).\n\n$$\na = b\n\n+ c\n$$\n\nThen \\[ z \\] in a line.\n\n\\[\nq\n\\]\n\nEnd.\n',
  prices: 'It costs $5 and $6, or $7.\n',
  references:
    'See [the page][p] and [other].\n\n[p]: https://example.com/p "Page"\n\nMore.\n\n[other]: https://example.com/o\n',
  rules: 'a\n\n---\n\nb\n\n***\n\nc',
  html: '<div>\nblock\n</div>\n\ntext <b>bold</b> <script>x</script>\n\n<details><summary>s</summary>\n\nin\n\n</details>\n',
  indented: 'Text\n\n    code by indent\n\n    more\n\nText\n',
  chinese:
    '## 标题\n\n**加粗**的文字，和`代码`。\n\n1. 一\n2. 二\n\n表格：\n\n| 名 | 值 |\n|--|--|\n| 甲 | 1 |\n',
  emoji: 'Pairs 👩‍👩‍👧 and 𝒳 stay whole.\n\nNext 🎉\n',
  windows: 'one\r\n\r\n- a\r\n- b\r\n\r\ntwo\r\n',
  tabs: 'a\n\n-\tb\n\n\tcode\n\nc\n',
  hardBreaks: 'one  \ntwo\\\nthree\n',
  blankLines: '\n\n\nfirst\n\n\n\n\nsecond\n\n\n',
};
