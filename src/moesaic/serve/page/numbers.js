// Numbers in words: few digits, a unit, and a dash where nothing is known.

const known = (value) => typeof value === "number" && Number.isFinite(value);

export const DASH = "–";

/** 1234567 -> "1.23 M"; small numbers keep three digits. */
export function short(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  for (const [scale, name] of [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e4, " k"]]) {
    if (size >= scale) return digits(value / (scale === 1e4 ? 1e3 : scale)) + name;
  }
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : DASH);

/** A share of 1 in per cent. */
export const percent = (value) => (known(value) ? `${digits(100 * value)} %` : DASH);

/** Seconds as s, ms or µs. */
export function time(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds >= 1 || seconds === 0) return `${digits(seconds)} s`;
  return seconds >= 1e-3 ? `${digits(1e3 * seconds)} ms` : `${digits(1e6 * seconds)} µs`;
}

/** Dollars. */
export function money(dollars) {
  if (!known(dollars)) return DASH;
  if (dollars === 0) return "$0";
  if (dollars >= 0.01) return `$${dollars.toFixed(dollars >= 1 ? 2 : 4)}`;
  if (dollars < 1e-7) return `$${dollars.toExponential(1)}`;
  const places = Math.min(20, 2 - Math.floor(Math.log10(dollars)));
  return `$${dollars.toFixed(places).replace(/0+$/, "")}`;
}

export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

export const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The value that a share `q` of `values` does not exceed; undefined of none. */
export function quantile(values, q) {
  if (!values.length) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
}
