/**
 * The shapes of the data that the modules hand to each other. Nothing here runs.
 *
 * @typedef {Object} Frame One statistic of one optimizer of one run, as decoded by frame.js.
 * @property {string} stat "norm", "ratio", "update" or "coefficient".
 * @property {string[]} layers Names in depth order, input first.
 * @property {string[]} shapes Shapes in words, "" where unknown.
 * @property {string[]} measured Statistics that this run has.
 * @property {number|null} clipRatio Gradient-to-weight ratio from which the policy clips, if it goes by one.
 * @property {Float64Array} steps Step of each column, strictly increasing.
 * @property {Float64Array} wallTimes Seconds since 1970.
 * @property {Object<string, Float32Array>} step Values of the step as a whole, by name.
 * @property {Float32Array} values Row-major [layers × columns]; see marks in cells.js.
 *
 * @typedef {Object} RunInfo What the server lists.
 * @property {string} name
 * @property {number} last_step
 * @property {number} wall_time
 * @property {number} layers
 * @property {number[]} optimizers
 *
 * @typedef {Object} RunEvent
 * @property {number} step
 * @property {"nonfinite"|"overflow"|"rollback"|"spike"|"finding"} kind
 * @property {string} text
 * @property {string[]} layers
 * @property {number} num_layers
 * @property {number} [factor] Of a spike: how many times the typical norm.
 *
 * @typedef {Object} Finding One diagnosis, with its remedies.
 * @property {string} rule
 * @property {"info"|"warning"|"critical"} severity
 * @property {number|null} until Step at which it was seen not to hold any more.
 * @property {number} place Of its rule among the rules, causes first.
 * @property {string} message
 * @property {number} step
 * @property {number} first_step
 * @property {string[]} layers
 * @property {string[]} causes
 * @property {string[]} remedies
 * @property {number} count
 *
 * @typedef {{counts: Object<string, number>, events: RunEvent[], findings: Finding[]}} EventList
 *
 * @typedef {Object} Rows The rows of the picture: layers, or groups of them.
 * @property {"parameter"|"layer"|"block"} grouping
 * @property {string[]} names
 * @property {number[][]} members Layer indices of each row.
 * @property {string[]} blocks The block each row belongs to, for separators.
 *
 * @typedef {Object} Cells What colour every cell has, and which of two cells wins a pixel.
 * @property {Uint16Array} index Row-major [rows × columns]; 0…255 on the ramp, then the marks of cells.js.
 * @property {Float32Array} weight The larger, the worse.
 * @property {Scale} scale
 *
 * @typedef {Object} Scale What the colours mean.
 * @property {"diverging"|"sequential"} ramp
 * @property {[number, number]} reach Decades from the middle down to the low end and up to the high one.
 * @property {number|null} middle log10 of the middle, null if it differs from cell to cell.
 * @property {string} low What an end means, in words.
 * @property {string} centre
 * @property {string} high
 *
 * @typedef {Object} State What the user chose; all of it is in the deep link.
 * @property {string} run
 * @property {string} compare "" for none.
 * @property {number} optimizer
 * @property {string} stat
 * @property {string} anchor
 * @property {"parameter"|"layer"|"block"} rows
 * @property {string} filter
 * @property {number|null} step Pinned step.
 * @property {string} layer Pinned row, "" for none.
 * @property {[number, number]|null} steps Zoom over steps.
 * @property {[number, number]|null} span Zoom over rows, first and one past the last.
 *
 * @typedef {{x: number, y: number, width: number, height: number}} Rect
 */

export {};
