// Messages as elements. An element belongs to its message object and is made once.

import { button, copyButton, el } from './dom.js';
import { showMarkdown, showText } from './markdown.js';

const scroll = document.getElementById('scroll');
const newest = document.getElementById('newest');
const elements = new WeakMap();
let isPlain = false;

/** Says whether answers are shown as they were written, or as Markdown. */
export function showPlain(messages, plain) {
  if (isPlain === plain) return;
  isPlain = plain;
  for (const message of messages) if (elements.has(message)) refresh(message);
}

/**
 * Shows messages in the log, leaving what is there where it is.
 *
 * Args:
 *   log: the container.
 *   messages: of the conversation.
 *   actions: {edit(message), again(message), model}.
 */
export function showMessages(log, messages, actions) {
  const wanted = messages.map((message) => elementOf(message, actions));
  for (const old of [...log.children]) if (!wanted.includes(old)) old.remove();
  wanted.forEach((element, i) => {
    if (log.children[i] !== element) log.insertBefore(element, log.children[i] ?? null);
  });
}

function elementOf(message, actions) {
  if (!elements.has(message)) {
    elements.set(message, message.role === 'user' ? makeQuestion(message, actions) : makeAnswer(message, actions));
    refresh(message);
  }
  return elements.get(message);
}

function makeQuestion(message, actions) {
  const row = el('div', { class: 'actions' },
    button('edit', 'Edit and ask again from here', () => actions.edit(message), { kind: 'edit' }),
    copyButton('Copy this message', () => message.content));
  return el('article', { class: 'message user', 'aria-label': 'You' }, el('div', { class: 'body' }), row);
}

function makeAnswer(message, actions) {
  const row = el('div', { class: 'actions' },
    copyButton('Copy this answer', () => message.content),
    button('again', 'Answer again', () => actions.again(message), { kind: 'again' }),
    el('span', { class: 'note' }));
  return el('article', { class: 'message assistant', 'aria-label': message.model || actions.model() },
    el('div', { class: 'body' }), row);
}

/** Shows the content of a message as it is now. */
export function refresh(message) {
  const element = elements.get(message);
  const body = element.querySelector('.body');
  if (message.role === 'user') {
    body.textContent = message.content;
    return;
  }
  element.classList.toggle('waiting', message.content === '');
  body.classList.toggle('plain', isPlain);
  if (isPlain) showText(body, message.content);
  else showMarkdown(body, message.content);
  element.querySelector('.note').textContent = message.note ?? '';
}

/** Puts an editor into the place of a message; `submit` gets the new text. */
export function editMessage(message, text, { submit, cancel }) {
  const element = elements.get(message);
  const field = el('textarea', { rows: '1', 'aria-label': 'Your message' });
  field.value = text;
  const form = el('form', { class: 'editor', submit: (event) => {
    event.preventDefault();
    if (field.value.trim()) submit(field.value);
  } }, field, el('p', { class: 'buttons' },
    el('button', { type: 'button', class: 'plain', click: () => cancel() }, 'Cancel'),
    el('button', { type: 'submit', class: 'filled' }, 'Send')));
  form.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') {
      event.stopPropagation();
      cancel();
    }
  });
  sendOnEnter(field, form);
  growWithText(field);
  element.classList.add('editing');
  element.append(form);
  field.dispatchEvent(new Event('input'));
  field.focus();
  field.setSelectionRange(text.length, text.length);
}

export function endEdit(message) {
  const element = elements.get(message);
  element?.classList.remove('editing');
  element?.querySelector('.editor')?.remove();
}

export function sendOnEnter(field, form) {
  field.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

export function growWithText(field) {
  const fit = () => {
    field.style.height = 'auto';
    field.style.height = `${field.scrollHeight}px`;
  };
  field.addEventListener('input', fit);
}

// --- Scrolling: text that comes moves the view only while its reader is at the end ---

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 32;

export function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

/** Calls a function that adds text, and keeps the end in view if it was. */
export function keepingEnd(change) {
  const follow = isAtEnd();
  change();
  if (follow) toEnd();
  newest.hidden = isAtEnd();
}

scroll.addEventListener('scroll', () => { newest.hidden = isAtEnd(); }, { passive: true });
newest.addEventListener('click', toEnd);
