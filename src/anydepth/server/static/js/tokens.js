// What became of the tokens of one answer, group by group. No page in here.

import { judged } from "./words.js";

/** States of a group: opening, held, released, withheld, early, plain (nothing is known). */
export class Tokens {
  /**
   * @param release how the answer is released: hold, eager or monitor
   * @param threshold where the policy halts; null if the server does not tell the checks
   * @param failsOpen whether a failed check lets the answer go on
   * @param opening the forced first words, or ""
   */
  constructor({ release, threshold, failsOpen = false, opening = "" }) {
    Object.assign(this, { release, threshold, failsOpen, depth: 0, openingDepth: 0 });
    Object.assign(this, { checks: [], groups: [], tripped: null });
    this.opened = opening !== "";
    if (this.opened) {
      this.groups.push({ text: opening, start: 0, stop: null, state: "opening", check: null });
    }
  }

  get told() {
    return this.threshold !== null;
  }

  /** Note a check; the groups that it settles change their state. */
  check(record) {
    const check = judged(record, this);
    if (this.opened && this.checks.length === 1) {
      this.depth = this.openingDepth = check.depth;
      Object.assign(this.groups[0], { stop: check.depth, check });
    }
    this.checks.push(check);
    if (this.tripped === null && check.stops) {
      this.tripped = check;
    }
    for (const group of this.groups) {
      if (group.state === "held") {
        this.settle(group, check);
      }
    }
  }

  settle(group, check) {
    group.check = check;
    if (this.tripped === null) {
      group.state = "released";
    } else if (this.release === "monitor") {
      group.state = "withheld";
    } else {
      group.state = this.release === "eager" ? "early" : "withheld";
    }
  }

  /** Add text that has left; `depth` is how far it goes, if the server tells. */
  add(text, depth, kind = "answer") {
    const group = { text, start: this.depth, stop: depth ?? null, kind, check: null, state: "plain" };
    if (this.told && depth !== undefined) {
      group.state = "held";
      if (this.release === "hold") {
        this.settle(group, this.checks.at(-1) ?? null);
      } else if (this.tripped && this.release === "monitor") {
        group.state = "withheld";
      }
      this.depth = depth;
    } else if (this.told) {
      const last = this.groups.at(-1);
      Object.assign(group, {
        state: last && last.state !== "opening" ? last.state : "plain",
        check: last?.check ?? null,
      });
    }
    this.groups.push(group);
    return group;
  }

  /** The answer has ended: nothing is held any more. */
  end(report) {
    this.report = report;
    for (const group of this.groups) {
      if (group.state === "held") {
        this.settle(group, this.checks.at(-1));
      } else if (group.state === "plain" && this.release !== "monitor" && !report.halted) {
        group.state = "released";
      }
    }
    if (report.halted && !this.told && this.release === "hold") {
      this.groups.filter((group) => group.state === "plain").forEach((group) => (group.state = "released"));
    }
  }
}
