// The page: which conversation is shown, what is asked, and what becomes of it.

import { button, el, icon } from './dom.js';
import { download, fileName, toJson, toMarkdown, toMessages } from './export.js';
import * as store from './store.js';
import { fetchModel, ServerError, streamChat } from './stream.js';
import { editMessage, endEdit, growWithText, keepingEnd, refresh, sendOnEnter, showMessages, showPlain, toEnd } from './view.js';

const $ = (id) => document.getElementById(id);
const log = $('log');
const prompt = $('prompt');
const form = $('settings_form');

let conversations = store.loadConversations();
let settings = store.loadSettings();
let model = { id: '', max_model_len: 0 };
let shown = store.newConversation();
let running = null; // the AbortController of the answer that comes
let edited = null; // the message whose editor is open
let notice = null; // {text, buttons, isFailure}: the line below the conversation

// --- What is shown ---

const actions = { edit: openEditor, again: answerAgain, model: () => model.id };

function show() {
  showPlain(shown.messages, settings.plain !== '');
  showMessages(log, shown.messages, actions);
  $('welcome').hidden = shown.messages.length > 0;
  document.body.classList.toggle('running', running !== null);
  log.setAttribute('aria-busy', String(running !== null));
  const label = running ? 'Stop' : 'Send';
  $('send').replaceChildren(icon(label.toLowerCase()));
  $('send').title = label;
  $('send').setAttribute('aria-label', label);
  $('export').disabled = shown.messages.length === 0;
  $('notice').replaceChildren(...(notice ? [
    el('p', { class: notice.isFailure ? 'failure' : 'news', role: 'alert' }, el('span', {}, notice.text), ...notice.buttons),
  ] : []));
  showList();
}

function showList() {
  $('conversations').replaceChildren(...conversations.map((one) => {
    const title = store.titleOf(one);
    const open = el('button', { type: 'button', class: 'open', click: () => openConversation(one) }, title);
    if (one.id === shown.id) open.setAttribute('aria-current', 'true');
    return el('li', {}, open, button('delete', `Delete “${title}”`, () => deleteConversation(one)));
  }));
  document.title = shown.messages.length ? `${store.titleOf(shown)} · ${model.id}` : model.id || 'Chat';
}

function say(text) {
  $('status').textContent = text;
}

function fail(text, ...buttons) {
  notice = { text, buttons, isFailure: true };
}

function tell(text, ...buttons) {
  notice = { text, buttons, isFailure: false };
}

async function findModel() {
  try {
    model = await fetchModel(store.loadKey());
    notice = null;
  } catch (error) {
    fail(error.message, error.status === 401 ? textButton('Enter the key', openSettings) : textButton('Try again', findModel));
  }
  $('model').textContent = model.id || 'Chat';
  $('greeting').textContent = model.id ? `Talk to ${model.id}` : 'Say something';
  $('facts').textContent = model.id
    ? `It reads up to ${model.max_model_len.toLocaleString('en')} tokens of a conversation. Conversations stay in this browser.` : '';
  show();
}

function textButton(label, click) {
  return el('button', { type: 'button', class: 'plain', click }, label);
}

// --- Conversations ---

function keep() {
  shown.draft = prompt.value;
  if (!shown.messages.length && !shown.draft.trim() && !shown.system.trim()) {
    store.dropConversation(shown.id);
    conversations = conversations.filter((one) => one.id !== shown.id);
    return;
  }
  const refused = store.keepConversation(shown);
  if (refused) fail(refused);
  if (!conversations.some((one) => one.id === shown.id)) conversations.unshift(shown);
}

function openConversation(conversation) {
  stop();
  closeEditor();
  keep();
  notice = null;
  shown = conversation;
  prompt.value = shown.draft;
  prompt.dispatchEvent(new Event('input'));
  show();
  toEnd();
  closeSidebar();
  prompt.focus();
}

function deleteConversation(conversation) {
  const place = conversations.indexOf(conversation);
  if (conversation === shown) stop();
  conversations.splice(place, 1);
  store.dropConversation(conversation.id);
  if (conversation === shown) {
    closeEditor();
    shown = store.newConversation();
    prompt.value = '';
  }
  const undo = textButton('Undo', () => {
    conversations.splice(place, 0, conversation);
    notice = null;
    const refused = store.keepConversation(conversation);
    if (refused) fail(refused);
    openConversation(conversation);
  });
  tell(`“${store.titleOf(conversation)}” is deleted.`, undo);
  show();
  prompt.focus();
}

// --- Asking ---

function ask() {
  const text = prompt.value;
  if (!text.trim()) return;
  prompt.value = '';
  prompt.dispatchEvent(new Event('input'));
  shown.messages = [...shown.messages, { role: 'user', content: text }];
  answer();
}

function answerAgain(message) {
  const before = shown.messages;
  shown.messages = before.slice(0, before.indexOf(message));
  answer({ before });
}

function openEditor(message, text = message.content) {
  stop();
  closeEditor();
  edited = message;
  editMessage(message, text, {
    cancel: () => {
      closeEditor();
      prompt.focus();
    },
    submit: (changed) => {
      closeEditor();
      const before = shown.messages;
      shown.messages = [...before.slice(0, before.indexOf(message)), { role: 'user', content: changed }];
      answer({ before, reopen: () => openEditor(message, changed) });
    },
  });
}

function closeEditor() {
  if (edited) endEdit(edited);
  edited = null;
}

/**
 * Asks for an answer to the messages shown.
 *
 * Args:
 *   before: the messages that the answer is to replace; they come back if nothing of it comes.
 *   reopen: called after that.
 */
async function answer({ before = null, reopen = null } = {}) {
  const conversation = shown;
  const reply = { role: 'assistant', content: '', model: model.id, note: '' };
  const body = requestBody(conversation);
  const controller = new AbortController();
  const drawing = makeDrawing(conversation, reply);
  const pace = makePace();
  notice = null;
  running = controller;
  conversation.messages = [...conversation.messages, reply];
  conversation.updated = Date.now();
  bringFirst(conversation);
  keep();
  show();
  toEnd();
  prompt.focus();
  say('Answering');
  let problem = null;
  try {
    for await (const event of streamChat(body, store.loadKey(), controller.signal)) {
      if (event.text) {
        reply.content += event.text;
        pace.start();
        drawing.ask();
      }
      if (event.finish === 'length') reply.note = 'ended by the limit of tokens';
      if (event.usage) reply.note = [pace.describe(event.usage.completion_tokens), reply.note].filter(Boolean).join(' · ');
    }
    if (!reply.content) problem = new ServerError('The model ended its answer before the first word.');
  } catch (error) {
    if (!controller.signal.aborted && !(error instanceof ServerError)) throw error;
    if (controller.signal.aborted) reply.note = 'stopped';
    else problem = error;
    if (problem && reply.content) reply.note = 'broken off';
  } finally {
    if (running === controller) running = null;
    if (!reply.content) conversation.messages = before ?? conversation.messages.filter((one) => one !== reply);
    const refused = conversations.includes(conversation) ? store.keepConversation(conversation) : '';
    if (conversation === shown) finish(reply, problem ?? (refused && new Error(refused)), reopen);
  }
}

/** Shows the end of an answer, and what went wrong. */
function finish(reply, problem, reopen) {
  const { content, note } = reply;
  const retry = content ? () => answerAgain(reply) : () => answer();
  const isOpen = shown.messages.at(-1)?.role === 'user' || (content && problem instanceof ServerError);
  const buttons = isOpen && !reopen ? [textButton('Try again', retry)] : [];
  if (problem?.status === 401) buttons.unshift(textButton('Enter the key', openSettings));
  if (problem) fail(problem.message, ...buttons);
  else if (!content && buttons.length) tell('Stopped before the answer began.', ...buttons);
  say(problem ? '' : note.startsWith('stopped') ? 'Stopped' : 'The answer is complete');
  keepingEnd(() => {
    show();
    if (content) refresh(reply);
  });
  if (!content) reopen?.();
}

/** Draws an answer at most once a frame, and keeps it every two seconds. */
function makeDrawing(conversation, reply) {
  let isAsked = false;
  let kept = performance.now();
  const draw = () => {
    isAsked = false;
    if (conversation === shown) keepingEnd(() => refresh(reply));
    if (running && conversation === shown && performance.now() - kept > 2000) {
      kept = performance.now();
      keep();
    }
  };
  return {
    ask() {
      if (!isAsked) requestAnimationFrame(draw);
      isAsked = true;
    },
  };
}

function requestBody(conversation) {
  return { messages: toMessages(conversation), ...sampling() };
}

/** Returns the settings of a request that are given, as numbers. */
function sampling() {
  const { plain, ...others } = settings;
  const given = Object.entries(others).filter(([, value]) => value !== '');
  return Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
}

/** Measures tokens per second, from the first text on. */
function makePace() {
  let first = 0;
  return {
    start() {
      first ||= performance.now();
    },
    describe(tokens) {
      const seconds = (performance.now() - first) / 1000;
      const speed = first && seconds > 0.2 ? `, ${(tokens / seconds).toFixed(tokens / seconds < 10 ? 1 : 0)}/s` : '';
      return `${tokens} ${tokens === 1 ? 'token' : 'tokens'}${speed}`;
    },
  };
}

function bringFirst(conversation) {
  conversations = [conversation, ...conversations.filter((one) => one.id !== conversation.id)];
}

function stop() {
  running?.abort();
  running = null;
}

// --- Dialogs and the sidebar ---

function openSettings() {
  for (const [name, value] of Object.entries({ ...settings, system: shown.system, key: store.loadKey() })) {
    setField(name, value);
  }
  $('settings_dialog').showModal();
}

function setField(name, value) {
  const field = form.elements[name];
  if (field.type === 'checkbox') field.checked = value !== '';
  else field.value = value;
}

function applySettings() {
  const { system, key, ...others } = { plain: '', ...Object.fromEntries(new FormData(form)) };
  const isNewKey = key !== store.loadKey();
  settings = others;
  shown.system = system;
  const refused = store.keepSettings(settings) || store.keepKey(key);
  keep();
  if (refused) fail(refused);
  show();
  if (isNewKey || !model.id) findModel();
}

function closeSidebar() {
  document.body.classList.remove('sidebar');
  $('menu').setAttribute('aria-expanded', 'false');
}

$('settings').addEventListener('click', openSettings);
form.addEventListener('submit', applySettings);
$('reset').addEventListener('click', () => {
  for (const [name, value] of Object.entries(store.DEFAULTS)) setField(name, value);
});
$('export').addEventListener('click', () => {
  $('export_dialog').returnValue = '';
  $('export_dialog').showModal();
});
$('export_dialog').addEventListener('close', (event) => {
  const kind = event.target.returnValue;
  if (kind === 'json') download(fileName(shown, 'json'), 'application/json', toJson(shown, model.id, sampling()));
  if (kind === 'md') download(fileName(shown, 'md'), 'text/markdown', toMarkdown(shown, model.id));
});
$('menu').addEventListener('click', () => {
  const isOpen = document.body.classList.toggle('sidebar');
  $('menu').setAttribute('aria-expanded', String(isOpen));
  if (isOpen) $('new').focus();
});
$('shade').addEventListener('click', closeSidebar);
$('new').addEventListener('click', () => openConversation(store.newConversation()));

// --- The composer ---

$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  if (running) return;
  ask();
});
$('send').addEventListener('click', (event) => {
  if (!running) return;
  event.preventDefault();
  stop();
});
sendOnEnter(prompt, $('composer'));
growWithText(prompt);
let keeping = 0;
prompt.addEventListener('input', () => {
  clearTimeout(keeping);
  keeping = setTimeout(() => {
    keep();
    showList();
  }, 400);
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || document.querySelector('dialog[open]')) return;
  if (document.body.classList.contains('sidebar')) {
    closeSidebar();
    $('menu').focus();
  } else if (running) stop();
});

// --- Other tabs, and the end of this one ---

window.addEventListener('storage', (event) => {
  if (!store.isAboutConversations(event)) return;
  // What is shown here stays as it is here.
  const others = store.loadConversations().filter((one) => one.id !== shown.id);
  conversations = conversations.some((one) => one.id === shown.id) ? [shown, ...others] : others;
  conversations.sort((a, b) => b.updated - a.updated);
  showList();
});
window.addEventListener('pagehide', keep);

show();
findModel();
