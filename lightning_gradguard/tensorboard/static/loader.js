/** Fetches what a state needs, each thing once, until it is out of date. */

import { STATS } from "./cells.js";

export class Loader {
  /** @param {import("./source.js").ServerSource|import("./source.js").ReportSource} source */
  constructor(source) {
    this.source = source;
    this.kept = new Map();
    /** @type {import("./types.js").RunInfo[]} */
    this.runs = [];
    /** @type {Object<string, string>} */
    this.unreadable = {};
  }

  /** Lists the runs; what belongs to a run that has grown is forgotten. @returns {Promise<Set<string>>} those runs. */
  async refresh() {
    const before = new Map(this.runs.map((run) => [run.name, JSON.stringify(run)]));
    const { runs, unreadable = {} } = await this.source.runs();
    Object.assign(this, { runs, unreadable });
    const grown = new Set(this.runs.filter((run) => before.get(run.name) !== JSON.stringify(run)).map((run) => run.name));
    for (const key of this.kept.keys()) if (grown.has(key.split("\n")[0])) this.kept.delete(key);
    return grown;
  }

  flow(run, optimizer, stat) {
    return this.once([run, optimizer, stat], () => this.source.flow(run, optimizer, stat));
  }

  events(run, optimizer) {
    return this.once([run, optimizer, "events"], () => this.source.events(run, optimizer));
  }

  /** The picture does not wait for it to succeed: a server of an older version has none. */
  curve(run, optimizer, clip) {
    return this.once([run, optimizer, "curve", clip], () => this.source.curve(run, optimizer, clip)).catch(() => null);
  }

  /** The compared run has the same optimizer if it can, else its first. */
  optimizerOf(run, optimizer) {
    const known = this.runs.find((info) => info.name === run)?.optimizers || [0];
    return known.includes(optimizer) ? optimizer : known[0];
  }

  /** The frames of a run that are here already, by statistic. */
  loaded(run, optimizer) {
    const frames = {};
    for (const stat of Object.keys(STATS)) {
      const entry = this.kept.get([run, optimizer, stat].join("\n"));
      if (entry?.value) frames[stat] = entry.value;
    }
    return frames;
  }

  once(key, fetch) {
    const name = key.join("\n");
    if (!this.kept.has(name)) {
      const entry = { value: null, promise: null };
      entry.promise = fetch().then((value) => (entry.value = value));
      entry.promise.catch(() => this.kept.delete(name));
      this.kept.set(name, entry);
    }
    return this.kept.get(name).promise;
  }
}
