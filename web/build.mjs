// Builds the page into the Python package: two files named by their contents, fonts, a manifest, the licences.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const page = resolve(here, process.argv[2] ?? "../src/twosides/explorer/page");
const LIMIT = 400_000; // bytes, compressed, of all that a visitor loads
const FONTS = ["Main-Regular", "Main-Bold", "Math-Italic", "AMS-Regular", "Caligraphic-Regular", "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular"];

// KaTeX brings twenty fonts in three formats; the figures' formulas need these, in the one format that every browser reads.
const fewerFonts = {
  name: "fewer-fonts",
  setup(build) {
    build.onLoad({ filter: /katex\.min\.css$/ }, ({ path }) => {
      const css = readFileSync(path, "utf8").replace(/@font-face\{[^}]*\}/g, (face) => {
        const woff2 = /url\(fonts\/KaTeX_([\w-]+)\.woff2\)/.exec(face);
        if (!woff2 || !FONTS.includes(woff2[1])) return "";
        return face.replace(/src:[^;}]*/, `src:url(fonts/KaTeX_${woff2[1]}.woff2) format("woff2")`);
      });
      return { contents: css, loader: "css" };
    });
  },
};

const result = await esbuild.build({
  absWorkingDir: here,
  entryPoints: ["src/main.ts"],
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022", "chrome123", "firefox120", "safari17.5"],
  charset: "utf8",
  legalComments: "none",
  loader: { ".woff2": "file" },
  assetNames: "[name]-[hash]",
  outdir: "out",
  plugins: [fewerFonts],
  metafile: true,
  write: false,
});

const files = new Map();
const manifest = { js: "", css: "", fonts: [] };
for (const { path, contents } of result.outputFiles) {
  const kind = path.endsWith(".js") ? "js" : path.endsWith(".css") ? "css" : "fonts";
  const digest = createHash("sha256").update(contents).digest("hex").slice(0, 10);
  const name = `assets/${kind === "fonts" ? basename(path) : `app-${digest}.${kind}`}`;
  files.set(name, contents);
  if (kind === "fonts") manifest.fonts.push(name);
  else manifest[kind] = name;
}
manifest.fonts.sort();
const script = new TextDecoder().decode(files.get(manifest.js));
if (/<\/script|<!--/i.test(script)) throw new Error("the script cannot be put into a page: it contains </script or <!--");

const html = readFileSync(join(here, "index.html"), "utf8").replace("{{js}}", `/${manifest.js}`).replace("{{css}}", `/${manifest.css}`);
files.set("index.html", html);
files.set("manifest.json", `${JSON.stringify(manifest, null, 2)}\n`);
files.set("LICENSES.txt", licences(Object.keys(result.metafile.inputs)));

const size = [...files].filter(([name]) => !name.endsWith(".txt")).reduce((sum, [, contents]) => sum + gzipSync(contents).length, 0);
if (size > LIMIT) throw new Error(`the page is ${size} bytes compressed, more than ${LIMIT}`);

rmSync(join(page, "assets"), { recursive: true, force: true });
mkdirSync(join(page, "assets"), { recursive: true });
for (const [name, contents] of files) writeFileSync(join(page, name), contents);
console.log(`${files.size} files, ${(size / 1000).toFixed(0)} kB compressed`);

// Of every package of which something is in the bundle.
function licences(inputs) {
  const packages = [...new Set(inputs.flatMap((input) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(input)?.[1] ?? []))].sort();
  const texts = packages.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    return `${name} ${version} (${license})\n\n${readFileSync(join(folder, "LICENSE"), "utf8").trim()}\n`;
  });
  const rule = `\n${"-".repeat(80)}\n\n`;
  return `The explorer's page contains parts of these packages.\n${rule}${texts.join(rule)}`;
}
