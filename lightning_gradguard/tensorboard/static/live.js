/** Follows a run that is still training. TensorBoard's own automatic reload is off by default, so we ask ourselves. */

const EVERY = 5000;

/**
 * Calls `refresh` every five seconds while the page is seen, later if the last one took long.
 * @param {function(): Promise<void>} refresh
 */
export function keepFresh(refresh) {
  const tick = async () => {
    const begun = performance.now();
    if (!document.hidden) await refresh();
    setTimeout(tick, Math.max(EVERY, 8 * (performance.now() - begun)));
  };
  setTimeout(tick, EVERY);
}
