// Small helpers around the DOM. Text is always a text node: nothing here parses HTML.

/** Makes an element: functions become listeners, true an empty attribute, false and null none. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Makes an icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Makes a button with an icon and a label, which `quiet` leaves to screen readers and tooltips. */
export function button(name, label, click, { quiet = true, kind = '' } = {}) {
  const attributes = { type: 'button', class: `${quiet ? 'quiet' : ''} ${kind}`.trim(), click };
  if (quiet) Object.assign(attributes, { 'aria-label': label, title: label });
  return el('button', attributes, icon(name), quiet ? null : label);
}

/** Makes a button that copies a text and says so. */
export function copyButton(label, read) {
  const made = button('copy', label, async () => {
    const done = await copy(read());
    made.replaceChildren(icon(done ? 'check' : 'close'));
    made.setAttribute('aria-label', done ? 'Copied' : 'The browser refused to copy');
    setTimeout(() => {
      made.replaceChildren(icon('copy'));
      made.setAttribute('aria-label', label);
    }, 1500);
  });
  return made;
}

async function copy(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Pages over plain HTTP have no clipboard, but for those of this machine.
  const focused = document.activeElement;
  const field = el('textarea', { class: 'unseen', 'aria-hidden': 'true' });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  focused?.focus();
  return done;
}
