/** Code with something missing. */

interface Example {
  name: string;
  language: string;
  code: string;
  cursor: number;
}

/** `▮` is where the cursor stands. */
function example(name: string, language: string, marked: string): Example {
  return { name, language, code: marked.replace('▮', ''), cursor: marked.indexOf('▮') };
}

export const EXAMPLES: Example[] = [
  example(
    'Python',
    'python',
    `def fibonacci(n: int) -> int:
    """The nth Fibonacci number, from 0."""
    a, b = 0, 1
    for _ in range(n):
        ▮
    return a


print([fibonacci(n) for n in range(10)])
`,
  ),
  example(
    'TypeScript',
    'typescript',
    `/** Groups items by what a function says of each. */
export function groupBy<T, K>(items: T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  ▮
  return groups;
}
`,
  ),
  example(
    'C++',
    'cpp',
    `#include <vector>

// The index of the first element that is not less than x.
size_t lower_bound(const std::vector<int>& sorted, int x) {
    size_t low = 0, high = sorted.size();
    ▮
    return low;
}
`,
  ),
  example(
    'SQL',
    'sql',
    `-- The five users who spent most this month
SELECT users.email, ▮
FROM requests
JOIN users ON users.id = requests.user_id
GROUP BY users.email
ORDER BY spent DESC
LIMIT 5;
`,
  ),
];
