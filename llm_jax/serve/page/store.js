// Conversations and settings, kept in the browser. A conversation has an entry of its own, so that two tabs do not
// overwrite each other's.

const PREFIX = 'llm_jax.conversation.';
const SETTINGS = 'llm_jax.settings';
const KEY = 'llm_jax.key';
export const DEFAULTS = { temperature: '0.8', top_p: '1', max_tokens: '', seed: '', plain: '' };

/** Makes an empty conversation: {id, updated, system, draft, messages}. */
export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return { id, updated: Date.now(), system: '', draft: '', messages: [] };
}

/** Returns the kept conversations, the newest first; entries that are none are left out. */
export function loadConversations() {
  const found = [];
  for (const name of Object.keys(localStorage)) {
    const value = name.startsWith(PREFIX) ? parse(localStorage.getItem(name)) : null;
    if (isConversation(value)) found.push(value);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

/** Keeps a conversation; returns why it could not be kept, or ''. */
export function keepConversation(conversation) {
  const messages = conversation.messages.filter((message) => message.content); // not the one that is still to come
  return keep(localStorage, PREFIX + conversation.id, JSON.stringify({ ...conversation, messages }));
}

export function dropConversation(id) {
  localStorage.removeItem(PREFIX + id);
}

/** True for an event of localStorage about a conversation in another tab. */
export function isAboutConversations(event) {
  return event.key === null || event.key.startsWith(PREFIX);
}

export function loadSettings() {
  const kept = parse(localStorage.getItem(SETTINGS)) ?? {};
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, String(kept[name] ?? value)]));
}

export function keepSettings(settings) {
  return keep(localStorage, SETTINGS, JSON.stringify(settings));
}

/** The key goes with the tab. */
export function loadKey() {
  return sessionStorage.getItem(KEY) ?? '';
}

export function keepKey(key) {
  return keep(sessionStorage, KEY, key);
}

/** Returns what a conversation is called in the list. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === 'user')?.content ?? conversation.draft;
  const line = first.trim().split('\n')[0];
  return [...line].length > 60 ? `${[...line].slice(0, 59).join('')}…` : line || 'New chat';
}

function keep(storage, name, value) {
  try {
    storage.setItem(name, value);
    return '';
  } catch {
    return 'The browser has no room left: export and delete conversations, or this one is lost with the tab.';
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isConversation(value) {
  const isMessage = (message) => ['user', 'assistant'].includes(message?.role) && typeof message.content === 'string';
  return typeof value?.id === 'string' && typeof value.system === 'string' && typeof value.draft === 'string'
    && Number.isFinite(value.updated) && Array.isArray(value.messages) && value.messages.every(isMessage);
}
