// What a person would see to be wrong with a page. Each function runs within the
// page, so it has all that it needs inside.

/** Parts that overlap, go beyond their card, are cut, break into lines or have no name; and a list of frames that is too low. */
export function flawsOfLayout() {
  const flaws = [];
  const parts = [
    "h1", ".about", ".vitals", "#state", "#count", "#count-of", ".gate", "#session", "#copy", ".facts > div", "#notice", ".actions > *",
    ".frames-head > *", "#log", "#text", ".composer button", ".burst > *", ".watch-head > *",
    ".chart h3", ".chart-head .label", ".legend", ".plot", "footer",
  ];
  const inOneLine = ["h3", ".chart-head .label", "dt", "dd", ".key", "button", ".button"];
  const name = ({ tagName, id, className, textContent }) =>
    `${tagName.toLowerCase()} ${id || className} ${textContent.trim().slice(0, 40)}`;
  const shown = (selectors) => [...document.querySelectorAll(selectors.join())].filter((element) => element.checkVisibility());

  function overlap(element, other) {
    const [a, b] = [element.getBoundingClientRect(), other.getBoundingClientRect()];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) flaws.push(`${name(element)} and ${name(other)} overlap by ${wide} × ${high} px`);
  }

  function goBeyondItsCard(element) {
    const card = element.closest(".card")?.getBoundingClientRect();
    const box = element.getBoundingClientRect();
    const beyond = card && (box.bottom > card.bottom || box.right > card.right || box.left < card.left);
    if (beyond) flaws.push(`${name(element)} goes beyond its card`);
  }

  function breakIntoLines(element) {
    const { lineHeight, paddingTop, paddingBottom } = getComputedStyle(element);
    const line = Number.parseFloat(lineHeight) + Number.parseFloat(paddingTop) + Number.parseFloat(paddingBottom);
    if (element.getBoundingClientRect().height > 1.6 * line) flaws.push(`${name(element)} has more than one line`);
    if (element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1) flaws.push(`${name(element)} is cut`);
  }

  const { scrollWidth } = document.documentElement;
  if (scrollWidth > innerWidth) flaws.push(`the page is ${scrollWidth} px wide, in a window of ${innerWidth}`);
  shown(parts).forEach((element, i, all) => {
    goBeyondItsCard(element);
    for (const other of all.slice(i + 1)) overlap(element, other);
  });
  shown(inOneLine).forEach(breakIntoLines);
  for (const element of shown(["button", "a", "input", "textarea"])) {
    if (!element.textContent.trim() && !element.labels?.length) flaws.push(`${name(element)} has no name`);
  }
  const { height } = document.querySelector("#log").getBoundingClientRect();
  if (height < 12 * 16) flaws.push(`the list of frames is ${height} px high`);
  return flaws;
}

/** Texts whose contrast is below that of WCAG 2.2 level AA (1.4.3): 4.5, and 3 where they are large. */
export function faintTexts() {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  /** The luminance of colours painted over each other. */
  function luminance(colors) {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  const grounds = (element) => (element ? [...grounds(element.parentElement), getComputedStyle(element).backgroundColor] : []);

  function contrast(element) {
    const behind = grounds(element);
    const [low, high] = [luminance(behind), luminance([...behind, getComputedStyle(element).color])].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  function enough(element) {
    const { fontSize, fontWeight } = getComputedStyle(element);
    const size = Number.parseFloat(fontSize);
    return size >= 24 || (size >= 18.66 && fontWeight >= 700) ? 3 : 4.5;
  }

  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((element) => hasText(element) && element.checkVisibility() && !element.closest(".hidden, :disabled, noscript"))
    .filter((element) => contrast(element) < enough(element))
    .map((element) => `${element.className || element.id || element.tagName} ${element.textContent}: ${contrast(element).toFixed(2)}`);
}
