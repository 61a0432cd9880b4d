// One answer on the page: its words shaded by state, its verdict, its timeline.

import { el } from "./dom.js";
import { Timeline } from "./timeline.js";
import { Tokens } from "./tokens.js";
import { count, decimal, policyWords } from "./words.js";

const MOST_CELLS = 24;
const STATES = {
  opening: "your forced opening",
  held: "sent, its check is still to come",
  released: "released",
  withheld: "withheld",
  early: "left before the check that stopped the answer",
  plain: "the server does not tell its state",
};
const NO_CHECKS =
  "This server does not tell the score of every check. Its operator can allow it: checks = true under [overrides] in guard.toml.";

export class AnswerView {
  /** @param live whether screen readers read the answer once it is there */
  constructor(article, { title, sub = "", live = true }) {
    const id = `${article.id}-title`;
    this.article = article;
    this.title = el("h2", { id }, title);
    this.badge = el("p", { class: "badge", "data-kind": "empty" });
    this.sub = el("p", { class: "sub" }, sub);
    this.words = el("div", {
      class: "words",
      tabindex: "0",
      role: "region",
      "aria-label": `${title}, text`,
      "aria-live": live ? "polite" : "off",
    });
    this.problem = el("p", { class: "problem" });
    this.note = el("p", { class: "hint", hidden: true }, NO_CHECKS);
    this.facts = el("dl", { class: "facts" });
    this.timeline = new Timeline({ name: title.toLowerCase(), onChoose: (check) => this.light(check) });
    article.replaceChildren(
      el("header", {}, this.title, this.badge, this.sub),
      el("div", {}, this.words, this.problem),
      this.facts,
      this.timeline.node,
      el("div", {}, this.timeline.table, this.note),
    );
  }

  rename(title, sub) {
    this.title.textContent = title;
    this.sub.textContent = sub;
    this.words.setAttribute("aria-label", `${title}, text`);
    this.timeline.name = title.toLowerCase();
  }

  /** Empty the card for a new answer; `options` are those of Tokens. */
  begin(options) {
    this.tokens = new Tokens(options);
    this.mark("running", "Waiting…");
    this.problem.textContent = "";
    this.facts.replaceChildren();
    this.nodes = [];
    this.words.replaceChildren();
    this.words.setAttribute("aria-busy", "true");
    this.words.append(this.held());
    this.timeline.node.hidden = !this.tokens.told;
    this.note.hidden = this.tokens.told;
    this.drawTimeline();
    this.render();
  }

  /** Take one choice of a chunk; true if it was the last. */
  take(choice, refusal) {
    const { anydepth = {}, delta = {} } = choice;
    if (choice.finish_reason) {
      this.end(anydepth, refusal); // the chunk of a blocked answer has the refusal as well
      return true;
    }
    if (anydepth.check) {
      this.tokens.check(anydepth.check);
      this.drawTimeline();
    }
    if (delta.reasoning_content) {
      this.tokens.add(delta.reasoning_content, anydepth.depth, "thought");
    }
    if (delta.content) {
      this.tokens.add(delta.content, anydepth.depth);
      this.mark("running", "Writing…");
    }
    this.render();
    return false;
  }

  end(report, refusal) {
    this.tokens.end(report);
    this.placeholder?.remove();
    this.placeholder = null;
    this.render();
    if (report.halted) {
      this.words.append(...this.ending(report, refusal));
    }
    const [kind, words] = verdict(report);
    this.mark(kind, words);
    this.facts.replaceChildren(...factRows(report));
    this.words.setAttribute("aria-busy", "false");
  }

  /** The answer ends without a verdict: stopped by the reader, or an error. */
  fail(kind, badge, words = "") {
    this.placeholder?.remove();
    this.placeholder = null;
    this.mark(kind, badge);
    this.problem.textContent = words;
    this.words.setAttribute("aria-busy", "false");
  }

  mark(kind, words) {
    this.badge.dataset.kind = kind;
    this.badge.textContent = words;
  }

  /** What stands for tokens whose text has not left the server. */
  held() {
    const words = this.tokens.release === "hold" ? "held until the next check" : "writing";
    this.placeholder = el("span", { class: "tok held gap" }, words);
    return this.placeholder;
  }

  ending(report, refusal) {
    const early = report.release !== "hold";
    const n = report.withheld_tokens;
    const cells = el("span", { class: "cells", "aria-hidden": "true" }, "▮".repeat(Math.min(n, MOST_CELLS)));
    const where = report.depth === null ? "" : ` at depth ${report.depth}`;
    const cause = report.reason === "error" ? "A check failed" : "The guard stopped the answer";
    const nothing = early ? "; eager release had sent all of it" : ", before its first token";
    return [
      n
        ? el("span", { class: "tok withheld gap", "data-state": "withheld" }, cells, ` ${count(n, "token")} withheld`)
        : "",
      el("span", { class: "stopline" }, `${cause}${where}${n ? "" : nothing}.`),
      el("p", { class: "refusal" }, el("span", {}, "Said instead"), refusal),
    ];
  }

  render() {
    const atEnd = this.words.scrollHeight - this.words.scrollTop - this.words.clientHeight < 40;
    const groups = this.tokens.groups;
    while (this.nodes.length > groups.length) {
      this.nodes.pop().remove();
    }
    groups.forEach((group, index) => {
      if (!this.nodes[index]) {
        this.nodes[index] = el("span", {});
        if (index) {
          this.nodes[index - 1].after(this.nodes[index]);
        } else {
          this.words.prepend(this.nodes[index]);
        }
      }
      this.dress(this.nodes[index], group);
    });
    this.stopline();
    if (atEnd) {
      this.words.scrollTop = this.words.scrollHeight;
    }
  }

  dress(node, group) {
    const look = `${group.state} ${group.check?.depth} ${group.stop} ${group.text.length}`;
    if (group.look === look) {
      return; // a long answer has thousands of groups, of which a chunk changes a few
    }
    group.look = look;
    const place = group.stop === null ? "" : `Tokens ${group.start + 1} to ${group.stop}: `;
    const check = group.check ? `, check at depth ${group.check.depth}, score ${decimal(group.check.score)}` : "";
    const state =
      group.state === "withheld" && this.tokens.release === "monitor"
        ? "a guard would withhold this"
        : STATES[group.state];
    node.className = `tok ${group.state}${group.kind === "thought" ? " thought" : ""}`;
    node.dataset.state = group.state;
    node.title = `${place}${group.kind === "thought" ? "thought, " : ""}${state}${check}`;
    node.textContent = group.text;
  }

  /** Under monitor: a line where the guard would have stopped. */
  stopline() {
    const at = this.tokens.groups.findIndex((group) => group.state === "withheld");
    if (this.tokens.release !== "monitor" || at < 0 || this.line?.isConnected) {
      return;
    }
    this.line = el(
      "span",
      { class: "stopline" },
      `The guard would stop here, at the check of depth ${this.tokens.tripped.depth}.`,
    );
    this.nodes[at].before(this.line);
  }

  drawTimeline() {
    const { checks, threshold, openingDepth } = this.tokens;
    this.timeline.show({ checks, threshold, opening: openingDepth });
  }

  light(check) {
    this.tokens?.groups.forEach((group, index) => {
      this.nodes[index].classList.toggle("lit", check !== null && group.check?.depth === check.depth);
    });
  }
}

/** Kind and words of the badge. */
export function verdict(report) {
  if (report.halted) {
    return ["blocked", report.reason === "error" ? "Stopped: a check failed" : `Blocked at depth ${report.depth}`];
  }
  if (report.would_halt) {
    return ["would", `Would be blocked at depth ${report.depth}`];
  }
  return ["passed", report.failed_checks ? `Passed, ${count(report.failed_checks, "check")} failed` : "Passed"];
}

function factRows(report) {
  const deciding = report.would_halt ? "Deciding score" : "Highest score";
  const rows = [
    [deciding, report.score === null ? "no score" : `${decimal(report.score, 3)} at depth ${report.depth}`],
    ["Policy", policyWords(report.policy)],
    ["Checks", String(report.checks)],
    [report.halted ? "Released before the halt" : "Released", count(report.released_tokens, "token")],
  ];
  if (report.release !== "monitor") {
    rows.push(["Withheld", count(report.withheld_tokens, "token")]);
  }
  return rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}
