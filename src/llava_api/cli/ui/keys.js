// What Gradio's own page lacks for people who use it by keyboard or by ear.
(() => {
  // Escape stops the answer that is under way.
  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#stop");
    if (event.key === "Escape" && stop && stop.offsetParent !== null) stop.click();
  });
  // The boxes have no labels of their own, and are made anew now and then; what opens and closes does not say which.
  const tell = () => {
    for (const [box, name] of [["#box", "Your message"], ["#chat", "Your question"]])
      document.querySelector(`${box} textarea:not([aria-label])`)?.setAttribute("aria-label", name);
    for (const button of document.querySelectorAll("#side button.label-wrap"))
      button.setAttribute("aria-expanded", button.classList.contains("open"));
  };
  new MutationObserver(tell).observe(document.documentElement, {
    childList: true, subtree: true, attributeFilter: ["class"],
  });
})();
