// The list of frames: thousands of lines, of which only those in sight are
// elements. New ones are drawn once for each frame of the screen.

/**
 * @typedef {object} Entry
 * @property {Date} at
 * @property {"sent"|"reply"|"beat"|"good"|"warn"|"bad"} kind
 * @property {string} mark a sign for the kind
 * @property {string} what the kind in a word, for screen readers and the heading of the whole
 * @property {string} text what is shown in the line
 * @property {string} [whole] what is shown on demand, by default text
 * @property {string} [count] @property {string} [roundTrip]
 */

const most = 10_000; // entries kept
const dropped = 1_000; // at a time, once there are more
const rowRem = 1.75; // a line's height; console.css has the same
const shown = 400; // characters of a text in its line
const spare = 4; // lines drawn above and below what is in sight

export class Log {
  #entries = [];
  #gone = 0; // entries dropped so far
  #active = -1; // the chosen entry, counted from the first ever
  #following = true;
  #unseen = 0;
  #scheduled = false;
  #pool = [];
  #height = 0;
  #top = 0; // where following has scrolled to
  #view; #rows; #newest; #onOpen; #onDraw;

  /**
   * @param {{view: HTMLElement, newest: HTMLButtonElement, onOpen: (entry: Entry) => void, onDraw: (size: number) => void}} parts
   */
  constructor({ view, newest, onOpen, onDraw }) {
    this.#view = view;
    this.#rows = view.firstElementChild;
    this.#newest = newest;
    this.#onOpen = onOpen;
    this.#onDraw = onDraw;
    view.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    view.addEventListener("keydown", (event) => this.#onKey(event));
    view.addEventListener("click", (event) => this.#onClick(event));
    newest.addEventListener("click", () => { this.follow(); view.focus(); });
    new ResizeObserver(() => this.#schedule()).observe(view);
  }

  /** @param {Entry} entry */
  add(entry) {
    this.#entries.push(entry);
    if (!this.#following) this.#unseen++;
    if (this.#entries.length > most) this.#drop();
    this.#schedule();
  }

  clear() {
    this.#gone += this.#entries.length;
    this.#entries = [];
    this.#active = -1;
    this.follow();
  }

  /** Goes to the newest line, and stays there. */
  follow() {
    this.#following = true;
    this.#unseen = 0;
    this.#schedule();
  }

  #drop() {
    this.#entries.splice(0, dropped);
    this.#gone += dropped;
    if (this.#active < this.#gone) this.#active = -1;
    if (!this.#following) this.#view.scrollTop -= dropped * this.#height;
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    this.#height = rowRem * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const { clientHeight } = this.#view;
    this.#rows.style.height = `${this.#entries.length * this.#height}px`;
    if (this.#following) this.#goToEnd();
    const first = Math.max(Math.floor(this.#view.scrollTop / this.#height) - spare, 0);
    const last = Math.min(first + Math.ceil(clientHeight / this.#height) + 2 * spare, this.#entries.length);
    this.#fillPool(last - first);
    this.#pool.forEach((row, i) => this.#drawRow(row, first + i, first + i < last));
    this.#newest.hidden = this.#following;
    this.#newest.textContent = this.#unseen > 0 ? `↓ ${this.#unseen.toLocaleString("en")} new` : "↓ newest";
    this.#point();
    this.#onDraw(this.#entries.length);
  }

  #goToEnd() {
    this.#view.scrollTop = this.#entries.length * this.#height;
    this.#top = this.#view.scrollTop;
  }

  #fillPool(n) {
    while (this.#pool.length < n) {
      const row = newRow();
      row.element.id = `frame-${this.#pool.length}`;
      this.#pool.push(row);
      this.#rows.append(row.element);
    }
  }

  #drawRow(row, index, used) {
    row.element.hidden = !used;
    row.number = used ? index + this.#gone : -1;
    if (!used) return;
    const entry = this.#entries[index];
    row.element.style.transform = `translateY(${index * this.#height}px)`;
    row.element.setAttribute("aria-setsize", this.#entries.length);
    row.element.setAttribute("aria-posinset", index + 1);
    row.element.setAttribute("aria-selected", row.number === this.#active);
    if (row.entry === entry) return;
    row.entry = entry;
    row.element.className = `row ${entry.kind}`;
    row.at.textContent = clock(entry.at);
    row.mark.textContent = entry.mark;
    row.what.textContent = entry.what;
    row.count.textContent = entry.count ?? "";
    row.text.textContent = entry.text.length > shown ? `${entry.text.slice(0, shown)}…` : entry.text;
    row.roundTrip.textContent = entry.roundTrip ?? "";
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#view;
    const atEnd = scrollTop + clientHeight > scrollHeight - this.#height * 1.5;
    // Not at the end, but not moved up either: the list has become lower.
    this.#following = atEnd || (this.#following && scrollTop >= this.#top);
    if (this.#following) this.#unseen = 0;
    this.#schedule();
  }

  #onClick(event) {
    const row = this.#pool.find(({ element }) => element.contains(event.target));
    if (row) this.#open(row.number);
  }

  #onKey(event) {
    const page = Math.max(Math.floor(this.#view.clientHeight / this.#height) - 1, 1);
    const last = this.#gone + this.#entries.length - 1;
    const from = this.#active < 0 ? last + 1 : this.#active;
    const to = {
      ArrowUp: from - 1, ArrowDown: from + 1, PageUp: from - page, PageDown: from + page, Home: this.#gone, End: last,
    }[event.key];
    if (to !== undefined && last >= this.#gone) {
      event.preventDefault();
      this.#choose(Math.min(Math.max(to, this.#gone), last));
    } else if ((event.key === "Enter" || event.key === " ") && this.#active >= 0) {
      event.preventDefault();
      this.#open(this.#active);
    }
  }

  #choose(number) {
    this.#active = number;
    const top = (number - this.#gone) * this.#height;
    const { scrollTop, clientHeight } = this.#view;
    if (top < scrollTop) this.#view.scrollTop = top;
    if (top + this.#height > scrollTop + clientHeight) this.#view.scrollTop = top + this.#height - clientHeight;
    this.#following = number === this.#gone + this.#entries.length - 1;
    this.#schedule();
  }

  /** Tells assistive technology which line is chosen. */
  #point() {
    const row = this.#active < 0 ? undefined : this.#pool.find(({ number }) => number === this.#active);
    if (row) this.#view.setAttribute("aria-activedescendant", row.element.id);
    else this.#view.removeAttribute("aria-activedescendant");
  }

  #open(number) {
    this.#choose(number);
    this.#onOpen(this.#entries[number - this.#gone]);
  }
}

function newRow() {
  const element = document.createElement("div");
  element.setAttribute("role", "option");
  const cell = (name, className = name) => {
    const span = document.createElement("span");
    span.className = className;
    element.append(span);
    return span;
  };
  const row = {
    element, at: cell("at"), mark: cell("mark"), what: cell("what", "hidden"),
    count: cell("number"), text: cell("text"), roundTrip: cell("round-trip"),
  };
  row.mark.setAttribute("aria-hidden", "true");
  row.text.dir = "auto"; // and what it turns around stays within the line
  return row;
}

/** The time of day, to the second. */
export function timeOfDay(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");
}

function clock(date) { return `${timeOfDay(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`; }
