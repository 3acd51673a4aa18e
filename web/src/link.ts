/** Permalinks: the figure and every control in the address, and the token out of it. */

import type { Control, FigureSpec, Params, Value } from "./contract";

const TOKEN = "twosides-token";

export function defaults(figure: FigureSpec): Params {
  return Object.fromEntries(figure.controls.map((control) => [control.name, control.default]));
}

/** "figure=churn&c=0.3&samplers=ddim&samplers=heun" */
export function query(figure: string, params: Params): string {
  const parts = new URLSearchParams({ figure });
  for (const [name, value] of Object.entries(params)) {
    if (!Array.isArray(value)) parts.append(name, String(value));
    else if (value.length > 0) for (const one of value) parts.append(name, one);
    else parts.append(name, "");
  }
  return parts.toString();
}

/** What the address asks for: a figure's name and the values that it states. */
export function asked(): URLSearchParams {
  const hash = location.hash.slice(1);
  return new URLSearchParams(hash.startsWith("figure=") ? hash : location.search);
}

/** The defaults with the address's values in their places. */
export function restored(figure: FigureSpec, address: URLSearchParams): Params {
  const params = defaults(figure);
  for (const control of figure.controls) {
    const texts = address.getAll(control.name);
    if (texts.length > 0) params[control.name] = parsed(control, texts) ?? control.default;
  }
  return params;
}

function parsed(control: Control, texts: string[]): Value | null {
  const text = texts[0] ?? "";
  if (control.kind === "range") return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : null;
  if (control.kind === "switch") return text === "true" || text === "1";
  if (control.kind === "many") return texts.filter((one) => one !== "");
  return text;
}

/** The page's address with this view. A page opened from a file keeps it behind the #. */
export function address(figure: string, params: Params): string {
  const url = new URL(location.href);
  url.search = "";
  url.hash = "";
  if (url.protocol === "file:") url.hash = query(figure, params);
  else url.search = query(figure, params);
  return url.href;
}

/** Whether what is behind the # is a token: neither a view nor a place on the page. */
export function bringsToken(hash: string): boolean {
  return hash !== "" && !hash.startsWith("figure=") && !document.getElementById(hash);
}

/** The token of the address, which is taken out of it and kept for every tab of this server. */
export function takeToken(): string {
  const hash = location.hash.slice(1);
  if (bringsToken(hash)) {
    localStorage.setItem(TOKEN, hash);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return localStorage.getItem(TOKEN) ?? "";
}
