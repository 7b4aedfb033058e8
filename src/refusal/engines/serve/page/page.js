// The page of `refusal serve`: one prompt under two or three conditions, side by side, as it is written.
// Nothing is stored, and nothing is asked of another host.

import { call, complaint, events, useKey } from "./server.js";
import { number, plural, sanitised, visible } from "./words.js";

const $ = (id) => document.getElementById(id);
const COLUMNS = 3;
const FIRST = ["baseline", "ablation", "addition"];  // chosen at first, where the server has them
const LEVELS = [-3, -2, -1, 0, 1, 2, 3];
const GAUGE = 6;  // how far a monitor's score may be from its threshold before its mark stands at the end
const KINDS = {
  refusal: "refusal", partial: "partial refusal", compliance: "no refusal", degenerate: "degenerate text", unfinished: "unfinished thought",
};

let info = null;
let running = null;  // AbortController of the answers that are being written
let seen = null;  // the prompt whose hidden answers were asked for
let answers = [];

// --- colours

// The middle is between what harmful and harmless prompts read on average; two steps lead to either.
function scaleOf(direction) {
  const { mean_harmful: high, mean_harmless: low, norm } = direction;
  const known = typeof high === "number" && typeof low === "number" && high !== low;
  return { known, middle: known ? (high + low) / 2 : 0, step: (known ? (high - low) / 4 : norm / 4) || 1 };
}

function level(x) {
  const { middle, step } = scaleOf(info.direction);
  return Math.max(-3, Math.min(3, Math.round((x - middle) / step)));
}

const levelClass = (at) => (at === 0 ? "" : `${at < 0 ? "less" : "more"}-${Math.abs(at)}`);

function drawScale() {
  $("scale").hidden = !info.direction;
  if (!info.direction) return;
  const { known, middle, step } = scaleOf(info.direction);
  const { layer, position } = info.direction;
  const means = known
    ? `The means are those of the prompts that it was found by, at position ${number(position, 0)}.`
    : "What prompts read on average is unknown here, so the middle is 0.";
  $("scale-words").textContent = `Each token's projection on the refusal direction, before layer ${layer}: ` +
    `underlined orange towards harmful, dotted blue towards harmless. ${means}`;
  $("scale-levels").replaceChildren(...LEVELS.map((at) => {
    const item = document.createElement("li");
    const bound = Math.abs(at) === 3 ? (at * step < 0 ? "below " : "above ") : "";
    const mean = known ? { [-2]: " harmless mean", 2: " harmful mean" }[at] ?? "" : "";
    item.textContent = bound + number(middle + (bound ? at - Math.sign(at) / 2 : at) * step) + mean;
    item.className = levelClass(at);
    return item;
  }));
}

// --- one answer

class Answer {
  constructor(choice, request) {
    Object.assign(this, { choice, request, tokens: [], waiting: [], chunks: 0, start: performance.now(), refusal: {} });
    this.record = { time: new Date().toISOString(), seconds: null, request, answer: "", finish_reason: null, usage: null, stopped: false, error: null };
    this.box = $("answer").content.firstElementChild.cloneNode(true);
    this.part = (selector) => this.box.querySelector(selector);
    const title = this.part("h3");
    title.textContent = choice.label;
    title.id = `answer-${choice.index}`;
    this.box.setAttribute("aria-labelledby", title.id);
    this.box.setAttribute("aria-busy", "true");
    this.part(".scroll").setAttribute("aria-label", `Projections under ${choice.label}`);
    this.state("waiting …");
    this.part(".veil button").addEventListener("click", () => show(this));
    this.part("details").addEventListener("toggle", () => this.list());
    copies(this.part(".copy"), this.part(".copy"), () => this.json());
    this.veil();
  }

  state(words) { this.part(".state").textContent = words; }

  veil() {
    const hidden = this.choice.stops && seen !== this.request.messages.at(-1).content;
    const none = this.words !== undefined && !this.record.answer;
    this.part(".veil").hidden = !hidden || none;
    this.part(".seen").hidden = hidden;
  }

  count() { return this.record.usage?.completion_tokens ?? (this.tokens.length || this.chunks); }

  async write(signal) {
    try {
      const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(this.request), signal });
      for await (const event of events(response.body)) this.take(event);
      const cut = this.record.finish_reason === "length";
      this.end(`${cut ? "cut off after" : "done,"} ${plural(this.count(), "token")}`);
    } catch (error) {
      this.record.stopped = error.name === "AbortError";
      if (this.record.stopped) {
        this.end(`stopped after ${plural(this.count(), "token")}`);
      } else {
        this.record.error = { message: error.message, status: error.status ?? null, code: error.code ?? null };
        this.part(".error").textContent = error.message;
        this.part(".error").hidden = false;
        this.end(this.count() ? `broken off after ${plural(this.count(), "token")}` : "no answer");
        if (error.status === 401) askForKey(error.message);
      }
    }
  }

  end(words) {
    this.record.seconds = Math.round(performance.now() - this.start) / 1000;
    this.words = words;
    this.state(this.count() ? `${words} in ${number(this.record.seconds, 1)} s` : words);
    this.veil();
    this.box.setAttribute("aria-busy", "false");
    this.list();
  }

  take(event) {
    if (event.error) throw complaint(event.error, null);
    const choice = event.choices?.[0];
    const { projections, ...rest } = event.refusal ?? {};
    Object.assign(this.refusal, rest);
    if (event.usage) this.record.usage = event.usage;
    if (choice?.finish_reason) this.record.finish_reason = choice.finish_reason;
    if (rest.monitor) this.monitor(rest.monitor);
    if (rest.verdict) this.verdict(rest.verdict);
    this.add(choice?.delta?.content ?? "", projections ?? []);
  }

  // Text with the projections of its tokens. What they spell may be held back until a character is whole, or
  // differ in spaces from the text: then one span stands for all of them.
  add(text, projections) {
    this.record.answer += text;
    this.tokens.push(...projections);
    this.waiting.push(...projections);
    if (!text) return;
    this.chunks += 1;
    const apart = this.waiting.map(([token]) => token).join("") === text;
    const pieces = apart ? this.waiting.map((one) => [one[0], [one]]) : [[text, this.waiting]];
    this.part(".text").append(...pieces.map(([words, of]) => span(words, of)));
    this.waiting = [];
    this.part(".numbers").hidden = !this.tokens.length;
    this.state(`writing: ${plural(this.count(), "token")}`);
  }

  monitor({ score, threshold, fires }) {
    const box = this.part(".monitor");
    box.hidden = false;
    box.classList.toggle("fires", fires);
    box.firstElementChild.textContent = `Monitor ${fires ? "fires" : "is silent"}: score ${number(score)}, threshold ${number(threshold)}`;
    const off = Math.max(-1, Math.min(1, (score - threshold) / GAUGE));
    this.part(".gauge").style.setProperty("--at", `${50 + 50 * off}%`);
  }

  verdict({ kind, by, evidence }) {
    const badge = this.part(".badge");
    this.judged = KINDS[kind] ?? kind;
    badge.textContent = this.judged;
    badge.className = `badge ${kind}`;
    badge.title = [`Judged by: ${by}`, evidence].filter(Boolean).join("\n");
    badge.hidden = false;
  }

  // The table of tokens, only while somebody looks at it.
  list() {
    if (!this.part("details").open) return;
    this.part("tbody").replaceChildren(...this.tokens.map(([token, x]) => {
      const row = document.createElement("tr");
      for (const [words, name] of [[visible(token), "tokens"], [number(x), "number"]]) {
        const cell = row.insertCell();
        cell.className = name;
        cell.textContent = words;
      }
      return row;
    }));
  }

  json() {
    const { condition = this.choice.label, monitor = null, verdict = null } = this.refusal;
    const projections = this.tokens.length ? this.tokens : null;
    return { ...this.record, refusal: { condition, monitor, verdict, projections } };
  }
}

function span(text, projections) {
  const found = document.createElement("span");
  found.textContent = sanitised(text);
  if (projections.length) {
    const mean = projections.reduce((sum, [, x]) => sum + x, 0) / projections.length;
    found.className = levelClass(level(mean));
    found.title = projections.map(([token, x]) => `${visible(token)}  ${number(x)}`).join("\n");
  }
  return found;
}

// One click shows what this prompt's answers are, also when it is asked again at another strength.
function show(answer) {
  seen = answer.request.messages.at(-1).content;
  for (const one of answers) one.veil();
  const text = answer.part(".text");
  text.tabIndex = -1;  // where the button was, so that the keyboard is not lost
  text.focus();
}

// --- copying

// To the clipboard; where that is not allowed (a page that is not on loopback or https), to a box with the text chosen.
function copies(row, under, make) {
  const button = row.querySelector("button"), words = button.textContent;
  button.addEventListener("click", async () => {
    const text = JSON.stringify(make(), null, 2);
    under.querySelector("textarea")?.remove();
    try {
      await navigator.clipboard.writeText(text);
      say("Copied as JSON.");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = words; }, 2000);
    } catch {
      const box = document.createElement("textarea");
      box.className = "json";
      box.readOnly = true;
      box.value = text;
      box.setAttribute("aria-label", "The JSON, to be copied by hand");
      under.append(box);
      box.focus();
      box.select();
      say("This browser does not let the page copy. The JSON is in the box and chosen: press Ctrl + C.");
    }
  });
}

// --- the form

const say = (words) => { $("status").textContent = words; };

function addChoice(index) {
  const box = $("choice").content.firstElementChild.cloneNode(true);
  const select = box.querySelector("select"), slider = box.querySelector("input");
  box.querySelector(".which").textContent = `Condition ${index + 1}`;
  if (index > 0) select.add(new Option("none", ""));
  for (const one of info.conditions) select.add(new Option(one.condition, one.id));
  select.value = info.conditions.find((one) => one.condition === FIRST[index])?.id ?? (index ? "" : info.conditions[0].id);
  const update = () => {
    const chosen = info.conditions.find((one) => one.id === select.value);
    box.querySelector(".about").textContent = chosen?.about ?? "Nothing is written here.";
    box.querySelector(".strength").hidden = !chosen?.takes_number;
    box.querySelector("output").textContent = slider.value;
  };
  select.addEventListener("change", update);
  slider.addEventListener("input", update);
  update();
  $("choices").append(box);
}

// What is chosen: a condition, and its strength behind @ where it is not 1.
function choices() {
  const found = [];
  for (const [index, box] of [...$("choices").children].entries()) {
    const chosen = info.conditions.find((one) => one.id === box.querySelector("select").value);
    if (!chosen) continue;
    const strength = Number(box.querySelector("input").value);
    const at = chosen.takes_number && strength !== 1 ? `@${strength}` : "";
    const stops = chosen.stops ?? chosen.condition !== "baseline";  // unknown: hidden at first
    found.push({ index, model: chosen.id + at, label: chosen.condition + at, stops });
  }
  return found;
}

function request(model) {
  const messages = [{ role: "user", content: $("prompt").value }];
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  return {
    model, messages, max_tokens: Number($("most").value), temperature: 0, stream: true, stream_options: { include_usage: true },
    refusal: { monitor: Boolean(info.monitor), verdict: true, projection: Boolean(info.direction) },
  };
}

async function run(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  busy(true);
  answers = choices().map((choice) => new Answer(choice, request(choice.model)));
  $("asked").textContent = $("prompt").value;
  $("answers").replaceChildren(...answers.map((one) => one.box));
  $("all-json").replaceChildren();
  $("results").hidden = false;
  if ($("results").getBoundingClientRect().top > 0.8 * innerHeight) $("run").scrollIntoView();  // a narrow screen
  say(`Writing ${plural(answers.length, "answer")} …`);
  const { signal } = running;
  await Promise.all(answers.map((one) => one.write(signal)));
  running = null;
  busy(false);
  say(answers.map((one) => [`${one.choice.label}: ${one.words}`, one.judged].filter(Boolean).join(", ")).join("; ") + ".");
}

function busy(now) {
  $("run").setAttribute("aria-disabled", now);
  $("stop").setAttribute("aria-disabled", !now);
}

// --- the beginning

function askForKey(words) {
  $("connect-why").textContent = words;
  $("connect").hidden = false;
}

function facts() {
  const { direction, monitor, limits } = info;
  const found = [];
  if (direction) found.push(`direction of layer ${direction.layer}, position ${number(direction.position, 0)}, norm ${number(direction.norm)}`);
  if (monitor) found.push(`monitor with threshold ${number(monitor.threshold)}, at most ${Number((100 * monitor.eps).toFixed(2))} % false alarms`);
  if (limits.max_prompt_tokens) found.push(`prompts up to ${plural(limits.max_prompt_tokens, "token")}`);
  found.push(`answers up to ${plural(limits.max_tokens, "token")}`);
  return found.join("; ") + ".";
}

async function connect(event) {
  event?.preventDefault();
  useKey($("key").value.trim());
  try {
    info = await (await call("refusal/info")).json();
  } catch (error) {
    $("model").textContent = "Not connected";
    askForKey(error.message);
    return;
  }
  $("connect").hidden = true;
  $("ask").hidden = false;
  $("model").textContent = info.model;
  document.title = `${info.model} · refusal serve`;
  $("facts").textContent = facts();
  $("most").max = info.limits.max_tokens;
  $("most").value = Math.min($("most").value, info.limits.max_tokens);
  $("choices").replaceChildren();
  for (let index = 0; index < COLUMNS; index += 1) addChoice(index);
  drawScale();
  if (event) $("prompt").focus();
}

$("connect").addEventListener("submit", connect);
$("ask").addEventListener("submit", run);
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("ask").requestSubmit(); }
});
copies($("results"), $("all-json"), () => answers.map((one) => one.json()));
connect();
