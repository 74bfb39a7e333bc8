import { afterEach, describe, expect, test } from 'vitest';
import { ApiError } from '$lib/api/http';
import { setLocale } from '$lib/i18n/i18n.svelte';
import { explain } from '$lib/state/explain';

afterEach(() => setLocale('en'));

describe('what went wrong is said', () => {
  const words = 'Email is no e-mail address';

  test.each([
    ['by its code', new ApiError(409, words, 'email_taken'), '该邮箱地址已注册账户。', ''],
    [
      'by its status',
      new ApiError(422, words, 'invalid_request_error'),
      '服务器不接受此内容。',
      words,
    ],
    ['as far as is known', new ApiError(500, words, 'numerical_error'), '操作未成功。', words],
    ['where no answer came', new ApiError(0, 'Failed to fetch', 'offline'), '无法连接服务器。', ''],
    ['where a proxy answered', new ApiError(502, 'Bad Gateway'), '操作未成功。', 'Bad Gateway'],
    ['for names that objects have', new ApiError(500, words, 'toString'), '操作未成功。', words],
  ])('%s', async (_, error, text, detail) => {
    await setLocale('zh');
    expect(explain(error)).toEqual({ text, detail });
    await setLocale('en');
    expect(explain(error).text).not.toBe(text);
  });
});
