/** Light or dark: as TensorBoard is, or in a report as the system is. */

function hostBody() {
  try {
    return window.parent !== window ? window.parent.document.body : null;
  } catch {
    return null;
  }
}

const system = window.matchMedia("(prefers-color-scheme: dark)");

/** @returns {boolean} */
export function isDark() {
  const body = hostBody();
  return body ? body.classList.contains("dark-mode") : system.matches;
}

/** @param {function(): void} callback Called when it changes. TensorBoard does not tell frames, so its body is watched. */
export function watchTheme(callback) {
  const body = hostBody();
  if (body) new MutationObserver(callback).observe(body, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", callback);
}
