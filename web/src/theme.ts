/** Colours of groups. The values stand in style.css; here they are only named. */

import type { Mark } from "./contract";

export const GROUPS = 8;

/** The CSS variable of a mark's colour: its side's, its group's, or neutral. */
export function colour(mark: Pick<Mark, "group" | "style">): string {
  if (mark.style.side) return `--${mark.style.side}`;
  if (mark.group === null || mark.group === undefined) return "--neutral";
  return `--group-${((mark.group % GROUPS) + GROUPS) % GROUPS}`;
}

/** The colour as it is now, in light or in dark. Canvases and files cannot use variables. */
export function resolved(variable: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${variable})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

const KEY = "twosides-theme";
const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

export function theme(): Theme {
  const kept = stored();
  return THEMES.find((name) => name === kept) ?? "auto";
}

function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // a browser that keeps nothing for pages opened from a file
  }
}

export function applyTheme(name: Theme): void {
  document.documentElement.style.colorScheme = name === "auto" ? "light dark" : name;
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // then the choice lasts as long as the page
  }
}

export function nextTheme(name: Theme): Theme {
  return THEMES[(THEMES.indexOf(name) + 1) % THEMES.length] as Theme;
}
