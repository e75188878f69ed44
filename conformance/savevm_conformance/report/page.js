"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const WORDS = {
  pass: "It says what the rules say.",
  fail: "It answers, and says something else.",
  error: "Its adapter could not tell, or broke the protocol.",
  crash: "It ended by a signal, an assertion or an exit where an answer was due.",
  timeout: "No answer within the time of a case.",
  memory: "It took more memory than a case may.",
  known: "It fails, and the list of known failures says why.",
  unexpected: "It passes, though the list of known failures has it.",
  skip: "It does not claim to have what the vector needs.",
  none: "No vector of this rule was run.",
};
const BAD = new Set(["crash", "timeout", "memory", "error", "fail", "unexpected"]);
const narrow = matchMedia("(max-width: 46rem)");

/** An element; properties that are functions are listeners, null children are left out. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// The roles are spelt out because tables that become blocks on a phone would lose them.
const tr = (properties, ...cells) => el("tr", { role: "row", ...properties }, ...cells);
const td = (properties, ...children) => el("td", { role: "cell", ...properties }, ...children);
const columnHeads = (names) =>
  el("thead", { role: "rowgroup" }, tr({}, ...names.map((name) => el("th", { scope: "col", role: "columnheader" }, name))));
const rowHead = (properties, ...children) => el("th", { scope: "row", role: "rowheader", ...properties }, ...children);
const word = (state) => el("span", { class: `word ${state}` }, state === "none" ? "–" : state);
const counted = (state, count) => el("span", { class: `word ${state}` }, `${state} ${count}`);
const terms = (pairs) => pairs.filter(([, value]) => value).flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]);
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// Results

/** The worst state, how many passed and how many ran, of some results. */
function verdict(results) {
  const count = {};
  for (const { state } of results) count[state] = (count[state] ?? 0) + 1;
  const ran = results.filter(({ outcome }) => outcome !== "skip");
  return {
    count,
    state: data.states.find((state) => count[state]) ?? "none",
    passed: ran.filter(({ outcome }) => outcome === "pass").length,
    ran: ran.length,
  };
}

const targets = data.targets.map((target, index) => ({
  ...target,
  index,
  label: target.ambiguous || !target.name ? target.target : `${target.name} ${target.version}`,
}));
const cases = Object.entries(data.cases).map(([id, entry]) => ({
  ...entry,
  id,
  results: entry.results.map(([target, role, state, outcome, expected, got, detail, known]) =>
    ({ target, role, state, outcome, expected, got, detail, known })),
}));
const caseOf = new Map(cases.map((each) => [each.id, each]));
const rules = data.rules.map((rule) => {
  const cited = cases.filter((each) => each.rules.includes(rule.id));
  return {
    ...rule,
    cases: cited,
    group: rule.id.split(".")[0],
    text: `${rule.id} ${rule.sentence}`.toLowerCase(),
    verdicts: targets.map(({ index }) => verdict(cited.flatMap(({ results }) => results.filter(({ target }) => target === index)))),
  };
});
const unruled = cases.filter((each) => !each.rules.length);
if (unruled.length) {
  rules.push({
    id: "none", level: "", binds: [], sentence: "Vectors that cite no rule.", cases: unruled, group: "none", text: "none",
    verdicts: targets.map(({ index }) => verdict(unruled.flatMap(({ results }) => results.filter(({ target }) => target === index)))),
  });
}
const ruleOf = new Map(rules.map((rule) => [rule.id, rule]));

// What is looked at: it all stands in the hash, so that every view is a link.

const FIELDS = ["q", "target", "outcome", "level", "area", "rule", "case"];
let view = {};

function parsed(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(FIELDS.map((field) => [field, given.get(field) ?? ""]));
}

function hashOf(wanted) {
  const escaped = (text) => encodeURIComponent(text).replaceAll("%2F", "/");
  return "#" + FIELDS.filter((field) => wanted[field]).map((field) => `${field}=${escaped(wanted[field])}`).join("&");
}

function go(change) {
  view = { ...view, ...change };
  history.replaceState(null, "", hashOf(view));
  filter();
}

const isOf = (outcome) => ({ state }) => outcome === "bad" ? BAD.has(state) : state === outcome;
const chosen = () => targets.filter((target) => !view.target || target.target === view.target);
const ofChosen = ({ results }) => results.filter(({ target }) => chosen().some(({ index }) => index === target));

function wantsCase(each) {
  return (!view.area || each.area === view.area) &&
    (!view.outcome || ofChosen(each).some(isOf(view.outcome)));
}

function wantsRule(rule) {
  if (rule.id === view.rule) return true;
  if (view.level && rule.level !== view.level) return false;
  if (!view.q.toLowerCase().split(/\s+/).every((part) => rule.text.includes(part))) return false;
  if (view.outcome === "none") return !view.area && chosen().every(({ index }) => rule.verdicts[index].state === "none");
  return !(view.outcome || view.area) || rule.cases.some(wantsCase);
}

// The page above the matrix

function head() {
  const day = data.date && new Date(data.date);
  const run = cases.reduce((sum, each) => sum + each.results.length, 0);
  const outcome = !run ? "Nothing was run"
    : data.failures ? plural(data.failures, "failure") : "No failures";
  const facts = [plural(rules.length, "rule"), plural(cases.length, "vector"), plural(run, "result")];
  $("facts").append(el("strong", {}, outcome), ...facts.flatMap((fact) => [" · ", el("span", {}, fact)]));
  $("colophon").textContent = [
    data.suite && `Suite of savevm ${data.suite}`,
    day && `run on ${day.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short", timeZone: "UTC" })} UTC`,
  ].filter(Boolean).join(", ");
  $("legend").append(...Object.entries(WORDS).flatMap(([state, text]) => [el("dt", {}, word(state)), el("dd", {}, text)]));
  for (const target of targets) {
    const { count, passed, ran } = verdict(cases.flatMap(({ results }) => results.filter((result) => result.target === target.index)));
    const states = ["pass", "known", ...data.states.filter((state) => BAD.has(state)), "skip"].filter((state) => count[state]);
    const bar = el("div", { class: "bar", "aria-hidden": "true" }, states.map((state) => el("i", { class: state })));
    [...bar.children].forEach((part, index) => { part.style.flexGrow = count[states[index]]; });
    const name = el("strong", {}, target.name || target.target);
    $("targets").append(el("li", {},
      el("div", { class: "who" }, target.url ? el("a", { href: target.url, rel: "noreferrer" }, name) : name, target.version,
        el("small", {}, el("code", {}, target.target), target.roles.length ? ` · ${target.roles.join(", ")}` : "")),
      bar,
      el("div", { class: "passed" }, el("b", {}, String(passed)), el("span", {}, ` of ${ran} pass`)),
      el("div", { class: "tally" }, states.filter((state) => state !== "pass").map((state) => counted(state, count[state])))));
  }
  const add = (name, values) => $("filters").elements[name].append(...values.map(([value, text]) => el("option", { value }, text)));
  add("target", targets.map(({ target, label }) => [target, label]));
  const seen = new Set(cases.flatMap(({ results }) => results.map(({ state }) => state)));
  add("outcome", [["bad", "not passing"], ...data.states.filter((state) => seen.has(state)).map((state) => [state, state]), ["none", "no vector"]]);
  add("level", [...new Set(rules.map(({ level }) => level))].filter(Boolean).map((level) => [level, level]));
  add("area", [...new Set(cases.map(({ area }) => area))].sort().map((area) => [area, area]));
}

// The matrix

function cell(target, { state, passed, ran, count }) {
  const score = state === "none" ? "" : ran ? `${passed}/${ran}` : String(count.skip);
  return td({ class: `target-${target.index} ${state}`, "data-target": target.label }, word(state), " ", el("small", {}, score));
}

function matrix() {
  const table = $("matrix");
  table.append(columnHeads(["Rule", ...targets.map((target) =>
    target.ambiguous || !target.name ? [target.target] : [target.name, el("small", {}, target.version)])]
    .map((name) => el("span", {}, ...[name].flat()))));
  targets.forEach(({ index }) => table.tHead.rows[0].cells[index + 1].classList.add(`target-${index}`));
  for (const [group, members] of Map.groupBy(rules, (rule) => rule.group)) {
    const covered = members.filter((rule) => rule.cases.length).length;
    const body = el("tbody", { role: "rowgroup" }, tr({ class: "group" },
      rowHead({ scope: "rowgroup" }, group, el("small", {}, `${plural(members.length, "rule")}${covered < members.length ? `, ${covered} with vectors` : ""}`)),
      targets.map((target) => {
        const all = new Set(members.flatMap((rule) => rule.cases));
        const { passed, ran } = verdict([...all].flatMap(({ results }) => results.filter((result) => result.target === target.index)));
        return td({ class: `target-${target.index}`, "data-target": target.label }, ran ? `${passed}/${ran}` : "–");
      })));
    for (const rule of members) body.append(...rows(rule));
    table.append(body);
  }
  // A column for each target, or where they do not fit a card for each rule.
  const root = document.documentElement;
  const cards = matchMedia(`(max-width: ${26 + 5.8 * targets.length}rem)`);
  const lay = () => root.classList.toggle("cards", cards.matches);
  cards.addEventListener("change", lay);
  root.style.setProperty("--columns", targets.length);
  lay();
}

function rows(rule) {
  const toggle = () => go(view.rule === rule.id ? { rule: "", case: "" } : { rule: rule.id, case: "" });
  const button = el("button", { type: "button", "aria-expanded": "false", "aria-controls": `about-${rule.id}`, click: (event) => { event.stopPropagation(); toggle(); } }, rule.id);
  rule.row = tr({ class: "rule", id: `rule-${rule.id}`, click: () => { if (!String(getSelection())) toggle(); } },
    rowHead({}, button, rule.level ? el("span", { class: "level" }, rule.level) : null,
      rule.errata ? el("span", { class: "erratum" }, "erratum") : null,
      rule.cases.length ? null : el("span", { class: "level" }, "no vector"),
      el("div", { class: "sentence" }, rule.sentence)),
    targets.map((target) => cell(target, rule.verdicts[target.index])));
  rule.detail = tr({ class: "detail", id: `about-${rule.id}`, hidden: true });
  rule.button = button;
  return [rule.row, rule.detail];
}

function filter() {
  const shown = chosen();
  for (const { index } of targets) {
    for (const each of document.querySelectorAll(`.target-${index}`)) each.hidden = !shown.some((target) => target.index === index);
  }
  let count = 0;
  for (const rule of rules) {
    const wanted = wantsRule(rule), open = rule.id === view.rule;
    count += wanted;
    rule.row.hidden = !wanted;
    rule.row.classList.toggle("open", open);
    rule.button.setAttribute("aria-expanded", String(open));
    rule.detail.hidden = !open;
    if (open && rule.drawn !== hashOf({ ...view, case: "" })) {
      rule.drawn = hashOf({ ...view, case: "" });
      rule.detail.replaceChildren(td({ colspan: shown.length + 1 }, about(rule)));
    }
  }
  for (const body of $("matrix").tBodies) body.hidden = [...body.rows].slice(1).every((row) => row.hidden);
  $("nothing").hidden = count > 0;
  $("count").textContent = count === rules.length ? `All ${plural(count, "rule")}` : `${count} of ${plural(rules.length, "rule")}`;
  for (const field of ["q", "target", "outcome", "level", "area"]) {
    const control = $("filters").elements[field];
    if (control.value !== view[field]) control.value = view[field];
  }
}

// Behind a rule

function about(rule) {
  // The worst comes first.
  const rank = (each) => data.states.indexOf(verdict(ofChosen(each)).state);
  const wanted = rule.cases.filter((each) => each.id === view.case || wantsCase(each)).sort((one, other) => rank(one) - rank(other));
  const others = rule.cases.filter((each) => !wanted.includes(each));
  const list = el("div", {}, wanted.map((each) => vector(rule, each)));
  const more = others.length ? el("button", { type: "button", click: () => { list.append(...others.map((each) => vector(rule, each))); more.remove(); } },
    `${others.length} more, which the filters leave out`) : null;
  return [
    el("dl", { class: "about" }, terms([
      ["Binds", rule.binds.join(", ")],
      ["When broken", rule.violation === "report" ? "reported; reading goes on" : rule.violation && `refused as ${rule.class}, at ${rule.at}`],
      ["Releases", [rule.since && `since QEMU ${rule.since}`, rule.until && `until QEMU ${rule.until}`].filter(Boolean).join(", ")],
      ["Erratum", rule.errata],
      ["Origin", rule.origin && el("code", {}, rule.origin)],
      ["Link", el("a", { href: hashOf({ rule: rule.id }) }, `#rule=${rule.id}`)],
      ["No vector", rule.cases.length ? "" : rule.without ?? "none of this run"],
    ])),
    rule.cases.length ? el("h3", {}, plural(rule.cases.length, "vector")) : null,
    list,
    more,
  ].filter(Boolean);
}

function vector(rule, each) {
  const shown = ofChosen(each);
  const { count } = verdict(shown);
  const words = data.states.filter((state) => count[state]).map((state) =>
    counted(state, count[state]));
  const inside = el("div", { class: "inside" });
  const item = el("details", { class: "vector", "data-case": each.id },
    el("summary", {},
      el("span", { class: "verdict" }, each.verdict),
      el("span", { class: "id" }, each.id),
      el("span", { class: "words" }, words),
      each.description ? el("span", { class: "said" }, each.description) : null),
    inside);
  item.addEventListener("toggle", () => {
    if (item.open && !inside.hasChildNodes()) inside.append(...behind(each, shown));
    if (item.open) go({ rule: rule.id, case: each.id });
    else if (view.case === each.id) go({ case: "" });
  });
  return item;
}

function behind(each, shown) {
  // Who says the same stands in one row.
  const said = Map.groupBy(shown, ({ target, ...result }) => JSON.stringify(result)).values();
  const names = (results) => results.map(({ target }) => targets[target].label).join(", ");
  const known = (result) => result.known ? el("div", {}, el("em", {}, "Known: "), result.known) : null;
  return [
    el("dl", { class: "about" }, terms([
      ["Made of", each.source],
      ["Change", each.change],
      ["Notes", each.notes],
      ["Needs", each.requires?.join(", ")],
      ["Machine", each.machine && el("code", {}, each.machine)],
      ["Rules", el("span", {}, each.rules.flatMap((id, index) => [index ? ", " : "", el("a", { href: hashOf({ rule: id }) }, el("code", {}, id))]))],
      ["SHA-256", each.sha256 && el("code", {}, each.sha256)],
      ["Run it", el("code", {}, `savevm conformance run --case '${each.id}' TARGET`)],
      ["Link", el("a", { href: hashOf({ case: each.id }) }, `#case=${each.id}`)],
    ])),
    el("table", { class: "results", role: "table", "aria-label": `Results of ${each.id}` },
      columnHeads(["Target", "Outcome", "Expected", "Got"]),
      el("tbody", { role: "rowgroup" }, [...said].map(([result, ...same]) => tr({},
        rowHead({}, names([result, ...same]), result.role === "reader" ? "" : ` (${result.role})`),
        td({}, word(result.state), result.state === "known" ? ` ${result.outcome}` : ""),
        td({ "data-label": "expected" }, result.expected),
        td({ "data-label": "got" }, el("span", { class: "got" }, result.got), known(result),
          result.detail.length ? el("ul", {}, result.detail.map((line) => el("li", {}, line))) : null))))),
    ...(each.bytes ? [el("h3", {}, `Stream, ${plural(each.size, "byte")}`), dump(each)] : []),
    ...(each.state ? [el("h3", {}, "State to write"), el("div", { class: "hexbox state-box", tabindex: 0, role: "region", "aria-label": "State" }, el("pre", {}, each.state))] : []),
  ];
}

// The bytes

/** Rows of a hex dump, which begin anew where something begins; offsets and sizes in bytes. */
function dumpRows(each, width) {
  const pieces = each.bytes.map(([start, index]) => ({ start, bytes: Uint8Array.from(atob(data.bytes[index]), (letter) => letter.charCodeAt(0)) }));
  const notes = Map.groupBy(each.notes_at, ([offset]) => offset);
  const starts = [...notes.keys()].sort((one, other) => one - other);
  const found = [];
  let reached = 0;
  for (const { start, bytes } of pieces) {
    if (start > reached) found.push({ gap: start - reached, at: reached });
    const end = start + bytes.length;
    for (let at = start; at < end;) {
      const next = starts.find((offset) => offset > at) ?? end;
      const to = Math.min(at + width, next, end);
      found.push({ at, bytes: bytes.subarray(at - start, to - start), notes: notes.get(at) ?? [] });
      at = to;
    }
    reached = end;
  }
  if (reached < each.size) found.push({ gap: each.size - reached, at: reached });
  for (const offset of starts.filter((offset) => offset >= each.size)) found.push({ at: offset, bytes: [], notes: notes.get(offset) });
  return found;
}

/** The same rows, of equal ones that follow each other only the first with how many it stands for. */
function folded(found) {
  const kept = [];
  for (const row of found) {
    const last = kept.at(-1);
    if (last?.bytes?.length && !row.gap && !row.notes.length && row.bytes.length === last.bytes.length && row.bytes.every((byte, index) => byte === last.bytes[index])) {
      last.again = (last.again ?? 0) + 1;
    } else kept.push(row);
  }
  return kept;
}

function dump(each) {
  const width = narrow.matches ? 8 : 16;
  const hex = (byte) => byte.toString(16).padStart(2, "0");
  const said = { record: (text) => text, finding: (text) => `finding here: ${text}`, error: (text) => `error expected here: ${text}` };
  const body = el("tbody");
  for (const row of folded(dumpRows(each, width))) {
    if (row.gap) {
      body.append(el("tr", { class: "gap" }, el("td", { colspan: 4 }, `… ${plural(row.gap, "byte")} from ${row.at} on are not on this page`)));
      continue;
    }
    const [first, ...rest] = [...row.bytes].map(hex);
    const marked = row.notes.some(([, kind]) => kind === "error");
    const notes = row.notes.map(([, kind, text]) => el("div", { class: kind === "error" ? "at" : kind }, said[kind](text)));
    body.append(el("tr", { class: row.notes.length ? "starts" : null },
      el("th", { scope: "row" }, String(row.at)),
      el("td", {}, first === undefined ? "end" : marked ? el("mark", {}, first) : first, rest.length ? ` ${rest.join(" ")}` : ""),
      el("td", {}, String.fromCharCode(...[...row.bytes].map((byte) => byte > 0x1f && byte < 0x7f ? byte : 0x2e))),
      el("td", { class: "note" }, notes)));
    if (row.again) {
      body.append(el("tr", { class: "gap" }, el("td", { colspan: 4 }, `and ${plural(row.again, "row")} like this, ${plural(row.again * row.bytes.length, "byte")}`)));
    }
  }
  return el("div", { class: "hexbox", tabindex: 0, role: "region", "aria-label": `Bytes of ${each.id}` },
    el("table", { class: "hex" },
      el("thead", {}, el("tr", {}, ["Offset", "Bytes", "ASCII", "What begins here"].map((name) => el("th", { scope: "col" }, name)))),
      body));
}

// Going

/** Show what the hash says, and bring what it names into sight. */
function follow() {
  view = parsed(location.hash);
  const wanted = caseOf.get(view.case);
  if (!wanted) view.case = "";
  else if (!ruleOf.get(view.rule)?.cases.includes(wanted)) view.rule = wanted.rules.find((id) => ruleOf.has(id)) ?? "none";
  const rule = ruleOf.get(view.rule);
  if (rule) rule.drawn = "";
  filter();
  if (!rule) return;
  if (!wanted) {
    rule.row.scrollIntoView();
    rule.button.focus({ preventScroll: true });
    return;
  }
  const item = rule.detail.querySelector(`[data-case="${CSS.escape(view.case)}"]`);
  item.open = true;
  item.scrollIntoView();
  item.querySelector("summary").focus({ preventScroll: true });
}

function theme() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => $("theme").setAttribute("aria-pressed", String(dark()));
  try {
    const kept = localStorage.getItem("theme");
    if (kept) root.dataset.theme = kept;
  } catch { /* A file may have no storage. */ }
  $("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* As above. */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

function streams() {
  if (!data.streams.length) return;
  $("streams").hidden = false;
  $("streams").append(el("table", { class: "results", role: "table", "aria-labelledby": "streams-title" }, columnHeads(["Stream", "Outcome", "Bodies nobody looked into", "Problems"]),
    el("tbody", { role: "rowgroup" }, data.streams.map((stream) => tr({},
      rowHead({}, el("code", {}, stream.file)), td({}, word(stream.outcome)),
      td({ "data-label": "bodies nobody looked into:" }, String(stream.opaque)), td({}, stream.problems.map((problem) => el("div", {}, problem))))))));
}

head();
matrix();
streams();
theme();
const form = $("filters");
for (const kind of ["input", "change"]) form.addEventListener(kind, () => go(Object.fromEntries(new FormData(form))));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => { event.preventDefault(); go(Object.fromEntries(FIELDS.map((field) => [field, ""]))); });
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    form.elements.q.focus();
  }
});
addEventListener("hashchange", follow);
follow();
