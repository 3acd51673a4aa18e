/** Starts the page on the transport that it was given: frames inside it, or else the server. */

import "katex/dist/katex.min.css";
import "./style.css";

import { button } from "./dom";
import { Static, type Frames } from "./frames";
import { bringsToken, takeToken } from "./link";
import { Page } from "./page";
import { applyTheme, nextTheme, theme } from "./theme";
import { Socket } from "./transport";

function start(): void {
  const frames = document.getElementById("twosides-frames")?.textContent;
  const page = new Page((version) => (frames ? `precomputed by twosides ${version}` : `twosides ${version}`));
  themes(page);
  document.getElementById("skip")?.addEventListener("click", (event) => {
    event.preventDefault(); // the address is for views
    document.getElementById("title")?.focus();
  });
  if (frames) {
    document.body.classList.add("precomputed");
    page.connect(new Static(JSON.parse(frames) as Frames, page));
    return;
  }
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  page.connect(new Socket(`${scheme}://${location.host}/ws`, takeToken(), page));
  // an address pasted into this tab brings its own token
  window.addEventListener("hashchange", () => bringsToken(location.hash.slice(1)) && location.reload());
}

function themes(page: Page): void {
  let now = theme();
  const say = (element: HTMLElement) => (element.textContent = `Theme: ${now}`);
  const change = button("", () => {
    now = nextTheme(now);
    applyTheme(now);
    say(change);
    page.redraw();
  }, { id: "theme" });
  applyTheme(now);
  say(change);
  document.querySelector("header")?.append(change);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.redraw());
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
