// Numbers as people read them.

export function whole(number) {
  return number.toLocaleString("en");
}

export function speed(number) {
  return number >= 100 ? whole(Math.round(number)) : number.toFixed(1);
}

export function percent(share) {
  return share === null ? "–" : `${Math.round(share * 100)}%`;
}

export function count(number) {
  for (const [size, unit] of [[1e9, " B"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return `${(number / size).toFixed(1)}${unit}`;
  }
  return String(number);
}

export function bytes(number) {
  if (number === null) return "not known";
  for (const [size, unit, digits] of [[1e12, "TB", 2], [1e9, "GB", 2], [1e6, "MB", 0], [1e3, "kB", 0]]) {
    if (number >= size) return `${(number / size).toFixed(digits)} ${unit}`;
  }
  return `${number} bytes`;
}

export function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}
