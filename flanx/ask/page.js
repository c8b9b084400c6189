"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const numbers = ["temperature", "top_k", "top_p", "max_tokens", "seed"];
let turns = [];       // {role, content} of the conversation so far
let running = null;   // the AbortController of the answer that is coming

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;   // what models and people wrote is text, never HTML
  return made;
}

function button(text, act) {
  const made = element("button", "plain", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function listed(role) {
  const item = element("li", role);
  item.append(element("div", "who", role === "user" ? "You" : data.model));
  const text = element("div", "text");
  item.append(text);
  at("log").append(item);
  at("empty").hidden = true;
  return { item, text };
}

function follow(act) {   // stays at the end of the conversation where the reader is there
  const view = document.querySelector("main");
  const isAtEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 120;
  act();
  if (isAtEnd) view.scrollTop = view.scrollHeight;
}

function settings() {
  const found = {};
  for (const name of numbers) if (at(name).value !== "") found[name] = Number(at(name).value);
  found.stop = at("stop").value ? [at("stop").value] : [];
  return found;
}

function messages(question) {
  const text = at("system").value.trim();   // an empty one says that the server's own is not wanted
  const system = text || data.system ? [{ role: "system", content: text }] : [];
  return [...system, ...(at("keep").checked ? turns : []), { role: "user", content: question }];
}

async function post(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error?.message ?? `the server answered with status ${answer.status}`);
}

async function* events(answer) {   // the objects of a stream of server-sent events
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const text = part.replace(/^data: /, "");
      if (text === "[DONE]") return;
      const found = JSON.parse(text);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

async function answer(question, more = {}) {
  const asked = { model: data.model, messages: messages(question), stream: true, ...settings(), ...more };
  const { item, text } = listed("assistant");
  document.querySelector("main").scrollTop = document.querySelector("main").scrollHeight;
  item.setAttribute("aria-busy", "true");
  setRunning(new AbortController());
  const { signal } = running;
  let whole = "", finish = null;
  try {
    for await (const event of events(await post("/v1/chat/completions", asked, signal))) {
      whole += event.choices[0].delta.content;
      finish = event.choices[0].finish_reason;
      follow(() => { text.textContent = whole; });
    }
  } catch (error) {
    finish = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) {
      const lost = error instanceof TypeError ? "the server cannot be reached: is it still running?" : error.message;
      const problem = element("div", "problem", lost);
      problem.setAttribute("role", "alert");
      follow(() => item.append(problem));
    }
  }
  item.removeAttribute("aria-busy");
  setRunning(null);
  follow(() => item.append(foot(question, asked, whole, finish)));
  if (finish !== "failed") at("said").textContent = `Answer: ${whole.slice(0, 500) || "empty"}`;
  return finish === "failed" ? null : whole;
}

function foot(question, asked, whole, finish) {
  const row = element("div", "foot");
  const notes = { length: "cut at its longest", stopped: "stopped", failed: "" };
  const note = [whole === "" && finish === "stop" ? "an empty answer" : notes[finish],
                asked.temperature > 0 ? `seed ${asked.seed ?? data.defaults.seed}` : ""].filter(Boolean).join(", ");
  if (note) row.append(element("span", "muted", note));
  if (finish !== "failed" && asked.temperature > 0) row.append(button("Another", () => {
    if (running) return;
    at("seed").value = String((asked.seed ?? data.defaults.seed) + 1);
    if (turns.at(-2)?.content === question) turns.splice(-2);   // the new answer takes the place of the last one
    ask(question, false);
  }));
  if (navigator.clipboard && whole) row.append(button("Copy", () => navigator.clipboard.writeText(whole)));
  const seen = button("Prompt", async () => {
    const shown = seen.nextPrompt;
    if (shown) { shown.hidden = !shown.hidden; }
    else {
      let text;
      try {
        const found = await (await post("/v1/prompt", { messages: asked.messages })).json();
        text = `${found.tokens} tokens\n\n${found.prompt}`;
      } catch (error) { text = error.message; }
      seen.nextPrompt = element("pre", "text prompt", text);
      seen.nextPrompt.tabIndex = 0;
      row.after(seen.nextPrompt);
    }
    seen.setAttribute("aria-expanded", String(!seen.nextPrompt.hidden));
  });
  seen.setAttribute("aria-expanded", "false");
  row.append(seen);
  return row;
}

async function ask(question, isNew = true) {
  if (isNew) listed("user").text.textContent = question;
  const conversation = turns;   // "New" begins another one
  const said = await answer(question);
  if (said !== null) conversation.push({ role: "user", content: question }, { role: "assistant", content: said });
  return said !== null;
}

function setRunning(controller) {
  running = controller;
  at("send").hidden = controller !== null;
  at("stop-answer").hidden = controller === null;
}

function send() {
  const question = at("question").value;
  if (running || !question.trim()) return;
  at("question").value = "";
  grow();
  ask(question).then((isAnswered) => {
    if (!isAnswered && !at("question").value) at("question").value = question;   // to be mended and sent again
    grow();
    at("question").focus();
  });
}

function grow() {
  const box = at("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("question").addEventListener("input", grow);
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
at("stop-answer").addEventListener("click", () => { running?.abort(); at("question").focus(); });
at("new").addEventListener("click", () => {
  running?.abort();
  turns = [];
  at("log").replaceChildren();
  at("empty").hidden = false;
  at("said").textContent = "A new conversation";
  at("question").focus();
});
at("show-settings").addEventListener("click", () => {
  at("settings").hidden = !at("settings").hidden;
  at("show-settings").setAttribute("aria-expanded", String(!at("settings").hidden));
});

at("name").textContent = data.model;
at("about").textContent = `${data.parameters.toLocaleString("en")} parameters; prompts of up to `
  + `${data.lengths.inputs.toLocaleString("en")} tokens, answers of up to ${data.lengths.targets.toLocaleString("en")}`;
for (const name of numbers) at(name).value = data.defaults[name] ?? "";
at("max_tokens").placeholder = String(data.lengths.targets);
at("max_tokens").max = String(data.lengths.targets);
at("stop").value = data.defaults.stop[0] ?? "";
at("system").value = data.system;
at("keep").checked = !data.forgets;
at("keep").disabled = data.forgets;
