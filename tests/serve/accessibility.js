// Faults of a page that a machine can see, as sentences: names, labels, references, headings, landmarks, contrast.
() => {
  const faults = [];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && e.getClientRects().length > 0;
  const say = (element, what) => faults.push(`${element.localName}#${element.id}.${element.getAttribute("class") ?? ""}: ${what}`);
  const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);

  const name = (e) =>
    e.getAttribute("aria-label") ??
    (e.getAttribute("aria-labelledby") ? document.getElementById(e.getAttribute("aria-labelledby"))?.textContent : null) ??
    ([...(e.labels ?? [])].map((l) => l.textContent).join(" ") || (["BUTTON", "A", "SUMMARY"].includes(e.tagName) ? e.textContent : ""));
  for (const e of all("button, a, summary, input, select, textarea, [tabindex='0'], [role=img], section, aside, nav, form#composer")) {
    if (!name(e)?.trim()) say(e, "has no name");
  }
  for (const e of all("img")) if (!e.hasAttribute("alt")) say(e, "has no alt");
  for (const e of all("table")) if (!e.caption?.textContent) say(e, "has no caption");
  for (const e of all("th")) if (!e.scope) say(e, "has no scope");

  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  ids.forEach((id, i) => ids.indexOf(id) !== i && faults.push(`id ${id} is there twice`));
  for (const attribute of ["for", "aria-describedby", "aria-labelledby", "aria-controls"]) {
    for (const e of document.querySelectorAll(`[${attribute}]`)) {
      if (!document.getElementById(e.getAttribute(attribute))) say(e, `${attribute} points nowhere`);
    }
  }
  if (!document.documentElement.lang) faults.push("the page has no language");
  if (!document.title) faults.push("the page has no title");
  if (all("main").length !== 1) faults.push("there is not one main");
  if (all("h1").length !== 1) faults.push(`there are ${all("h1").length} h1`);
  let level = 1;
  for (const e of all("h1, h2, h3, h4, h5, h6")) {
    const next = Number(e.localName[1]);
    if (next > level + 1) say(e, `a heading of level ${next} after level ${level}`);
    level = next;
  }

  // Contrast of each piece of text with what lies behind it: 4.5, large text 3 (WCAG 2.2, 1.4.3).
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => {
    const mix = (x, y) => x * top.a + y * (1 - top.a);
    return { r: mix(top.r, under.r), g: mix(top.g, under.g), b: mix(top.b, under.b), a: 1 };
  };
  const light = ({ r, g, b }) => {
    const linear = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !shown(e) || e.closest(":disabled, title, option, noscript")) continue;
    const style = getComputedStyle(e);
    let ground = behind(e);
    const cell = e.classList.contains("value") ? e.previousElementSibling : null;
    if (cell) ground = over({ ...parse(getComputedStyle(cell).fill), a: Number(cell.getAttribute("fill-opacity")) }, ground);
    const ink = over(parse(e instanceof SVGElement ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    checked++;
    if (ratio < wanted) say(e, `contrast ${ratio.toFixed(2)} of "${walker.currentNode.textContent.trim().slice(0, 20)}"`);
  }
  if (checked < 20) faults.push(`only ${checked} texts were found`);
  return faults;
}
