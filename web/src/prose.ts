/** Text of figures: paragraphs, *em*, `code`, links without an address, and TeX by KaTeX. */

import katex from "katex";

const INLINE = /\$([^$]+)\$|\*\*([^*]+)\*\*|\*([^*]+)\*|`([^`]+)`|\[([^\]]+)\]\((https?:[^)]+)\)/g;

/** The text's blocks as elements: paragraphs, displays and lists. */
export function prose(text: string): HTMLElement[] {
  const blocks = text.trim().split(/\n\s*\n/).filter((block) => block.trim() !== "");
  return blocks.flatMap(block);
}

function block(text: string): HTMLElement[] {
  const pieces = text.split(/\$\$([\s\S]+?)\$\$/);
  return pieces.flatMap((piece, i) => {
    if (i % 2 === 1) return [display(piece)];
    if (piece.trim() === "") return [];
    return [/^\s*- /.test(piece) ? list(piece) : paragraph(piece)];
  });
}

function paragraph(text: string): HTMLElement {
  const element = document.createElement("p");
  element.append(...inline(text.trim()));
  return element;
}

function list(text: string): HTMLElement {
  const element = document.createElement("ul");
  for (const item of text.trim().replace(/^- /, "").split(/\n\s*- /)) {
    const line = document.createElement("li");
    line.append(...inline(item.trim()));
    element.append(line);
  }
  return element;
}

function display(tex: string): HTMLElement {
  const element = document.createElement("div");
  element.className = "display";
  element.tabIndex = 0; // it scrolls sideways where it is too wide
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", "formula");
  katex.render(tex.trim(), element, { displayMode: true, throwOnError: false, strict: false });
  return element;
}

/** One line of text as nodes. */
export function inline(text: string): Node[] {
  const nodes: Node[] = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(document.createTextNode(text.slice(end, match.index)));
    nodes.push(styled(match));
    end = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(text.slice(end)));
  return nodes;
}

function styled([, tex, strong, em, code, link, address]: RegExpMatchArray): HTMLElement {
  const tag = strong ? "strong" : em ? "em" : code ? "code" : "span";
  const element = document.createElement(tag);
  if (tex) katex.render(tex, element, { throwOnError: false, strict: false });
  else if (link) {
    element.append(...inline(link));
    element.title = address ?? "";
  } else element.append(...(code ? [document.createTextNode(code)] : inline(strong ?? em ?? "")));
  return element;
}
