/**
 * The shapes of the data that the modules hand to each other. Nothing here runs.
 *
 * @typedef {Object} Frame One statistic of one optimizer of one run, as decoded by frame.js.
 * @property {string} stat "norm", "ratio", "update" or "coefficient".
 * @property {string[]} layers Names in the order of the forward pass, input first.
 * @property {string[]} shapes Shapes in words, "" where unknown.
 * @property {string[]} kinds Class of the module that owns each layer, "" where unknown.
 * @property {string[]} measured Statistics that this run has.
 * @property {number|null} clipRatio Gradient-to-weight ratio from which the policy clips, if it goes by one.
 * @property {boolean} dryRun Whether the policy only said what it would have clipped.
 * @property {Float64Array} steps Step of each column, strictly increasing.
 * @property {Float64Array} wallTimes Seconds since 1970.
 * @property {Object<string, Float32Array>} step Values of the step as a whole, by name.
 * @property {Float32Array} values Row-major [layers × columns]; see marks in cells.js.
 *
 * @typedef {Object} RunList
 * @property {RunInfo[]} runs
 * @property {Object<string, string>} [unreadable] Runs of which nothing can be read, with the reason.
 *
 * @typedef {Object} RunInfo What the server lists.
 * @property {string} name
 * @property {number} last_step
 * @property {number} wall_time
 * @property {number} layers
 * @property {number[]} optimizers
 * @property {number} findings How many.
 * @property {{rule: string, severity: string, message: string, until: number|null}|null} finding The gravest.
 * @property {number} nonfinite Steps of the whole run.
 * @property {number|null} clipped Share of the steps of the whole run; null without a policy.
 * @property {number|null} spread Largest over smallest layer in the last column.
 * @property {number|string|null} loss The last one; "nan" and "inf" are strings.
 *
 * @typedef {Object} RunEvent
 * @property {number} step
 * @property {"nonfinite"|"overflow"|"rollback"|"spike"|"finding"|"cleared"} kind
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
 * @property {number|null} [until] Step from which it has not held any more.
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
 * @property {string} clip Policy that is tried, "" for none.
 * @property {[number, number]|null} steps Zoom over steps.
 * @property {[number, number]|null} span Zoom over rows, first and one past the last.
 *
 * @typedef {Object} Curve The total norm of every step, in few points, and what a policy would have done.
 * @property {number[]} steps
 * @property {number[]} norms
 * @property {string} [policy]
 * @property {number[]} [thresholds] -1 where there is none.
 * @property {number[]} [marks] Steps that would have been clipped, at most the hardest 500.
 * @property {number} [share]
 * @property {number} [smallest]
 * @property {string} [problem] Why the policy cannot be tried.
 *
 * @typedef {Object} View All that a picture is drawn from; made by view.js. Rows are counted among the visible ones.
 * @property {State} state
 * @property {Frame} frame Of the shown statistic.
 * @property {Rows} rows
 * @property {Float32Array} values Of rows, row-major [rows × columns]; what was not measured is held from before.
 * @property {{source: Int32Array, share: number}} held The column that each was measured at, see held.js.
 * @property {number[]} visible The rows that the filter lets through.
 * @property {string} problem What is wrong with the filter, "" if nothing is.
 * @property {Cells} cells
 * @property {Compared|null} compare
 * @property {EventList} events
 * @property {RunEvent[]} marks Events, and bad columns that the bounded list of events does not have.
 * @property {{low: Float32Array, middle: Float32Array, high: Float32Array}} band Of each row over the run, logarithms.
 * @property {[number, number]} profileRange Logarithms.
 * @property {[number, number]} domain First and last shown step.
 * @property {[number, number]} span First shown row, and one past the last.
 * @property {boolean} isZoomed
 * @property {Curve|null} [curve]
 * @property {function(number): string} nameOf
 * @property {function(number): string} kindOf
 * @property {function(number): string} blockOf
 *
 * @typedef {Object} Compared The other run, fitted onto the rows of the first.
 * @property {string} name
 * @property {Frame} frame
 * @property {Float32Array} values Of its own rows.
 * @property {Cells|null} cells On the rows of the first run; null where it is not drawn as a picture of its own.
 * @property {boolean} isByName Else by relative depth.
 * @property {function(number): string} nameOf
 * @property {function(number): number} rowOf Its row for a row of the first run, -1 for none.
 *
 * @typedef {{x: number, y: number, width: number, height: number}} Rect
 */

export {};
