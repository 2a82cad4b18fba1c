// What Gradio's own page lacks: for people who use it by keyboard or by ear, and for those who read on.
(() => {
  // Escape stops the answer that is under way.
  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#stop");
    if (event.key === "Escape" && stop && stop.offsetParent !== null) stop.click();
  });
  // The boxes have no labels of their own, and are made anew now and then; what opens and closes does not say which.
  const tell = () => {
    for (const [box, name] of [["#box", "Your message"], ["#chat", "Your question"]])
      for (const text of document.querySelectorAll(`${box} textarea:not([aria-label])`))
        text.setAttribute("aria-label", name);
    for (const button of document.querySelectorAll("#side button.label-wrap"))
      button.setAttribute("aria-expanded", button.classList.contains("open"));
  };
  // The conversation follows the answer until somebody scrolls up to read. Gradio's own way pulls them down again.
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
  new MutationObserver(() => { tell(); follow(); }).observe(document.documentElement, {
    childList: true, subtree: true, attributeFilter: ["class"],
  });
})();
