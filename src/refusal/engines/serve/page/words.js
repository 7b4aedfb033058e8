// Numbers and texts as the page shows them.

export const number = (x, digits = 2) => (typeof x === "number" ? x.toFixed(digits).replace("-", "−") : "unknown");
// What drives a terminal, turns the direction of text or cannot be seen, made visible: as core/text.py does it.
const UNSEEN = /(?![\n\t\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu;

function picture(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  return code === 0x7f ? "␡" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

export const sanitised = (text) => text.replaceAll("\r\n", "\n").replace(UNSEEN, picture);

// A token is shown with its spaces; one whose character is not whole yet, as dots.
export const visible = (token) => sanitised(token).replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "…";
export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
