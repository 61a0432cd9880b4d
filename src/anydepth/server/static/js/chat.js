// The chat: a prompt, a forced opening, and the answers to it.

import { AnswerView } from "./answer.js";
import { ApiError, stream } from "./api.js";
import { announce, byId, el, narrow } from "./dom.js";

const SUBS = {
  hold: "No token leaves before a check that covers it.",
  eager: "Tokens are sent first and checked after.",
  monitor: "Checked, but never stopped.",
};

export class Chat {
  constructor(config, settings) {
    Object.assign(this, { config, settings, history: [], running: null, last: null });
    this.prompt = byId("prompt");
    this.prefill = byId("prefill");
    this.prefill.parentElement.hidden = config.prefill === false;
    this.guarded = new AnswerView(byId("guarded"), { title: "Guarded" });
    this.unguarded = new AnswerView(byId("unguarded"), { title: "Unguarded", live: false });
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    for (const field of [this.prompt, this.prefill]) {
      field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          this.send();
        }
      });
    }
    this.prompt.addEventListener("input", () => this.complain(""));
    byId("stop").addEventListener("click", () => this.stop());
    byId("again").addEventListener("click", () => this.again());
    byId("fresh").addEventListener("click", () => this.fresh());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
  }

  /** Put an example into the form, in a conversation of its own. */
  load({ prompt, prefill }) {
    this.fresh();
    this.prompt.value = prompt;
    this.prefill.value = prefill;
    byId("send").focus();
  }

  complain(words) {
    byId("chat-error").textContent = words;
    this.prompt.setAttribute("aria-invalid", String(words !== ""));
  }

  async send() {
    if (this.running) {
      return;
    }
    const [prompt, prefill] = [this.prompt.value, this.prefill.value];
    if (!prompt.trim()) {
      this.complain("Type a prompt first.");
      this.prompt.focus();
      return;
    }
    if (!this.settings.valid({ report: true })) {
      return;
    }
    const exchange = { prompt, prefill, answer: null };
    this.last = exchange;
    this.running = new AbortController();
    this.prompt.value = this.prefill.value = "";
    this.buttons();
    this.stage(exchange);
    announce("The answer is being written.");
    const kind = this.settings.mode;
    const body = this.body(exchange);
    const runs = [this.run(this.guarded, body, kind, exchange)];
    if (this.settings.compares) {
      runs.push(this.run(this.unguarded, body, "monitor", exchange));
    }
    const [outcome] = await Promise.all(runs);
    this.running = null;
    this.buttons();
    announce(outcome);
    if (exchange.answer !== null) {
      this.history.push(exchange);
    }
  }

  body({ prompt, prefill }) {
    const messages = this.history.flatMap((past) => [
      { role: "user", content: past.prompt },
      { role: "assistant", content: past.prefill + past.answer },
    ]);
    messages.push({ role: "user", content: prompt });
    if (prefill) {
      messages.push({ role: "assistant", content: prefill });
    }
    return { model: this.config.model, messages, stream: true, ...this.settings.sampling() };
  }

  /** Show one answer while it comes; what to tell a screen reader about it. */
  async run(view, body, release, exchange) {
    const told = this.settings.told;
    const { on_error, refusal } = this.config.guard;
    const chosen = this.config.allowed.release.length > 1 ? release : null;
    const { signal } = this.running;
    view.begin({
      release,
      told,
      threshold: told ? this.settings.limit : null,
      failsOpen: on_error === "open",
      opening: exchange.prefill,
    });
    const words = [];
    try {
      for await (const chunk of stream("v1/chat/completions", {
        body: { ...body, anydepth: this.settings.overrides(chosen) },
        signal,
      })) {
        for (const choice of chunk.choices) {
          words.push(choice.delta?.content ?? "");
          view.take(choice, refusal);
        }
      }
      if (view === this.guarded) {
        exchange.answer = words.join("");
      }
      return `${view.title.textContent} answer: ${view.badge.textContent}.`;
    } catch (error) {
      if (signal.aborted) {
        view.fail("stopped", "Stopped by you");
        return "Stopped.";
      }
      if (error instanceof ApiError && error.report) {
        (error.report.timeline ?? []).forEach((check) => view.take({ anydepth: { check } }, refusal));
        view.end(error.report, refusal);
        if (view === this.guarded) {
          exchange.answer = refusal;
        }
        return `${view.title.textContent} answer: ${view.badge.textContent}.`;
      }
      const said = error instanceof ApiError ? error.message : `The console failed: ${error.message}`;
      view.fail("failed", "Failed", said);
      return said;
    }
  }

  stage({ prompt }) {
    byId("chat-empty").hidden = true;
    byId("answers").hidden = false;
    byId("asked").hidden = false;
    byId("asked-text").textContent = prompt;
    const kind = this.settings.mode;
    const both = this.settings.compares;
    byId("legend-early").hidden = kind !== "eager";
    byId("unguarded").hidden = !both;
    byId("alone").textContent = this.settings.whyAlone;
    byId("alone").hidden = this.settings.whyAlone === "";
    this.guarded.timeline.peer = both ? this.unguarded.timeline : null;
    this.unguarded.timeline.peer = both ? this.guarded.timeline : null;
    byId("unguarded").parentElement.classList.toggle("two", both);
    this.guarded.rename(kind === "monitor" ? "Watched" : "Guarded", SUBS[kind]);
    this.unguarded.rename("Unguarded", "What the model writes when nothing stops it.");
    this.earlier();
    if (narrow()) {
      byId("asked").scrollIntoView({ block: "start" });
    }
  }

  /** What was said before, above the answers. */
  earlier() {
    byId("earlier").hidden = this.history.length === 0;
    byId("earlier-title").textContent = `Earlier in this conversation (${this.history.length})`;
    byId("earlier-list").replaceChildren(
      ...this.history.map((past) =>
        el(
          "li",
          {},
          el("p", {}, el("strong", {}, "You: "), past.prompt),
          el("p", {}, el("strong", {}, "Answer: "), past.prefill + past.answer),
        ),
      ),
    );
  }

  buttons() {
    const busy = this.running !== null;
    const hadFocus = document.activeElement;
    byId("send").disabled = busy;
    byId("stop").disabled = !busy;
    byId("again").disabled = busy || this.last === null;
    byId("fresh").disabled = busy || this.last === null;
    if (hadFocus instanceof HTMLButtonElement && hadFocus.disabled) {
      this.moveFocus(busy);
    }
  }

  /** From a button that has gone grey; on a phone not into the prompt, whose keyboard would cover the answer. */
  moveFocus(busy) {
    const rest = narrow() ? this.guarded.words : this.prompt;
    (busy ? byId("stop") : rest).focus({ preventScroll: true });
  }

  stop() {
    this.running?.abort();
  }

  /** Take the last exchange back into the form. */
  again() {
    if (this.history.at(-1) === this.last) {
      this.history.pop();
    }
    this.prompt.value = this.last.prompt;
    this.prefill.value = this.last.prefill;
    this.prompt.focus();
  }

  fresh() {
    this.stop();
    this.history = [];
    this.last = null;
    this.complain("");
    for (const id of ["answers", "asked", "earlier"]) {
      byId(id).hidden = true;
    }
    byId("chat-empty").hidden = false;
    this.buttons();
    this.prompt.focus();
  }
}
