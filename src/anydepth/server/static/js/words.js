// How numbers and the server's words are said to people.

export const decimal = (value, digits = 2) =>
  value === null || value === undefined ? "none" : Number(value).toFixed(digits);

export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

const POLICIES = {
  threshold: () => "one score",
  k_of_n: (p) => `${p.k} of the last ${p.n} scores`,
  ewma: (p) => `moving average (weight ${p.alpha})`,
  cusum: (p) => `sum of scores above ${p.drift}`,
};

/** E.g. "2 of the last 3 scores ≥ 0.50". */
export function policyWords(policy) {
  const statistic = POLICIES[policy.name]?.(policy) ?? policy.name;
  const request = policy.request ? ` (the request by itself, times ${decimal(policy.request)})` : "";
  return `${statistic}${request} ≥ ${decimal(policy.threshold)}`;
}

export const RELEASES = {
  hold: "Hold: nothing leaves unchecked",
  eager: "Eager: send first, then check",
  monitor: "Monitor: watch only, never stop",
};

/** The check with `stops`: whether the guard halts at it (a failed check does, unless the guard fails open). */
export function judged(check, { threshold, failsOpen }) {
  const over = check.error ? !failsOpen : threshold !== null && !(check.statistic < threshold);
  return { ...check, stops: over || (!check.error && check.statistic === null) };
}

/** One check in a sentence. */
export function checkWords(check, threshold) {
  if (check.error) {
    return `Depth ${check.depth}: the check failed (${check.error}).`;
  }
  const numbers = `Depth ${check.depth}: score ${decimal(check.score, 3)}, statistic ${decimal(check.statistic, 3)}`;
  if (threshold === null) {
    return `${numbers}.`;
  }
  return `${numbers}, ${check.stops ? "reaches" : "below"} the threshold ${decimal(threshold)}.`;
}
