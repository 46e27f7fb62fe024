() => {
  // The comparison of all pairs, the swipe, the keys of the review, and the buttons that copy a command.
  document.documentElement.lang = "PAGE_LANGUAGE";
  const COMPARISONS = ["side", "swipe", "flicker", "checkerboard", "vessels"];
  const BUTTONS = { k: "keep", r: "reject", b: "back", arrowleft: "previous", arrowright: "next" };

  function choose(name) {
    document.body.dataset.comparison = name;
    for (const button of document.querySelectorAll("[data-choose]")) {
      button.setAttribute("aria-pressed", String(button.dataset.choose === name));
    }
  }

  function isTyping(target) {
    const types = ["range", "button", "checkbox", "radio", "file"];
    if (target.tagName === "INPUT") return !types.includes(target.type);
    return target.tagName === "TEXTAREA" || target.tagName === "SELECT" || target.isContentEditable;
  }

  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-choose]");
    if (chosen) choose(chosen.dataset.choose);
    const link = event.target.closest("a[data-frame]");
    if (link) link.href = link.closest(".pair").querySelector(`.frame.${link.dataset.frame} img`).src;
    const copying = event.target.closest("[data-copied]");
    if (copying) {
      navigator.clipboard.writeText(copying.previousElementSibling.textContent);
      copying.textContent = copying.dataset.copied;
    }
  });

  document.addEventListener("input", (event) => {
    if (event.target.matches(".swipe-at")) {
      event.target.closest(".pair").style.setProperty("--at", `${event.target.value}%`);
    }
  });

  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    if (key.startsWith("arrow") && event.target.type === "range") return;
    if (event.target.getAttribute && event.target.getAttribute("role") === "tab") if (key.startsWith("arrow")) return;
    if (/^[1-5]$/.test(key)) choose(COMPARISONS[key - 1]);
    const button = BUTTONS[key] && document.getElementById(BUTTONS[key]);
    if (button && button.offsetParent !== null && !button.disabled) {
      event.preventDefault();
      button.click();
    }
  });

  // The buttons appear after this script runs.
  new MutationObserver(() => {
    const unmarked = document.querySelector("[data-choose]:not([aria-pressed])");
    if (unmarked) choose(document.body.dataset.comparison || "side");
  }).observe(document.body, { childList: true, subtree: true });
  choose("side");
}
