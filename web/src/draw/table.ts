/** Tables of words and numbers. */

import { numberOf, type Panel } from "../contract";
import { h } from "../dom";
import { formatted } from "../format";
import { spoken } from "../mathtext";
import { inline } from "../prose";
import type { Drawing } from "./svg";

export function table(panel: Panel): Drawing {
  const scroller = h("div", { class: "scroller", tabindex: 0, role: "group", "aria-label": spoken(panel.title) || "table" });
  for (const { style } of panel.marks) {
    const columns = (Array.isArray(style.columns) ? style.columns : []) as string[];
    const rows = (style.rows ?? []) as (string | number)[][];
    const numeric = columns.map((_, i) => rows.length > 0 && rows.every((row) => numberOf(row[i] ?? "") !== null));
    const cls = (i: number) => (numeric[i] ? "number" : undefined);
    const head = h("tr", {}, ...columns.map((name, i) => h("th", { scope: "col", class: cls(i) }, ...inline(name))));
    const body = rows.map((row) => h("tr", {}, ...row.map((cell, i) => h("td", { class: cls(i) }, ...content(cell)))));
    scroller.append(h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)));
  }
  return { element: scroller };
}

function content(cell: string | number): Node[] {
  const value = numberOf(cell);
  return value === null ? inline(String(cell)) : [h("data", { value: String(cell) }, formatted(value, ".4g"))];
}
