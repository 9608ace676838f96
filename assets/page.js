// The page's keys and buttons within drawn text. Events are caught on the document: what Gradio draws anew keeps them.
// The whole file runs once a page load.
const seen = (id) => {
  const found = document.getElementById(id);
  return found && found.offsetParent ? found : null;
};

// What is hidden can't stick: the composer is to stay at the window's lower edge.
document.querySelector(".gradio-container").style.overflow = "clip";

// Esc stops what is being answered; with nothing to stop, it leaves an edit.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  const wanted = seen("stop") || seen("unedit");
  if (wanted && seen("compare")) wanted.click();
});

const write = (text) => {
  const box = document.querySelector("#prompt textarea");
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.focus();
};

const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = document.createElement("textarea"); // a page that is not from this machine has no clipboard of its own
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
};

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button.copy, button.widen, button.try");
  if (!button) return;
  if (button.classList.contains("try")) return write(button.textContent);
  if (button.classList.contains("copy")) {
    await copy(button.closest("article, aside").querySelector(".text").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1200);
    return;
  }
  const tab = document.getElementById("compare");
  const wide = tab.dataset.wide === button.dataset.place;
  if (wide) delete tab.dataset.wide;
  else tab.dataset.wide = button.dataset.place;
});

// While answers grow the page follows them, unless the reader has scrolled away from their end.
const live = document.getElementById("live");
if (live) {
  let end = live.getBoundingClientRect().bottom;
  new MutationObserver(() => {
    const now = live.getBoundingClientRect().bottom;
    const room = window.innerHeight - (seen("composer")?.offsetHeight ?? 0);
    if (now > end && end <= room + 40 && now > room) window.scrollBy(0, now - room + 16);
    end = live.getBoundingClientRect().bottom;
  }).observe(live, { childList: true, subtree: true, characterData: true });
  addEventListener("scroll", () => (end = live.getBoundingClientRect().bottom), { passive: true });
}
