// What Gradio's own page lacks for people who use it by keyboard or by ear.
(() => {
  // Escape stops the answer that is under way.
  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#stop");
    if (event.key === "Escape" && stop && stop.offsetParent !== null) stop.click();
  });
  // The box has no label of its own, and is made anew now and then.
  const name = () => {
    const box = document.querySelector("#box textarea:not([aria-label])");
    if (box) box.setAttribute("aria-label", "Your message");
  };
  new MutationObserver(name).observe(document.documentElement, { childList: true, subtree: true });
})();
