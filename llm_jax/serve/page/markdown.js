// Markdown as DOM nodes. What a model writes is text: HTML in it stays text, links go to http, https and mailto
// alone, and an image is a link, since nothing may be requested from elsewhere.

import { copyButton, el } from './dom.js';

const MAX_DEPTH = 16; // of lists, quotes and emphasis in one another; what is deeper is plain text
const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const RULE = /^ {0,3}([-*_])([ \t]*\1){2,}[ \t]*$/;
const HEADING = /^ {0,3}(#{1,6})([ \t]+|$)/;
const QUOTE = /^ {0,3}>/;

/** Shows a text in a container; blocks that are as they were keep their nodes. */
export function showMarkdown(container, text) {
  const shown = container.blocks ?? [];
  if (!shown.length) container.replaceChildren();
  const blocks = splitBlocks(text.replace(/\r\n?/g, '\n').split('\n'), 0);
  let same = 0;
  while (same < shown.length && same < blocks.length && isSame(shown[same], blocks[same])) {
    blocks[same].node = shown[same].node;
    same += 1;
  }
  // A code block that has grown keeps its node, and with it where its reader has scrolled to.
  if (same < shown.length && same < blocks.length && shown[same].kind === 'code' && blocks[same].kind === 'code'
      && shown[same].info === blocks[same].info) {
    blocks[same].node = shown[same].node;
    blocks[same].node.querySelector('code').textContent = blocks[same].text;
    same += 1;
  }
  for (const old of shown.slice(same)) old.node.remove();
  for (const block of blocks.slice(same)) {
    block.node = buildBlock(block, 0);
    container.append(block.node);
  }
  container.blocks = blocks;
}

/** Shows a text in a container as it is. */
export function showText(container, text) {
  container.textContent = text;
  container.blocks = [];
}

function isSame(a, b) {
  return a.kind === b.kind && a.text === b.text && a.info === b.info;
}

// --- Blocks: {kind, text, info}, with `lines` where they hold blocks ---

function splitBlocks(lines, depth) {
  const blocks = [];
  let i = 0;
  const take = (kind, end, info = '') => {
    const part = lines.slice(i, end);
    blocks.push({ kind, text: part.join('\n'), info, lines: part });
    i = end;
  };
  while (i < lines.length) {
    const line = lines[i];
    if (!line.trim()) i += 1;
    else if (openFence(line)) i = takeCode(lines, i, blocks);
    else if (HEADING.test(line)) take('heading', i + 1);
    else if (RULE.test(line)) take('rule', i + 1);
    else if (depth < MAX_DEPTH && QUOTE.test(line)) take('quote', endOfQuote(lines, i));
    else if (depth < MAX_DEPTH && ITEM.test(line)) take('list', endOfList(lines, i));
    else if (isTable(lines, i)) take('table', endOfTable(lines, i));
    else take('paragraph', endOfParagraph(lines, i, depth));
  }
  return blocks;
}

function openFence(line) {
  const found = FENCE.exec(line);
  return found && !(found[2][0] === '`' && found[3].includes('`')) ? found : null;
}

function takeCode(lines, start, blocks) {
  const [, indent, fence, info] = openFence(lines[start]);
  const isEnd = (line) => {
    const trimmed = line.trim();
    return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
  };
  let end = start + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const unindent = (line) => line.slice(Math.min(indent.length, line.length - line.trimStart().length));
  const text = lines.slice(start + 1, end).map(unindent).join('\n');
  blocks.push({ kind: 'code', text, info: info.trim().split(/\s/)[0] });
  return end + 1;
}

function endOfQuote(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !opensBlock(lines[end], 0))) end += 1;
  return end;
}

function endOfList(lines, start) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const kind = mark.at(-1);
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (!line.trim()) continue;
    const width = line.length - line.trimStart().length;
    const item = ITEM.exec(line);
    if (width > indent.length) continue;
    if (item && item[2].at(-1) === kind && !RULE.test(line)) continue;
    if (lines[end - 1].trim() && !item && !opensBlock(line, 0)) continue; // a paragraph that was not indented
    break;
  }
  while (!lines[end - 1].trim()) end -= 1;
  return end;
}

function isTable(lines, i) {
  if (i + 1 >= lines.length || !lines[i].includes('|')) return false;
  const marks = cells(lines[i + 1]);
  return marks.length === cells(lines[i]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

function endOfTable(lines, start) {
  let end = start + 2;
  while (end < lines.length && lines[end].includes('|')) end += 1;
  return end;
}

function endOfParagraph(lines, start, depth) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !opensBlock(lines[end], depth) && !isTable(lines, end)) end += 1;
  return end;
}

function opensBlock(line, depth) {
  const nests = depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line));
  return Boolean(nests || openFence(line) || HEADING.test(line) || RULE.test(line));
}

function buildBlocks(lines, depth) {
  return splitBlocks(lines, depth).map((block) => buildBlock(block, depth));
}

function buildBlock(block, depth) {
  switch (block.kind) {
    case 'code': return buildCode(block);
    case 'rule': return el('hr');
    case 'heading': return buildHeading(block.text);
    case 'quote': return el('blockquote', {}, ...buildBlocks(block.lines.map(unquote), depth + 1));
    case 'list': return buildList(block.lines, depth);
    case 'table': return buildTable(block.lines);
    default: return el('p', {}, ...inline(block.lines.map((line) => line.trim()).join('\n')));
  }
}

function unquote(line) {
  return line.replace(/^ {0,3}> ?/, '');
}

function buildCode(block) {
  const code = el('code', {}, block.text);
  const head = el('figcaption', {}, el('span', {}, block.info || 'text'),
    copyButton('Copy this code', () => code.textContent));
  return el('figure', { class: 'code' }, head, el('pre', { tabindex: '0', 'aria-label': 'Code' }, code));
}

function buildHeading(text) {
  const trimmed = text.trim();
  const level = /^#+/.exec(trimmed)[0].length;
  let title = trimmed.slice(level).trim();
  let end = title.length;
  while (end && title[end - 1] === '#') end -= 1;
  if (!end || /\s/.test(title[end - 1])) title = title.slice(0, end).trimEnd();
  return el(`h${Math.min(level + 2, 6)}`, {}, ...inline(title));
}

function buildList(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const isOrdered = mark.length > 1;
  const start = isOrdered && Number.parseInt(mark, 10) !== 1 ? { start: String(Number.parseInt(mark, 10)) } : {};
  const list = el(isOrdered ? 'ol' : 'ul', start);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent.length) {
      items.push({ offset: found[0].length, lines: [line.slice(found[0].length)] });
    } else {
      const { offset } = items.at(-1);
      items.at(-1).lines.push(line.slice(Math.min(offset, line.length - line.trimStart().length)));
    }
  }
  for (const item of items) {
    const nodes = buildBlocks(item.lines, depth + 1);
    // An item of one line is no paragraph of its own.
    if (nodes[0]?.tagName === 'P') nodes.splice(0, 1, ...nodes[0].childNodes);
    list.append(el('li', {}, ...nodes));
  }
  return list;
}

function cells(line) {
  const trimmed = line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return trimmed.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function buildTable(lines) {
  const sides = cells(lines[1]).map((mark) => (mark.endsWith(':') ? (mark.startsWith(':') ? 'center' : 'right') : 'left'));
  const row = (line, tag) => {
    const found = cells(line);
    return el('tr', {}, ...sides.map((side, i) => el(tag, { class: side }, ...inline(found[i] ?? ''))));
  };
  const body = el('tbody', {}, ...lines.slice(2).map((line) => row(line, 'td')));
  const table = el('table', {}, el('thead', {}, row(lines[0], 'th')), body);
  return el('div', { class: 'table', tabindex: '0', role: 'group', 'aria-label': 'Table' }, table);
}

// --- Within a line ---

const MARKS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']];
const LINK_LENGTH = 1000; // most characters of a link's text, and of its address

/** Returns the nodes of a text without blocks. */
function inline(text, depth = 0) {
  const nodes = [];
  const absent = new Set(); // marks that nothing closes from here on, so that no text takes quadratic time
  let plain = '';
  let i = 0;
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = '';
  };
  const put = (node, end) => {
    flush();
    nodes.push(node);
    i = end;
  };
  while (i < text.length) {
    const c = text[i];
    let found = null;
    if (c === '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (c === '\n') found = [el('br'), i + 1];
    else if (c === '`') found = codeSpan(text, i, absent);
    else if (c === '[' || (c === '!' && text[i + 1] === '[')) found = depth < MAX_DEPTH ? link(text, i, depth) : null;
    else if (c === '<' || c === 'h') found = address(text, i);
    else if (depth < MAX_DEPTH && '*_~'.includes(c)) found = emphasis(text, i, absent, depth);
    if (found) put(...found);
    else if (c === '`' || c === '*' || c === '_' || c === '~') {
      // A run that opens nothing is text as a whole.
      let end = i + 1;
      while (text[end] === c) end += 1;
      plain += text.slice(i, end);
      i = end;
    } else {
      plain += c;
      i += 1;
    }
  }
  flush();
  return nodes;
}

function codeSpan(text, start, absent) {
  let end = start;
  while (text[end] === '`') end += 1;
  const ticks = text.slice(start, end);
  if (absent.has(ticks)) return null;
  const close = findTicks(text, end, ticks.length);
  if (close < 0) {
    absent.add(ticks);
    return null;
  }
  let code = text.slice(end, close).replaceAll('\n', ' ');
  if (code.trim() && code.startsWith(' ') && code.endsWith(' ')) code = code.slice(1, -1);
  return [el('code', {}, code), close + ticks.length];
}

/** Returns where a run of exactly n backticks begins; -1 if there is none. */
function findTicks(text, from, n) {
  for (let i = text.indexOf('`', from); i >= 0; i = text.indexOf('`', i)) {
    let end = i;
    while (text[end] === '`') end += 1;
    if (end - i === n) return i;
    i = end;
  }
  return -1;
}

function emphasis(text, start, absent, depth) {
  for (const [mark, tag] of MARKS) {
    const from = start + mark.length;
    if (absent.has(mark) || !text.startsWith(mark, start) || !/\S/.test(text[from] ?? ' ')) continue;
    if (mark[0] === '_' && /\w/.test(text[start - 1] ?? '')) continue; // snake_case
    const close = findClose(text, from, mark);
    if (close < 0) absent.add(mark);
    else if (mark === '__' && /^\w+$/.test(text.slice(from, close))) continue; // a name of Python's, as __init__
    else return [el(tag, {}, ...inline(text.slice(from, close), depth + 1)), close + mark.length];
  }
  return null;
}

/** Returns where a mark closes what it opened before `from`; -1 if it does not. Code and escapes are passed over. */
function findClose(text, from, mark) {
  const noTicks = new Set();
  for (let i = from; i < text.length; i += 1) {
    if (text[i] === '\\') i += 1;
    else if (text[i] === '`') {
      let end = i;
      while (text[end] === '`') end += 1;
      const close = noTicks.has(end - i) ? -1 : findTicks(text, end, end - i);
      if (close < 0) noTicks.add(end - i);
      i = close < 0 ? end - 1 : close + (end - i) - 1;
    } else if (text[i] === mark[0]) {
      let end = i;
      while (text[end] === mark[0]) end += 1;
      const fits = mark.length === 1 ? (end - i) % 2 === 1 : end - i >= 2;
      const isWord = mark[0] === '_' && /\w/.test(text[end] ?? '');
      if (fits && !isWord && i > from && /\S/.test(text[i - 1])) return end - mark.length;
      i = end - 1;
    }
  }
  return -1;
}

function link(text, start, depth) {
  const open = text[start] === '!' ? start + 1 : start;
  const close = matching(text, open, '[', ']');
  if (close < 0 || text[close + 1] !== '(') return null;
  const end = matching(text, close + 1, '(', ')');
  if (end < 0) return null;
  const url = safeUrl(text.slice(close + 2, end).trim().split(/\s/)[0].replace(/^<|>$/g, ''));
  if (!url) return null;
  const label = text.slice(open + 1, close);
  return [anchor(url, label ? inline(label, MAX_DEPTH - 1) : [url], depth), end + 1];
}

function matching(text, start, open, close) {
  let deep = 0;
  for (let i = start; i < Math.min(text.length, start + LINK_LENGTH); i += 1) {
    if (text[i] === '\\') i += 1;
    else if (text[i] === open) deep += 1;
    else if (text[i] === close && (deep -= 1) === 0) return i;
  }
  return -1;
}

/** Finds an address that is written out: <https://a.b> or https://a.b. */
function address(text, start) {
  const isQuoted = text[start] === '<';
  const from = isQuoted ? start + 1 : start;
  if (!/^(https?:\/\/|mailto:)/i.test(text.slice(from, from + 8))) return null;
  if (!isQuoted && /\w/.test(text[start - 1] ?? '')) return null;
  let written = /^[^\s<>"`]+/.exec(text.slice(from, from + LINK_LENGTH))[0];
  if (isQuoted && text[from + written.length] !== '>') return null;
  if (!isQuoted) {
    written = written.replace(/[.,:;!?*_~'\]]+$/, '');
    while (written.endsWith(')') && written.split(')').length > written.split('(').length) written = written.slice(0, -1);
  }
  const url = safeUrl(written);
  return url ? [anchor(url, [written]), from + written.length + (isQuoted ? 1 : 0)] : null;
}

function anchor(url, children) {
  return el('a', { href: url, target: '_blank', rel: 'noopener noreferrer nofollow', title: url }, ...children);
}

/** Returns an address that may be followed, or null. */
function safeUrl(written) {
  if (!URL.canParse(written)) return null;
  const url = new URL(written);
  return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
}
