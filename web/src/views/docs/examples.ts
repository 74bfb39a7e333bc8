/** The first programs that somebody writes for this server. */

export interface Example {
  /** Not translated: the names of programs and languages. */
  title: string;
  language: string;
  text: string;
}

export function examplesFor(origin: string, model: string, key: string): Example[] {
  const name = JSON.stringify(model);
  const quoted = `'${JSON.stringify({
    model,
    stream: true,
    messages: [{ role: 'user', content: 'Hello!' }],
  }).replaceAll("'", "'\\''")}'`;
  return [
    {
      title: 'curl',
      language: 'bash',
      text: [
        `curl -N ${origin}/v1/chat/completions \\`,
        `  -H 'Authorization: Bearer ${key}' \\`,
        `  -H 'Content-Type: application/json' \\`,
        `  -d ${quoted}`,
      ].join('\n'),
    },
    {
      title: 'openai',
      language: 'python',
      text: `from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key="${key}")
answer = client.chat.completions.create(
    model=${name},
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.choices[0].message.content)`,
    },
    {
      title: 'anthropic',
      language: 'python',
      text: `from anthropic import Anthropic

client = Anthropic(base_url="${origin}", api_key="${key}")
answer = client.messages.create(
    model=${name},
    max_tokens=512,
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.content[0].text)`,
    },
  ];
}
