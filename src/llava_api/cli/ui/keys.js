// What Gradio's own page lacks for people who use a keyboard or a screen reader, and for those who scroll up.
(() => {
  // Escape stops the answer in progress.
  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#stop");
    if (event.key === "Escape" && stop && stop.offsetParent !== null) stop.click();
  });
  // The boxes have no labels and are replaced now and then; the buttons of accordions do not say whether these are open.
  const label = () => {
    for (const [box, name] of [["#box", "Your message"], ["#chat", "Your question"]])
      for (const text of document.querySelectorAll(`${box} textarea:not([aria-label])`))
        text.setAttribute("aria-label", name);
    for (const button of document.querySelectorAll("#side button.label-wrap"))
      button.setAttribute("aria-expanded", button.classList.contains("open"));
  };
  // The conversation follows the answer until somebody scrolls up to read. Gradio's own way would scroll down again.
  const NEAR = 50;
  let follows = true, last = 0;
  document.addEventListener("scroll", ({ target }) => {
    if (!(target instanceof Element) || !target.matches("#chat [role=log]")) return;
    const near = target.scrollHeight - target.clientHeight - target.scrollTop < NEAR;
    follows = near || (follows && target.scrollTop >= last);
    last = target.scrollTop;
  }, true);
  const follow = () => {
    const talk = document.querySelector("#chat [role=log]");
    if (talk && follows) talk.scrollTop = talk.scrollHeight;
  };
  new MutationObserver(() => { label(); follow(); }).observe(document.documentElement, {
    childList: true, subtree: true, attributeFilter: ["class"],
  });
})();
