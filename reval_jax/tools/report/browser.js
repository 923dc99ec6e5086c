"use strict";
// Shows the page's rollouts. Whatever they say is set as text, never as HTML.
(() => {
  const source = document.getElementById("rollouts"), place = document.getElementById("browser");
  if (!source || !place) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 12, SHADES = 5;
  const state = { round: "", prompt: "", verdict: "", colour: "", words: "", coloured: "", sort: "round", down: false, page: 0 };
  const add = (parent, tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    parent.append(made);
    return made;
  };
  const body = row => row.x ?? row.t.join("");
  const hasColours = data.rows.some(row => row.s);
  // A number's colour is full at the size that 19 of 20 tokens do not reach; a last token's endogenous reward stands apart.
  const scales = data.scores.map((_, index) => {
    const sizes = data.rows.flatMap(row => row.s ? row.s[index].slice(0, index ? -1 : undefined).map(Math.abs) : []).sort((a, b) => a - b);
    return sizes.length ? sizes[Math.floor(0.95 * (sizes.length - 1))] || 1 : 1;
  });
  const shade = (value, scale) => {
    const strength = Math.min(SHADES, Math.round(SHADES * Math.abs(value) / scale));
    return strength ? (value > 0 ? "p" : "n") + strength : "";
  };

  const controls = add(place, "div", undefined, "controls");
  const status = add(place, "p", undefined, "soft");
  status.id = "status";
  const scaleBar = add(place, "p", undefined, "scale soft");
  const list = add(place, "div");
  list.id = "list";
  const paging = add(place, "div", undefined, "controls paging");

  const changed = () => { state.page = 0; show(); };
  const choose = (label, name, options) => {
    const select = add(add(controls, "label", label), "select");
    select.id = "choose-" + name;
    for (const [value, text] of options) add(select, "option", text).value = value;
    select.addEventListener("change", () => { state[name] = select.value; changed(); });
    select.value = state[name];
  };
  const unique = values => [...new Set(values)];
  const short = text => { const line = text.replace(/\s+/g, " ").trim(); return line.length > 60 ? "…" + line.slice(-60) : line; };
  const unfinished = new Set(data.rows.filter(row => row.u).map(row => row.r));
  const rounds = unique(data.rows.map(row => row.r));
  choose("round", "round", [["", "all rounds"], ...rounds.map(round => [String(round), "round " + round + (unfinished.has(round) ? " (unfinished)" : "")])]);
  if (data.prompts.length > 1) choose("prompt", "prompt", [["", "all " + data.prompts.length + " prompts"], ...data.prompts.map((text, index) => [String(index), short(text)])]);
  const count = verdict => data.rows.filter(row => row.v === verdict).length;
  choose("verdict", "verdict", [["", "all verdicts"], ...data.verdicts.filter(count).map(verdict => [verdict, verdict + " (" + count(verdict) + ")"])]);
  const orders = { round: row => row.r, reward: row => row.w, length: row => row.n };
  choose("sort by", "sort", [["round", "round"], ["reward", "reward"], ["length", "length"]]);
  const direction = add(add(controls, "label", "order"), "button", "▲ rising");
  direction.id = "direction";
  direction.addEventListener("click", () => { state.down = !state.down; direction.textContent = state.down ? "▼ falling" : "▲ rising"; changed(); });
  const words = add(add(controls, "label", "text in prompt or response"), "input");
  words.id = "words";
  words.addEventListener("input", () => { state.words = words.value.toLowerCase(); changed(); });
  if (hasColours) {
    state.colour = "0";
    choose("colours", "colour", [...data.scores.map((label, index) => [String(index), label]), ["", "none"]]);
    choose("tokens", "coloured", [["", "all"], ["yes", "coloured only"]]);
  }

  const matching = () => {
    const found = data.rows.filter(row =>
      (state.round === "" || String(row.r) === state.round) && (state.prompt === "" || String(row.p) === state.prompt) &&
      (state.verdict === "" || row.v === state.verdict) && (!state.coloured || row.s) &&
      (!state.words || (data.prompts[row.p] + "\n" + body(row)).toLowerCase().includes(state.words)));
    const key = orders[state.sort], sign = state.down ? -1 : 1;
    return found.sort((a, b) => sign * (key(a) - key(b)) || a.r - b.r || a.l - b.l);
  };
  const signed = value => (value > 0 ? "+" : "") + value.toFixed(2);
  const card = row => {
    const made = add(list, "article", undefined, "rollout"), about = add(made, "div", undefined, "about");
    add(about, "span", row.v, row.v === "ok" ? "verdict ok" : "verdict");
    add(about, "span", "round " + row.r + (row.u ? " (unfinished)" : ""));
    add(about, "span", "reward " + row.w);
    add(about, "span", row.n + " tokens" + (row.c ? ", cut at the limit" : ""));
    add(about, "span", "right answer: " + row.a);
    const texts = add(made, "div", undefined, "texts");
    add(texts, "pre", data.prompts[row.p], "prompt");
    const response = add(texts, "pre", undefined, "response");
    if (!row.t || (state.colour === "" && row.x !== undefined)) { response.textContent = row.x; return; }
    const index = state.colour === "" ? -1 : Number(state.colour);
    row.t.forEach((text, at) => {
      const token = add(response, "span", text.replace(/\n/g, "↵\n"), index < 0 ? "" : shade(row.s[index][at], scales[index]));
      token.title = data.scores.map((label, each) => label + " " + signed(row.s[each][at])).join("\n");
    });
    if (row.more) add(response, "span", " … (the page shows " + row.t.length + " of " + row.n + " tokens)", "soft");
  };
  function show() {
    const found = matching(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shown = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    status.textContent = found.length + " of " + data.rows.length + " responses match; page " + (state.page + 1) + " of " + pages;
    scaleBar.textContent = "";
    if (state.colour !== "") {
      const scale = scales[Number(state.colour)];
      for (const share of [-1, -0.6, -0.2, 0, 0.2, 0.6, 1]) add(scaleBar, "span", signed(share * scale), shade(share, 1));
      add(scaleBar, "span", "nats, " + data.scores[Number(state.colour)]);
    }
    list.textContent = "";
    shown.forEach(card);
    back.disabled = state.page === 0;
    next.disabled = state.page >= pages - 1;
  }
  const turn = (label, by) => {
    const button = add(paging, "button", label);
    button.addEventListener("click", () => { state.page += by; show(); place.scrollIntoView(); });
    return button;
  };
  const back = turn("← back", -1), next = turn("next →", 1);
  next.id = "next";
  show();
})();
