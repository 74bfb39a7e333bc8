/** What the mock's model says. */

export const SHOWCASE = `Merging two sorted lists takes one pass: compare the heads, take the smaller one, go on.

## The function

\`\`\`python
from collections.abc import Sequence


def merge(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """The items of both, in order. Stable: equal items of \`left\` come first."""
    merged: list[int] = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + list(left[i:]) + list(right[j:])
\`\`\`

It does at most $n + m - 1$ comparisons. The whole merge sort follows

$$
T(n) = 2\\,T\\!\\left(\\frac{n}{2}\\right) + \\Theta(n) = \\Theta(n \\log n)
$$

| Approach | Time | Extra memory | Stable |
|:--|:-:|--:|:-:|
| Two pointers | $O(n + m)$ | $O(n + m)$ | yes |
| \`sorted(left + right)\` | $O(n + m)$ | $O(n + m)$ | yes |
| \`heapq.merge\` | $O(n + m)$ | $O(1)$, lazily | yes |

Three things to test:

1. **Empty lists** on either side, and on both.
2. **Equal items**, where \`<=\` keeps the order of *left before right*.
3. Lists of very different lengths:
   - one item against a thousand
   - all of one before all of the other

> Timsort notices runs, so \`sorted(left + right)\` merges in linear time too.

- [x] Works for any comparable items
- [ ] Does not copy when one list is empty
`;

export const MATH = `Let $p_i = \\dfrac{e^{z_i}}{\\sum_k e^{z_k}}$. Its derivative has two cases, which one line joins:

$$
\\frac{\\partial p_i}{\\partial z_j} = p_i\\,(\\delta_{ij} - p_j)
$$

With the cross-entropy $L = -\\sum_i y_i \\log p_i$ most of it cancels:

\\[
\\frac{\\partial L}{\\partial z_j} = -\\sum_i \\frac{y_i}{p_i}\\, p_i(\\delta_{ij} - p_j) = p_j - y_j
\\]

So the gradient is what was predicted minus what was true.`;

export const SHORT = `Multi-head latent attention keeps, for each token, one small vector $c_{KV}$ in place of all heads’ keys and values. What a head needs is computed from it by a matrix that can be **absorbed** into the query’s and the output’s own, so that decoding reads little memory.

- The cache per token shrinks from $2 n_h d_h$ to $d_c + d_r$ numbers.
- Positions go through a separate key of $d_r$ dimensions, which all heads share.`;

export const HOSTILE = `A model may write anything: <script>alert(1)</script>, <img src=x onerror=alert(1)>,
[a link](javascript:alert(1)), ![a picture](https://example.com/?q=secret) and $\\href{javascript:alert(1)}{x}$.`;
