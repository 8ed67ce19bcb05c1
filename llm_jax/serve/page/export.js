// A conversation as a file.

import { titleOf } from './store.js';

/** Returns the messages as the API takes them, the system message first. */
export function toMessages(conversation) {
  const system = conversation.system.trim() ? [{ role: 'system', content: conversation.system }] : [];
  return [...system, ...conversation.messages.map(({ role, content }) => ({ role, content }))];
}

export function toJson(conversation, model, settings) {
  const value = { title: titleOf(conversation), model, settings, messages: toMessages(conversation) };
  return `${JSON.stringify(value, null, 2)}\n`;
}

export function toMarkdown(conversation, model) {
  const names = { system: 'System', user: 'You', assistant: model };
  const turns = toMessages(conversation).map(({ role, content }) => `## ${names[role]}\n\n${content.trim()}\n`);
  return [`# ${titleOf(conversation)}\n`, ...turns].join('\n');
}

/** Gives the reader a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Returns a name of a file that every system takes. */
export function fileName(conversation, ending) {
  const words = titleOf(conversation).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '');
  return `${words.slice(0, 40) || 'chat'}.${ending}`;
}
