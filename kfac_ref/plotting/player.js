// Steps through the frames of every player of the page that is not yet ready. Without this script all frames stand
// one below the other. Keys, where a player has the focus: left, right, Home, End.
(function () {
  "use strict";

  function button(word, label, action) {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = word;
    element.setAttribute("aria-label", label);
    element.addEventListener("click", action);
    return element;
  }

  function start(player) {
    const frames = Array.from(player.querySelectorAll("figure"));
    const slider = document.createElement("input");
    const count = document.createElement("span");
    const controls = document.createElement("div");
    let now = 0;

    player.dataset.ready = "yes";
    if (frames.length < 2) { return; }       // nothing to step through

    function show(k) {
      now = Math.max(0, Math.min(frames.length - 1, k));
      frames.forEach((frame, i) => { frame.hidden = i !== now; });
      slider.value = String(now);
      slider.setAttribute("aria-valuetext", "frame " + (now + 1) + " of " + frames.length);
      count.textContent = (now + 1) + " / " + frames.length;
      player.dataset.frame = String(now);
    }

    slider.type = "range";
    slider.min = "0";
    slider.max = String(frames.length - 1);
    slider.setAttribute("aria-label", "frame");
    slider.style.flex = "1";
    slider.addEventListener("input", () => show(Number(slider.value)));
    controls.style.cssText = "display: flex; gap: 0.5em; align-items: center";
    controls.append(button("\u25C0", "previous frame", () => show(now - 1)), slider,
                    button("\u25B6", "next frame", () => show(now + 1)), count);
    player.prepend(controls);
    frames.forEach((frame) => frame.setAttribute("aria-live", "polite"));
    player.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) { return; }      // the browser's own
      const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: frames.length - 1 }[event.key];
      if (to === undefined) { return; }
      event.preventDefault();      // the slider and the page would move as well
      show(to);
    });
    show(0);
  }

  document.querySelectorAll(".kfac-player:not([data-ready])").forEach(start);
})();
