"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const CHOICES = ["left", "tie", "bad", "right"];
  const WORDS = { left: "answer 1", right: "answer 2", tie: "tie", bad: "both bad" };
  let rater = "";
  let ballots = new Map(); // pair -> {choice, note, seconds, time}
  let at = 0; // the pair that is shown
  let since = 0; // when it was shown
  let busy = false;
  let saving = Promise.resolve(); // what is being kept: one after the other, or an older choice could come last
  const drafts = new Map(); // pair -> a note that is not kept yet

  // ---- where ballots are kept: the server, or this browser ----

  const key = () => `flanx-compare ${data.id} ${rater}`;

  async function post(path, body) {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    }).catch(() => { throw new Error("The server does not answer. Is flanx compare still running?"); });
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error ? found.error.message : `${answer.status} ${answer.statusText}`);
    return found;
  }

  async function load() {
    if (data.served) return Object.entries((await post("api/rater", { rater })).ballots);
    return Object.entries(stored());
  }

  const stored = () => JSON.parse(localStorage.getItem(key()) || "{}");

  async function put(pair, ballot) {
    if (data.served) return post("api/ballot", { rater, pair, ...ballot });
    const all = { ...stored(), [pair]: ballot }; // another tab may have kept some
    localStorage.setItem(key(), JSON.stringify(all));
    ballots = new Map(Object.entries(all));
  }

  function keep(pair, ballot) {
    saving = saving.catch(() => {}).then(() => put(pair, ballot)).then(() => drafts.delete(pair));
    return saving;
  }

  function lines() {
    const head = { comparison: data.id, rater, kind: "people", version: data.version };
    const rows = [...ballots].map(([pair, ballot]) => ({ pair, swapped: false, ...ballot }));
    return [head, ...rows].map((row) => JSON.stringify(row) + "\n").join("");
  }

  function saveFile() {
    ballots = new Map(Object.entries(stored()));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" }));
    link.download = `ballots-${rater.replace(/[^\w-]+/g, "-")}-${data.id.slice(0, 6)}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function readFile(text) {
    const [head, ...rows] = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
    if (!head || head.comparison !== data.id) throw new Error("That file holds ballots of another comparison.");
    const known = new Set(data.pairs.map((pair) => pair[0]));
    const found = rows.filter((row) => known.has(row.pair) && CHOICES.includes(row.choice));
    return [String(head.rater), found.map(({ pair, choice, note, seconds, time }) => [pair, { choice, note, seconds, time }])];
  }

  // ---- what is shown ----

  function fill(id, text) {
    const box = $(id);
    box.textContent = text.trim() ? text : "(no answer)";
    box.classList.toggle("empty", !text.trim());
    box.scrollTop = 0;
  }

  function show(place, focus = true) {
    at = place;
    const done = at >= data.pairs.length;
    $("rate").hidden = $("choices").hidden = done;
    $("done").hidden = !done;
    progress();
    if (done) {
      $("done-text").textContent = data.served
        ? "Every choice is kept; you may close this page."
        : "Save your ballots and send the file to whoever asked you.";
      if (focus) $("done-title").focus();
      return;
    }
    const [pair, prompt, left, right] = data.pairs[at];
    fill("prompt", data.texts[prompt]);
    fill("left", data.texts[left]);
    fill("right", data.texts[right]);
    $("place").textContent = `${at + 1} of ${data.pairs.length}`;
    $("note").value = drafts.has(pair) ? drafts.get(pair) : (ballots.get(pair) || {}).note || "";
    grow();
    mark((ballots.get(pair) || {}).choice);
    $("back").disabled = at === 0;
    window.scrollTo(0, 0);
    if (focus) $("prompt-title").focus({ preventScroll: true });
    since = performance.now();
  }

  function mark(choice) {
    for (const button of document.querySelectorAll(".choice")) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
    }
    $("left-card").classList.toggle("chosen", choice === "left");
    $("right-card").classList.toggle("chosen", choice === "right");
  }

  function progress() {
    const total = data.pairs.length;
    $("count").textContent = `${ballots.size} of ${total} rated`;
    $("bar").setAttribute("aria-valuenow", ballots.size);
    $("bar").setAttribute("aria-valuemax", total);
    $("bar").firstElementChild.style.width = `${(100 * ballots.size) / total}%`;
    $("save").hidden = data.served || !ballots.size;
  }

  function fail(error) {
    $("error").textContent = error ? `Not saved: ${error.message}` : "";
    $("error").hidden = !error;
  }

  function grow() {
    const note = $("note");
    note.style.height = "auto";
    note.style.height = `${Math.min(note.scrollHeight + 2, 200)}px`;
  }

  // ---- what the rater does ----

  async function choose(choice) {
    if (busy || at >= data.pairs.length) return;
    busy = true;
    const pair = data.pairs[at][0];
    const before = ballots.get(pair);
    const seconds = Math.round((performance.now() - since) / 100) / 10 + (before ? before.seconds || 0 : 0);
    const ballot = { choice, note: $("note").value, seconds, time: new Date().toISOString() };
    mark(choice);
    try {
      await keep(pair, ballot);
      ballots.set(pair, ballot);
      fail(null);
      show(before ? at + 1 : next());
    } catch (error) {
      mark(before && before.choice);
      fail(error);
    } finally {
      busy = false;
    }
  }

  async function keepNote() {
    const pair = data.pairs[at] && data.pairs[at][0];
    const before = ballots.get(pair);
    if (!before || before.note === $("note").value) return;
    const ballot = { ...before, note: $("note").value };
    try {
      await keep(pair, ballot);
      ballots.set(pair, ballot);
      fail(null);
    } catch (error) {
      fail(error);
    }
  }

  function next() { // the next pair that is not rated, from here on and then from the beginning
    const open = (n) => !ballots.has(data.pairs[n][0]);
    for (let n = at; n < data.pairs.length; n++) if (open(n)) return n;
    for (let n = 0; n < at; n++) if (open(n)) return n;
    return data.pairs.length;
  }

  async function step(by) {
    await keepNote();
    show(Math.max(0, Math.min(data.pairs.length, at + by)));
  }

  function help() {
    $("who").hidden = Boolean(rater);
    $("name").required = !rater;
    $("begin").textContent = rater ? "Resume" : "Begin";
    $("start").showModal();
    (rater ? $("begin") : $("name")).focus();
  }

  async function begin(event) {
    if (rater) return; // the form only closes the help
    event.preventDefault();
    rater = $("name").value.trim().normalize("NFC");
    try {
      if (!rater.replace(/[\u200c\u200d\s]/g, "")) throw new Error("A name is needed.");
      if (/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u.test(rater)) throw new Error("A name has no signs that do not print.");
      if ([...rater].length > data.longest.rater) throw new Error(`A name has ${data.longest.rater} characters at most.`);
      ballots = new Map(await load());
    } catch (error) {
      $("name-error").textContent = error.message;
      rater = "";
      return;
    }
    $("start").close();
    at = 0;
    show(next());
  }

  const KEYS = {
    1: () => choose("left"), ArrowLeft: () => choose("left"), 2: () => choose("right"), ArrowRight: () => choose("right"),
    t: () => choose("tie"), 0: () => choose("tie"), b: () => choose("bad"), p: () => step(-1), s: () => step(1),
    n: () => $("note").focus(), "?": help,
  };

  document.addEventListener("keydown", (event) => {
    if (event.target === $("note") && event.key === "Escape") $("prompt-title").focus({ preventScroll: true });
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("start").open) return;
    if (event.target.matches("input, textarea")) return;
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || (at >= data.pairs.length && action !== KEYS.p && action !== KEYS["?"])) return;
    event.preventDefault();
    action();
  });
  for (const button of document.querySelectorAll(".choice")) button.addEventListener("click", () => choose(button.dataset.choice));
  $("back").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("again").addEventListener("click", () => show(0));
  $("help").addEventListener("click", help);
  $("save").addEventListener("click", saveFile);
  $("note").addEventListener("input", () => {
    grow();
    if (at < data.pairs.length) drafts.set(data.pairs[at][0], $("note").value);
  });
  $("note").addEventListener("change", keepNote);
  $("start-form").addEventListener("submit", begin);
  $("start").addEventListener("cancel", (event) => { if (!rater) event.preventDefault(); });
  $("load").addEventListener("change", async (event) => {
    try {
      const [name, found] = readFile(await event.target.files[0].text());
      rater = name;
      ballots = new Map(await load());
      for (const [pair, ballot] of found) { // what was chosen here since the file was saved stays
        if (!((ballots.get(pair) || {}).time > ballot.time)) ballots.set(pair, ballot);
      }
      localStorage.setItem(key(), JSON.stringify(Object.fromEntries(ballots)));
      $("start").close();
      at = 0;
      show(next());
    } catch (error) {
      rater = "";
      $("name-error").textContent = error instanceof SyntaxError ? "That is not a file of ballots." : error.message;
    }
  });
  window.addEventListener("beforeunload", (event) => { if (!data.served && ballots.size && at < data.pairs.length) event.preventDefault(); });

  $("note").maxLength = data.longest.note;
  $("where").textContent = data.served
    ? "Every choice is kept as you make it. Come back with the same name to resume."
    : "Choices stay in this browser. Save them as a file when you are done, or to resume elsewhere.";
  $("load-box").hidden = data.served;
  progress();
  help();
})();
